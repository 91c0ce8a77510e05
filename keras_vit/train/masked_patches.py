"""Pre-training without labels: masked patch prediction."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.layers.tokens import take
from keras_vit.models.base import Backbone
from keras_vit.train.distill import constants
from keras_vit.train.masking import Pretraining
from keras_vit.types import Tensor


class MaskedPatches(Pretraining):
    """Masked patch prediction (https://arxiv.org/abs/2010.11929, appendix B.1.2).

    Half of the patch embeddings are corrupted: 80 % of these become a mask token, 10 % another
    patch of the picture, 10 % stay. Of each corrupted patch the mean colour is predicted, with 3
    bits per channel, that is one of 8^channels classes: eight equal parts of 0..1, the first
    channel's number counts most. (The paper does not say how the colour is rounded.)

    Args:
        backbone, preprocessor: as in `Pretraining`.
        mask_ratio: the part of the patches that is corrupted.
    """

    recipe = "masked_patches"

    def __init__(
        self, backbone: Backbone, preprocessor: Any, mask_ratio: float = 0.5, **kwargs: Any
    ):
        super().__init__(backbone, preprocessor, **kwargs)
        self.corrupted = max(int(self.count * mask_ratio), 1)
        self.mask_token = self.token(self.width, "mask_token")
        self.head = keras.layers.Dense(8**self.channels, dtype="float32", name="colours")
        self.head.build((None, None, self.width))
        self.built = True

    def corrupt(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `(B, N, D)`, some of them replaced, and 1 where one is corrupted, `(B, N)`."""
        order, rank = self.shuffled(tokens)
        mask = ops.cast(rank < self.corrupted, "float32")
        kind = keras.random.uniform(ops.shape(mask), seed=self.random)[..., None]
        # The next patch in the random order is a random other one.
        others = take(tokens, take(ops.roll(order, 1, axis=1)[..., None], rank)[..., 0])
        replaced = ops.where(
            kind < 0.8,
            ops.cast(self.mask_token, tokens.dtype),
            ops.where(kind < 0.9, others, tokens),
        )
        return ops.where(mask[..., None] > 0, replaced, tokens), mask

    def call(self, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Logits `(B, N, 8^C)` of all patches, and 1 where one was corrupted, `(B, N)`."""
        tokens, mask = self.corrupt(self.embed.tokens(ops.cast(x, self.embed.compute_dtype)))
        z = self.encode(self.embed.assemble(tokens), training)
        return self.head(z[:, self.embed.num_prefix_tokens :]), mask

    def target(self, x: Tensor) -> Tensor:
        """The classes of the mean colours, `(B, N)` ints."""
        scale, offset = constants(self.preprocessor)
        colours = ops.reshape(
            self.patches(x), (-1, self.count, self.embed.patch_size**2, len(scale))
        )
        mean = (ops.mean(colours, axis=2) - offset) / scale / 255
        bins = ops.clip(ops.floor(mean * 8), 0, 7)
        digits = ops.convert_to_tensor(8.0 ** np.arange(self.channels)[::-1], "float32")
        return ops.cast(ops.sum(bins * digits, axis=-1), "int32")

    def loss_of(self, x: Tensor, outputs: Any) -> Tensor:
        logits, mask = outputs
        loss = ops.sparse_categorical_crossentropy(self.target(x), logits, from_logits=True)
        return ops.sum(loss * mask) / ops.sum(mask)

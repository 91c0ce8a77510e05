"""Pre-training without labels: SimMIM."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.models.base import Backbone
from keras_vit.train.masking import Pretraining
from keras_vit.types import ImageSet, Tensor


class SimMIM(Pretraining):
    """SimMIM (https://arxiv.org/abs/2111.09886): a mask token in place of hidden patches, one dense
    layer predicts their pixels, the loss is the absolute error.

    The paper's ViT has no absolute positions, but relative biases; here it is any ViT.

    Args:
        backbone, preprocessor: as in `Pretraining`.
        mask_ratio: the part of the picture that is hidden.
        mask_unit: in pixels: squares of this size are hidden as a whole.
    """

    recipe = "simmim"

    def __init__(
        self,
        backbone: Backbone,
        preprocessor: Any,
        mask_ratio: float = 0.6,
        mask_unit: int = 32,
        **kwargs: Any,
    ):
        super().__init__(backbone, preprocessor, **kwargs)
        patch = self.embed.patch_size
        if mask_unit % patch or any(size * patch % mask_unit for size in self.grid):
            raise ValueError(
                f"mask_unit must be a multiple of the patch size {patch} and divide the image size "
                f"{tuple(size * patch for size in self.grid)}. Received: {mask_unit}"
            )
        self.unit = mask_unit // patch
        self.units = tuple(size // self.unit for size in self.grid)
        self.hidden = math.ceil(math.prod(self.units) * mask_ratio)
        self.mask_token = self.token(self.width, "mask_token")
        pixels = patch**2 * self.channels
        self.head = keras.layers.Dense(pixels, dtype="float32", name="pixels")
        self.head.build((None, None, self.width))
        self.built = True

    def mask(self, x: Tensor) -> Tensor:
        """1 where a patch is hidden, `(B, N)`."""
        rows, columns = self.units
        noise = keras.random.uniform((ops.shape(x)[0], rows * columns), seed=self.random)
        rank = ops.argsort(ops.argsort(noise, axis=1), axis=1)
        mask = ops.reshape(ops.cast(rank < self.hidden, "float32"), (-1, rows, columns))
        mask = ops.repeat(ops.repeat(mask, self.unit, axis=1), self.unit, axis=2)
        return ops.reshape(mask, (-1, self.count))

    def call(self, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Predictions `(B, N, P*P*C)` of all patches, and 1 where one was hidden, `(B, N)`."""
        mask = self.mask(x)
        tokens = self.embed.tokens(ops.cast(x, self.embed.compute_dtype))
        where = ops.cast(mask, tokens.dtype)[..., None]
        tokens = tokens * (1 - where) + ops.cast(self.mask_token, tokens.dtype) * where
        z = self.encode(self.embed.assemble(tokens), training)
        return self.head(z[:, self.embed.num_prefix_tokens :]), mask

    def loss_of(self, x: Tensor, outputs: Any) -> Tensor:
        prediction, mask = outputs
        error = ops.mean(ops.abs(prediction - self.target(x)), axis=-1)
        return ops.sum(error * mask) / (ops.sum(mask) + 1e-5)

    def reconstruct(self, images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `MAE.reconstruct`."""
        x = ops.convert_to_tensor(self.preprocess_samples(images)[0], "float32")
        prediction, mask = self(x, training=False)
        return self.views(self.patches(x), prediction, mask)

"""Pre-training without labels: the masked autoencoder."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.layers import TransformerBlock
from keras_vit.layers.norm import normalization
from keras_vit.layers.positions import sincos
from keras_vit.layers.tokens import take
from keras_vit.models.base import Backbone
from keras_vit.train.masking import Pretraining
from keras_vit.types import ImageSet, Tensor


class MAE(Pretraining):
    """Masked autoencoder (https://arxiv.org/abs/2111.06377): the encoder sees the visible patches
    alone, a small decoder predicts the pixels of the others.

    The loss is the squared error of the hidden patches, each normalised by its own mean and
    variance. As in the paper the decoder's positions are fixed sines and cosines, and the encoder's
    begin as such (there they stay fixed).

    Args:
        backbone, preprocessor: as in `Pretraining`.
        mask_ratio: the part of the patches that is hidden.
        decoder_dim, decoder_depth, decoder_heads: of the decoder; the paper's by default.
        norm_pix: whether the target is normalised by patch.
    """

    recipe = "mae"

    def __init__(
        self,
        backbone: Backbone,
        preprocessor: Any,
        mask_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix: bool = True,
        **kwargs: Any,
    ):
        super().__init__(backbone, preprocessor, **kwargs)
        self.mask_ratio, self.norm_pix = mask_ratio, norm_pix
        self.visible = max(int(self.count * (1 - mask_ratio)), 1)
        self.prefix = self.embed.num_prefix_tokens
        ahead = self.embed.pos_embed.shape[1] - self.count
        self.embed.pos_embed.assign(sincos(self.grid, self.width, ahead)[None])
        dtype = backbone.dtype_policy
        self.decoder_embed = keras.layers.Dense(decoder_dim, dtype=dtype, name="decoder_embed")
        self.mask_token = self.token(decoder_dim, "mask_token")
        self.decoder_positions = sincos(self.grid, decoder_dim, self.prefix)[None]
        options = {"num_heads": decoder_heads, "dtype": dtype}
        self.decoder = [
            TransformerBlock(**options, name=f"decoder_blocks_{i}") for i in range(decoder_depth)
        ]
        self.decoder_norm = normalization(epsilon=1e-6, dtype=dtype, name="decoder_norm")
        pixels = self.embed.patch_size**2 * self.channels
        self.decoder_pred = keras.layers.Dense(pixels, dtype="float32", name="decoder_pred")
        self.decoder_embed.build((None, None, self.width))
        for layer in [*self.decoder, self.decoder_norm, self.decoder_pred]:
            layer.build((None, self.prefix + self.count, decoder_dim))
        self.built = True

    def call(self, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Predictions `(B, N, P*P*C)` of all patches, and 1 where one was hidden, `(B, N)`."""
        order, back = self.shuffled(x)
        # Without patch dropout, which would leave out patches of the visible ones' order.
        tokens = self.embed.assemble(self.embed.tokens(ops.cast(x, self.embed.compute_dtype)))
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        patches = take(patches, order[:, : self.visible])
        seen = self.encode(ops.concatenate([prefix, patches], axis=1), training)
        seen = self.decoder_embed(seen)
        hidden = ops.cast(self.mask_token, seen.dtype)
        shape = (ops.shape(x)[0], self.count - self.visible, seen.shape[-1])
        patches = ops.concatenate([seen[:, self.prefix :], ops.broadcast_to(hidden, shape)], axis=1)
        z = ops.concatenate([seen[:, : self.prefix], take(patches, back)], axis=1)
        z = z + ops.convert_to_tensor(self.decoder_positions, z.dtype)
        for block in self.decoder:
            z = block(z, training=training)
        z = self.decoder_pred(self.decoder_norm(z)[:, self.prefix :])
        return z, ops.cast(back >= self.visible, "float32")

    def target(self, x: Tensor) -> Tensor:
        patches = self.patches(x)
        return self.normalised(patches)[0] if self.norm_pix else patches

    def normalised(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches with mean 0 and variance 1, their means and standard deviations before."""
        mean = ops.mean(patches, axis=-1, keepdims=True)
        count = patches.shape[-1]
        variance = ops.sum(ops.square(patches - mean), axis=-1, keepdims=True) / (count - 1)
        deviation = ops.sqrt(variance + 1e-6)
        return (patches - mean) / deviation, mean, deviation

    def loss_of(self, x: Tensor, outputs: Any) -> Tensor:
        prediction, mask = outputs
        error = ops.mean(ops.square(prediction - self.target(x)), axis=-1)
        return ops.sum(error * mask) / ops.sum(mask)

    def reconstruct(self, images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pictures, what the encoder saw of them, what it makes of that), `(B, H, W, C)` in 0..1.

        The hidden patches get the mean and contrast of the true ones if `norm_pix`."""
        x = ops.convert_to_tensor(self.preprocess_samples(images)[0], "float32")
        prediction, mask = self(x, training=False)
        patches = self.patches(x)
        if self.norm_pix:
            _, mean, deviation = self.normalised(patches)
            prediction = prediction * deviation + mean
        return self.views(patches, prediction, mask)

"""Patches of a feature map: how Swin begins, and how it halves the resolution."""

from typing import Any

import keras

from keras_vit.layers.base import Layer, initial, register
from keras_vit.layers.conv import Conv
from keras_vit.layers.lora import Dense
from keras_vit.layers.mlp import as_matrix
from keras_vit.layers.norm import normalization
from keras_vit.layers.windows import neighbours
from keras_vit.types import Shape, Tensor

EPSILON = 1e-5  # of the norms between the stages, in all sources


@register
class PatchEmbed(Layer):
    """Patch projection and a norm: `(B, H, W, C) -> (B, H / P, W / P, D)`.

    Args:
        embed_dim: D.
        patch_size: P, in pixels.
    """

    def __init__(self, embed_dim: int, patch_size: int = 4, **kwargs: Any):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.patch_size = patch_size

    def build(self, input_shape: Shape) -> None:
        p = self.patch_size
        conv = {"filters": self.embed_dim, "kernel_size": p, "strides": p, "name": "proj"}
        self.proj = self.child(Conv, input_shape, **conv)
        shape = (*input_shape[:-1], self.embed_dim)
        self.norm = self.child(normalization, shape, epsilon=EPSILON, name="norm")

    def call(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


@register
class PatchMerging(Layer):
    """Joins 2 x 2 neighbours: `(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 * C)`.

    Section 3.1 of https://arxiv.org/abs/2103.14030. Where H or W is odd, zeros are added below or
    on the right.

    Args:
        norm_first: whether the norm comes before the reduction from 4 * C to 2 * C, or after it.
    """

    def __init__(self, norm_first: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.norm_first = norm_first

    def build(self, input_shape: Shape) -> None:
        outer, width = input_shape[:-1], input_shape[-1]
        shape = (*outer, 4 * width)
        reduced = (*outer, (4 if self.norm_first else 2) * width)
        self.norm = self.child(normalization, reduced, epsilon=EPSILON, name="norm")
        dense = {"kernel_initializer": initial(), "use_bias": False}
        self.reduction = self.child(Dense, shape, units=2 * width, name="reduction", **dense)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        batch, rows, columns, width = x.shape
        shape = (batch, (rows + 1) // 2, (columns + 1) // 2, 2 * width)
        return keras.KerasTensor(shape, self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        x = neighbours(x)
        if self.norm_first:
            return as_matrix(self.reduction, self.norm(x))
        return self.norm(as_matrix(self.reduction, x))

"""Pooling: of a map to a grid of given size, and of tokens by learned weights."""

from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import Layer, initial, register
from keras_vit.layers.lora import Dense
from keras_vit.layers.tokens import map_size
from keras_vit.types import Shape, Tensor


def adaptive_average(x: Tensor, size: int) -> Tensor:
    """Means over the cells of a grid: `(B, H, W, C) -> (B, size, size, C)`.

    PyTorch's `AdaptiveAvgPool2d`: cell i has the rows from floor(i * H / size) to before
    ceil((i + 1) * H / size). Cells may overlap; the values of a small map are repeated.

    Args:
        x: the map; H and W may be unknown.
        size: rows and columns of the grid.
    """
    known = x.shape[1:3]
    if not any(n is None or n % size for n in known):
        window = (known[0] // size, known[1] // size)
        if window == (1, 1):
            return x
        return ops.average_pool(x, window, window, data_format="channels_last")  # JAX needs both
    (rows, columns), channels = map_size(x), x.shape[3]
    x = ops.matmul(_means(rows, size, x.dtype), ops.reshape(x, (-1, rows, columns * channels)))
    x = ops.reshape(x, (-1, size, columns, channels))
    return ops.matmul(_means(columns, size, x.dtype), x)


def _means(length: Any, size: int, dtype: str) -> Tensor:
    """The means over the cells along one axis, as a matrix: `(size, length)`."""
    cell, place = ops.arange(size)[:, None], ops.arange(length)[None]
    inside = ((place + 1) * size > cell * length) & (place * size < (cell + 1) * length)
    inside = ops.cast(inside, "float32")
    return ops.cast(inside / ops.sum(inside, axis=1, keepdims=True), dtype)


@register
class SequencePool(Layer):
    """The mean of the tokens, each weighted by attention that it has from one learned vector: `(B,
    N, D) -> (B, D)`, softmax(x w)^T x.

    Equations 2 and 3 of https://arxiv.org/abs/2104.05704 (compact transformers).
    """

    def build(self, input_shape: Shape) -> None:
        self.attention = self.child(
            Dense, input_shape, units=1, kernel_initializer=initial(), name="attention"
        )

    @property
    def readers(self) -> list[keras.layers.Dense]:
        """The dense layers that read the input; what reads the output is linear in it, too."""
        return [self.attention]

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor((x.shape[0], x.shape[2]), self.compute_dtype)

    def scores(self, x: Tensor) -> Tensor:
        """The weight of each token: `(B, N, D) -> (B, 1, N)`, float32; rows sum to 1."""
        x = self.attention(ops.cast(x, self.compute_dtype))
        return ops.transpose(ops.softmax(ops.cast(x, "float32"), axis=1), (0, 2, 1))

    def call(self, x: Tensor) -> Tensor:
        x, weights = ops.cast(x, "float32"), self.scores(x)
        return ops.cast(ops.squeeze(ops.matmul(weights, x), axis=1), self.compute_dtype)

"""Average pooling to a grid of given size."""

from typing import Any

from keras import ops

from keras_vit.layers.tokens import map_size
from keras_vit.types import Tensor


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

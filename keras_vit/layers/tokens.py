"""A map as tokens, row by row, and back; its size may be unknown."""

from typing import Any

from keras import ops

from keras_vit.types import Tensor


def map_size(x: Tensor) -> list[Any]:
    """(rows, columns) of a map `(B, H, W, C)`: ints where they are known, else scalar tensors."""
    return [n or m for n, m in zip(x.shape[1:3], ops.shape(x)[1:3], strict=True)]


def as_tokens(x: Tensor) -> Tensor:
    """Tokens, or a map row by row: `(B, N, C)` or `(B, H, W, C) -> (B, N, C)`."""
    if len(x.shape) == 3:
        return x
    rows, columns = map_size(x)
    return ops.reshape(x, (-1, rows * columns, x.shape[3]))


def as_map(x: Tensor, like: Tensor) -> Tensor:
    """Tokens in the shape of `like`, the reverse of `as_tokens`."""
    if len(like.shape) == 3:
        return x
    return ops.reshape(x, (-1, *map_size(like), x.shape[-1]))


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Tokens by their indices: `(B, N, D), (B, n) -> (B, n, D)`."""
    return ops.take_along_axis(x, indices[..., None], axis=1)

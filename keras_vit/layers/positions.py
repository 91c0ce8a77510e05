"""Position embeddings of a grid of patches."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.layers.base import Layer, initial, register
from keras_vit.layers.resample import BACKEND, resize_matrix
from keras_vit.types import Shape, Tensor

# The blocks have "relative" and "rotary": attention does, layers/kinds.py says which.
POSITIONS = ("learned", "learned2d", "sincos2d", "conditional", "relative", "rotary", "none")


def sincos(grid: tuple[int, int], width: int, prefix: int = 0) -> np.ndarray:
    """Fixed positions `(prefix + rows * columns, width)` float32: half of the channels for the
    column and half for the row, each sines and then cosines of frequencies 10000^(-4 k / width).

    MAE's (section 3 of https://arxiv.org/abs/2111.06377; mae/util/pos_embed.py).

    Args:
        grid: (rows, columns).
        width: number of channels.
        prefix: number of tokens before the patches; their positions are 0.

    Raises:
        ValueError: 4 does not divide the width.
    """
    if width % 4:
        raise ValueError(f"Sines and cosines need a width divisible by 4. Received: {width}")
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    rows, columns = np.meshgrid(*map(np.arange, grid), indexing="ij")
    angles = [np.outer(axis.reshape(-1), frequencies) for axis in (columns, rows)]
    parts = [f(angle) for angle in angles for f in (np.sin, np.cos)]
    table = np.concatenate(parts, axis=1).astype("float32")
    return np.pad(table, ((prefix, 0), (0, 0)))


@register
class AxialPositions(Layer):
    """Add learned positions, a part for the column and a part for the row: `(B, N, D) -> (B, N,
    D)`, N = rows * columns.

    The 2-dimensional embedding of appendix D.4 of https://arxiv.org/abs/2010.11929: a vector of D /
    2 channels for each column (X), and one for each row (Y), one after the other.

    Args:
        grid: (rows, columns).

    Call arguments:
        tokens: `(B, N, D)`.
        grid: (rows, columns) of the patches, ints or scalar tensors, to which both tables are
            resampled, bicubic and antialiased; None: `grid`.

    Raises:
        ValueError: if D is odd.
    """

    def __init__(self, grid: tuple[int, int], **kwargs: Any):
        super().__init__(**kwargs)
        self.grid = tuple(grid)

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        if width % 2:
            raise ValueError(
                "Half of the channels are for the row, half for the column: the width of the "
                f"tokens must be even. Received: {width}"
            )
        options: dict[str, Any] = {"initializer": initial()}
        self.rows = self.add_weight(shape=(self.grid[0], width // 2), name="rows", **options)
        self.columns = self.add_weight(shape=(self.grid[1], width // 2), name="columns", **options)

    def compute_output_spec(
        self, tokens: Tensor, grid: tuple[Any, Any] | None = None
    ) -> keras.KerasTensor:
        return keras.KerasTensor(tokens.shape, self.compute_dtype)

    def table(self, grid: tuple[Any, Any] | None = None) -> Tensor:
        """The positions, `(1, N, D)`."""
        count = grid or self.grid
        rows, columns = (
            resampled(ops.convert_to_tensor(part), old, new)
            for part, old, new in zip((self.rows, self.columns), self.grid, count, strict=True)
        )
        rows, columns = rows[:, None], columns[None]
        both = [columns + ops.zeros_like(rows), rows + ops.zeros_like(columns)]  # (rows, columns)
        table = ops.cast(ops.concatenate(both, axis=-1), self.compute_dtype)
        return ops.reshape(table, (1, -1, table.shape[-1]))

    def call(self, tokens: Tensor, grid: tuple[Any, Any] | None = None) -> Tensor:
        return tokens + self.table(grid)


def resampled(line: Tensor, old: int, new: Any) -> Tensor:
    """A line of positions in another length, `(old, d) -> (new, d)`, bicubic and antialiased."""
    if isinstance(new, int) and new == old:
        return line
    xp: Any = {} if isinstance(new, int) else {"xp": BACKEND, "dtype": "float32"}
    matrix = ops.convert_to_tensor(resize_matrix(old, new, **xp), "float32")
    return ops.matmul(matrix, ops.cast(line, "float32"))

"""Attention to a part of the patches: those of the row and the column, or those near by and a few
far away."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_vit.layers.base import register
from keras_vit.layers.grid import PartialAttention
from keras_vit.layers.patches import pair
from keras_vit.types import Shape, Size, Tensor


@register
class AxialAttention(PartialAttention):
    """Attention along rows and columns: `(B, prefix + N, D) -> (B, prefix + N, D)`, in O(N * (rows
    + columns)).

    The first half of the heads attends to the patches of the same row, the other half to those of
    the same column (axial attention of https://arxiv.org/abs/1912.12180, section 3, both axes in
    one layer).

    Args:
        num_heads: number of heads; must be even and divide D.
        grid and the others: as in `PartialAttention`.

    Raises:
        ValueError: if `num_heads` is odd, or there is another number of tokens.
    """

    def __init__(
        self, num_heads: int, grid: Sequence[int], num_prefix_tokens: int = 0, **kwargs: Any
    ):
        super().__init__(num_heads, grid, num_prefix_tokens, **kwargs)
        if num_heads % 2:
            raise ValueError(
                "Half of the heads attends along rows, half along columns: num_heads must be even. "
                f"Received: num_heads={num_heads}"
            )

    def allowed(self) -> np.ndarray:
        rows, columns = self.rows_and_columns()
        same = [(i[:, None] == i)[None].repeat(self.num_heads // 2, 0) for i in (rows, columns)]
        return np.concatenate(same)

    def patches(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: Sequence[Tensor], training: bool | None
    ) -> Tensor:
        both = zip(*(ops.split(t, 2, axis=1) for t in (q, k, v, *prefix)), strict=True)
        found = [
            self.along(axis, parts[:3], parts[3:], training) for axis, parts in enumerate(both)
        ]
        return ops.concatenate(found, axis=1)

    def along(
        self, axis: int, patches: Sequence[Tensor], prefix: Sequence[Tensor], training: bool | None
    ) -> Tensor:
        """The same for some heads along the rows (0) or the columns (1)."""
        (rows, columns), (heads, _, width) = self.grid, patches[0].shape[1:]
        # Heads count as pictures, so that no tensor has more than four axes.
        lines = [ops.reshape(t, (-1, rows, columns, width)) for t in patches]
        lines = [ops.transpose(t, (0, 2, 1, 3)) for t in lines] if axis else lines
        count = lines[0].shape[1]
        for i, t in enumerate(prefix, 1):  # keys and values
            ahead = ops.reshape(t, (-1, 1, self.num_prefix_tokens, width))
            ahead = ops.concatenate([ahead] * count, axis=1)
            lines[i] = ops.concatenate([ahead, lines[i]], axis=2)
        x = self.weighted(lines[0], lines[1], lines[2], training=training)
        x = ops.transpose(x, (0, 2, 1, 3)) if axis else x
        return ops.reshape(x, (-1, heads, rows * columns, width))


@register
class SparseAttention(PartialAttention):
    """Attention to patches near by and to a few far away: `(B, prefix + N, D) -> (B, prefix + N,
    D)`.

    The grid is cut into blocks. Each block attends to the blocks around it and to every so many
    patches of the whole picture: the local and the strided pattern of sparse transformers
    (https://arxiv.org/abs/1904.10509, section 4.3) by blocks, as in
    https://arxiv.org/abs/2007.14062, appendix D. Only these products are computed.

    Args:
        block: (height, width) of a block, in patches, or an int; the last ones may be smaller.
        local: how many blocks around its own, in each direction.
        stride: every `stride`-th row and column of patches is seen by all; 0: none.
        num_heads, grid and the others: as in `PartialAttention`.

    Raises:
        ValueError: if there is another number of tokens.
    """

    def __init__(
        self,
        num_heads: int,
        grid: Sequence[int],
        num_prefix_tokens: int = 0,
        block: Size = 4,
        local: int = 1,
        stride: int = 4,
        **kwargs: Any,
    ):
        super().__init__(num_heads, grid, num_prefix_tokens, **kwargs)
        self.block = pair(block)
        self.local = local
        self.stride = stride

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        members, seen = self.pattern()
        self.members, _ = padded(members)
        self.seen, self.exists = padded(seen)
        flat = [(i, place) for place, i in enumerate(self.members.ravel()) if i >= 0]
        self.places = np.array([place for _, place in sorted(flat)], "int32")

    def pattern(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The patches of each block, and those that it attends to: their numbers, row by row."""
        (rows, columns), (h, w) = self.grid, self.block
        row, column = self.rows_and_columns()
        up, left = row // h, column // w
        far = np.zeros(rows * columns, bool)
        if self.stride:
            far = (row % self.stride == 0) & (column % self.stride == 0)
        members, seen = [], []
        for i in range(up.max() + 1):
            for j in range(left.max() + 1):
                members.append(np.flatnonzero((up == i) & (left == j)))
                near = (np.abs(up - i) <= self.local) & (np.abs(left - j) <= self.local)
                seen.append(np.flatnonzero(near | far))
        return members, seen

    def allowed(self) -> np.ndarray:
        count = self.grid[0] * self.grid[1]
        found = np.zeros((1, count, count), bool)
        for block, keys in zip(*self.pattern(), strict=True):
            found[0, block[:, None], keys] = True
        return found

    def patches(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: Sequence[Tensor], training: bool | None
    ) -> Tensor:
        heads, width = q.shape[1], q.shape[3]
        blocks = len(self.members)

        def gathered(x, table):  # (B * heads, blocks, n, d)
            x = ops.take(x, np.maximum(table, 0).ravel().astype("int32"), axis=2)
            return ops.reshape(x, (-1, blocks, table.shape[1], width))

        q = gathered(q, self.members)
        k, v = (gathered(t, self.seen) for t in (k, v))
        exists = self.exists
        if prefix:
            ahead = [ops.reshape(t, (-1, 1, t.shape[2], width)) for t in prefix]
            ahead = [ops.concatenate([t] * blocks, axis=1) for t in ahead]
            k, v = (ops.concatenate(both, axis=2) for both in zip(ahead, (k, v), strict=True))
            exists = np.pad(exists, ((0, 0), (self.num_prefix_tokens, 0)), constant_values=True)
        mask = None if exists.all() else ops.convert_to_tensor(exists[None, :, None])
        x = self.weighted(q, k, v, attention_mask=mask, training=training)
        x = ops.reshape(x, (-1, heads, self.members.size, width))
        return ops.take(x, self.places, axis=2)


def padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of numbers in one array, `(rows, longest)`, -1 where a row has ended; and where it has
    not."""
    found = np.full((len(rows), max(map(len, rows))), -1)
    for line, row in zip(found, rows, strict=True):
        line[: len(row)] = row
    return found, found >= 0

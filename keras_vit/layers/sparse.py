"""Attention to a part of the patches: those of the row and the column, or those near by and a few
far away."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_vit.layers.attention import Attention, merge_heads, softmax_scores
from keras_vit.layers.base import arguments, register
from keras_vit.layers.mlp import as_matrix
from keras_vit.layers.patches import pair
from keras_vit.layers.watch import is_watched
from keras_vit.layers.windows import part
from keras_vit.types import Shape, Size, Tensor


class GridAttention(Attention):
    """Base class of attention on a grid of patches, after prefix tokens: `(B, prefix + N, D) ->
    (B, prefix + N, D)`, N = rows * columns.

    Prefix tokens attend to all tokens, and all tokens attend to them.

    Args:
        grid: (rows, columns).
        num_prefix_tokens: number of tokens before the patches.
        num_heads and the others: as in `Attention`.

    Call arguments:
        x, queries: as in `Attention`. There is no bias and no mask.
    """

    def __init__(
        self, num_heads: int, grid: Sequence[int], num_prefix_tokens: int = 0, **kwargs: Any
    ):
        super().__init__(num_heads, **kwargs)
        rows, columns = grid
        self.grid = (rows, columns)
        self.num_prefix_tokens = num_prefix_tokens

    def get_config(self) -> dict[str, Any]:
        own = arguments(Attention.__init__)
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        count = self.num_prefix_tokens + self.grid[0] * self.grid[1]
        if input_shape[1] not in (None, count):
            raise ValueError(self.wrong(input_shape[1]))

    def wrong(self, count: int) -> str:
        """What to say of another number of tokens."""
        return (
            f"{type(self).__name__} takes {self.num_prefix_tokens} prefix tokens and a grid of "
            f"{self.grid[0]} x {self.grid[1]} patches. Received: {count} tokens"
        )

    def allowed(self) -> np.ndarray:
        """Which patches see which, `(heads or 1, N, N)` bool."""
        raise NotImplementedError

    def patches(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: Sequence[Tensor], training: bool | None
    ) -> Tensor:
        """The weighted values of the patches, `(B, heads, N, d)`.

        Args:
            q, k, v: queries, keys and values of the patches, `(B, heads, N, d)`.
            prefix: keys and values of the prefix tokens, `(B, heads, prefix, d)`, if there are any.
            training: whether there is dropout.
        """
        raise NotImplementedError

    def mask(self) -> np.ndarray:
        """Which tokens see which, `(heads or 1, prefix + N, prefix + N)` bool."""
        ahead = self.num_prefix_tokens
        return np.pad(self.allowed(), ((0, 0), (ahead, 0), (ahead, 0)), constant_values=True)

    def scores(self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None) -> Tensor:
        """The attention map: `(B, prefix + N, D) -> (B, heads, prefix + N, prefix + N)`, float32; 0
        where a token does not look. Each row sums to 1."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return softmax_scores(q, k, attention_mask=ops.convert_to_tensor(self.mask()))

    def combined(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
    ) -> Tensor:
        if bias is not None or attention_mask is not None:
            raise ValueError(f"{type(self).__name__} takes no bias and no attention_mask.")
        ahead, asked = self.num_prefix_tokens, q.shape[2]
        total = ahead + self.grid[0] * self.grid[1]
        if k.shape[2] not in (None, total):
            raise ValueError(self.wrong(k.shape[2]))
        if is_watched():  # the whole map: the values are equal
            mask = ops.convert_to_tensor(self.mask()[:, :asked])
            return super().combined(q, k, v, attention_mask=mask, training=training)
        found = []
        if ahead:
            found = [self.weighted(part(q, 2, 0, min(ahead, asked)), k, v, training=training)]
        if asked > ahead:
            prefix = [part(t, 2, 0, ahead) for t in (k, v)] if ahead else []
            if asked < total:  # the patches go together
                q = ops.pad(q, ((0, 0), (0, 0), (0, total - asked), (0, 0)))
            q, k, v = (part(t, 2, ahead, total) if ahead else t for t in (q, k, v))
            values = self.patches(q, k, v, prefix, training)
            found.append(values if asked == total else part(values, 2, 0, asked - ahead))
        x = merge_heads(ops.concatenate(found, axis=2) if len(found) > 1 else found[0])
        return as_matrix(self.proj, x if self.norm is None else self.norm(x))


@register
class AxialAttention(GridAttention):
    """Attention along rows and columns: `(B, prefix + N, D) -> (B, prefix + N, D)`, in O(N * (rows
    + columns)).

    The first half of the heads attends to the patches of the same row, the other half to those of
    the same column (axial attention of https://arxiv.org/abs/1912.12180, section 3, both axes in
    one layer).

    Args:
        num_heads: number of heads; must be even and divide D.
        grid and the others: as in `GridAttention`.

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
        rows, columns = (i.ravel() for i in np.indices(self.grid))
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
class SparseAttention(GridAttention):
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
        num_heads, grid and the others: as in `GridAttention`.

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

    def get_config(self) -> dict[str, Any]:
        own = arguments(GridAttention.__init__)
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

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
        row, column = (i.ravel() for i in np.indices(self.grid))
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

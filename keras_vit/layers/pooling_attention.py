"""Attention to means of the patches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_vit.layers.attention import merge_heads, softmax_scores
from keras_vit.layers.base import register
from keras_vit.layers.grid import GridAttention, refuse
from keras_vit.layers.mlp import as_matrix
from keras_vit.layers.patches import pair
from keras_vit.layers.watch import is_watched, watched
from keras_vit.types import Size, Tensor


@register
class PoolingAttention(GridAttention):
    """Attention to a coarser grid of keys and values: `(B, prefix + N, D) -> (B, prefix + N, D)`.

    The keys and values of the patches are means over cells of the grid; prefix tokens keep theirs.
    The spatial reduction of PVT (section 3.3 of https://arxiv.org/abs/2102.12122), here by average
    pooling as in PVT v2 (section 3.1 of https://arxiv.org/abs/2106.13797), after the projection and
    around the class token as in MViT (section 3.1 of https://arxiv.org/abs/2104.11227). The
    weights are those of `Attention`.

    Args:
        ratio: (height, width) of a cell, in patches, or an int; the last ones may be smaller.
        grid, num_prefix_tokens: as in `GridAttention`.
        num_heads and the others: as in `Attention`.

    Call arguments:
        x, queries: as in `Attention`. There is no bias and no mask.

    Raises:
        ValueError: if there is another number of tokens, a bias or a mask.
    """

    def __init__(
        self,
        num_heads: int,
        grid: Sequence[int],
        num_prefix_tokens: int = 0,
        ratio: Size = 2,
        **kwargs: Any,
    ):
        super().__init__(num_heads, grid, num_prefix_tokens, **kwargs)
        self.ratio = pair(ratio)

    @property
    def coarse(self) -> tuple[int, int]:
        """(rows, columns) of the cells."""
        rows, columns = (-(-n // r) for n, r in zip(self.grid, self.ratio, strict=True))
        return rows, columns

    def sizes(self) -> np.ndarray:
        """The number of patches in each cell, `(rows, columns)` float32."""
        sizes = (
            np.minimum(np.arange(m) * r + r, n) - np.arange(m) * r
            for n, m, r in zip(self.grid, self.coarse, self.ratio, strict=True)
        )
        return np.outer(*sizes).astype("float32")

    def pooled(self, x: Tensor) -> Tensor:
        """Means over the cells: `(B, heads, prefix + N, d) -> (B, heads, prefix + M, d)`."""
        (rows, columns), (heads, _, width) = self.grid, x.shape[1:]
        *prefix, x = self.parted(x)
        x = ops.reshape(x, (-1, rows, columns, width))  # heads count as pictures
        below, right = (-n % r for n, r in zip(self.grid, self.ratio, strict=True))
        if below or right:
            x = ops.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
        x = ops.average_pool(x, self.ratio, self.ratio, data_format="channels_last")
        if below or right:  # the zeros do not count
            parts = self.ratio[0] * self.ratio[1] / self.sizes()
            x = x * ops.convert_to_tensor(parts[None, :, :, None], x.dtype)
        x = ops.reshape(x, (-1, heads, self.coarse[0] * self.coarse[1], width))
        return ops.concatenate([*prefix, x], axis=2) if prefix else x

    def over_tokens(self, scores: Tensor) -> Tensor:
        """Share the weight of a cell among its patches: `(B, heads, Q, prefix + M) -> (B, heads, Q,
        prefix + N)`."""
        ahead = np.arange(self.num_prefix_tokens)
        row, column = self.rows_and_columns() // np.array(self.ratio)[:, None]
        cell = row * self.coarse[1] + column
        index = np.concatenate([ahead, len(ahead) + cell]).astype("int32")
        part = np.concatenate([np.ones(len(ahead)), 1 / self.sizes()[row, column]])
        return ops.take(scores, index, axis=3) * ops.convert_to_tensor(part.astype("float32"))

    def scores(self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None) -> Tensor:
        """The attention map: `(B, prefix + N, D) -> (B, heads, prefix + N, prefix + N)`, float32;
        each row sums to 1. The patches of a cell have equal parts of its weight."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return self.over_tokens(softmax_scores(q, self.pooled(k)))

    def combined(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
    ) -> Tensor:
        refuse(self, bias, attention_mask)
        self.check(k.shape[2])
        k = self.pooled(k)
        if not is_watched():
            return super().combined(q, k, self.pooled(v), training=training)
        scores = watched("attention", self.over_tokens(softmax_scores(q, k)))
        x = merge_heads(ops.matmul(ops.cast(scores, v.dtype), v))
        return as_matrix(self.proj, x if self.norm is None else self.norm(x))

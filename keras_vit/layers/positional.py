"""Attention to all patches that knows how far apart two of them are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_vit.layers.attention import merge_heads, softmax_scores
from keras_vit.layers.base import initial, register
from keras_vit.layers.grid import GridAttention, refuse
from keras_vit.layers.mlp import as_matrix
from keras_vit.layers.relative import RelativeBias
from keras_vit.layers.rotary import axial_table, rotate
from keras_vit.layers.watch import watched
from keras_vit.types import Shape, Tensor


@register
class RelativePositionAttention(GridAttention):
    """Attention with a learned bias of the logits for each head and distance in rows and columns:
    `(B, prefix + N, D) -> (B, prefix + N, D)`.

    The bias of Swin (section 3.2 and equation 4 of https://arxiv.org/abs/2103.14030) over the whole
    grid, as in BEiT (https://arxiv.org/abs/2106.08254), also for prefix tokens: three more values
    of each head are the bias from a prefix token to a patch, from a patch to a prefix token, and
    between prefix tokens.

    Args:
        grid, num_prefix_tokens: as in `GridAttention`.
        num_heads and the others: as in `Attention`.

    Call arguments:
        bias: added to the layer's own.
        x, queries, attention_mask: as in `Attention`.

    Raises:
        ValueError: if there is another number of tokens.
    """

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.position = self.child(
            RelativeBias,
            shape=(),
            num_heads=self.num_heads,
            window=self.grid,
            class_token=self.num_prefix_tokens,
            name="rel_pos",
        )

    def total(self, bias: Tensor, queries: int) -> Tensor:
        """The layer's own bias and another one, `(1 or B, heads, queries, prefix + N)`, float32."""
        own = ops.cast(self.position.bias(), "float32")
        own = own if queries == self.count else own[:, :, :queries]
        return own if bias is None else own + ops.cast(bias, "float32")

    def scores(self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None) -> Tensor:
        return super().scores(x, self.total(bias, self.count), attention_mask)

    def combined(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
    ) -> Tensor:
        self.check(k.shape[2])
        return super().combined(q, k, v, self.total(bias, q.shape[2]), attention_mask, training)


@register
class RotaryPositionAttention(GridAttention):
    """Attention whose queries and keys are rotated by row and column: `(B, prefix + N, D) -> (B,
    prefix + N, D)`.

    Axial rotary positions (RoPE-Axial of https://arxiv.org/abs/2403.13298, section 3.2), as EVA-02
    has them (https://arxiv.org/abs/2303.11331), type `"cat"` of `RotaryEmbedding`: of the d / 2
    planes of a head, channels j and j + d / 2, the first half turns by the row, the other half by
    the column, with frequencies rope_temperature^(-j / (d / 4)), j = 0 ... d / 4 - 1. Prefix tokens
    are not rotated.

    Args:
        rope_temperature: the base of the frequencies.
        grid, num_prefix_tokens: as in `GridAttention`.
        num_heads and the others: as in `Attention`.

    Call arguments:
        x, queries, bias, attention_mask: as in `Attention`.

    Raises:
        ValueError: if the width of a head is not a multiple of 4, or there is another number of
            tokens.
    """

    def __init__(
        self,
        num_heads: int,
        grid: Sequence[int],
        num_prefix_tokens: int = 0,
        rope_temperature: float = 10000.0,
        **kwargs: Any,
    ):
        super().__init__(num_heads, grid, num_prefix_tokens, **kwargs)
        self.rope_temperature = rope_temperature

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        width = input_shape[-1] // self.num_heads
        self.rope = axial_table(self.grid, width, self.num_prefix_tokens, self.rope_temperature)

    def heads(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled and rotated queries, rotated keys, values: three of `(B, heads, N, D / heads)`."""
        self.check(x.shape[1])
        q, k, v = super().heads(x, queries)
        rope = ops.convert_to_tensor(self.rope, q.dtype)
        return rotate(q, rope[:, :, : q.shape[2]]), rotate(k, rope), v


@register
class ShawAttention(GridAttention):
    """Attention with learned vectors for the distances of two patches: `(B, prefix + N, D) -> (B,
    prefix + N, D)`.

    Equations 3 and 4 of https://arxiv.org/abs/1803.02155: the key and the value of patch j, as
    patch i sees them, are k_j + a^K_ij and v_j + a^V_ij. On a grid a_ij is the sum of a vector for
    the distance in rows and one for that in columns (equation 3 of
    https://arxiv.org/abs/1904.09925), each clipped to `max_distance`. The heads share the vectors.
    Prefix tokens have no distance: three more rows of both tables are for a prefix token that sees
    a patch, a patch that sees a prefix token, and prefix tokens among themselves.

    Args:
        max_distance: k in the paper: all longer distances, in rows or in columns, count as this
            one.
        relative_values: whether there are a^V.
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
        max_distance: int = 16,
        relative_values: bool = True,
        **kwargs: Any,
    ):
        super().__init__(num_heads, grid, num_prefix_tokens, **kwargs)
        self.max_distance = max_distance
        self.relative_values = relative_values

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.reach = [min(self.max_distance, n - 1) for n in self.grid]
        self.relative_keys = self.vectors("keys", input_shape[-1])
        self.relative_vals: Any = None
        if self.relative_values:
            self.relative_vals = self.vectors("values", input_shape[-1])

    def vectors(self, of: str, width: int) -> list[Any]:
        """The vectors of rows and of columns, `(2 * reach + 1, d)` each, key minus query, or three
        more, if there are prefix tokens."""
        return [
            self.add_weight(
                shape=(2 * reach + 1 + 3 * bool(self.num_prefix_tokens), width // self.num_heads),
                initializer=initial(),
                name=f"relative_{of}_{axis}",
            )
            for reach, axis in zip(self.reach, ("rows", "columns"), strict=True)
        ]

    def of_prefix(self, vectors: Sequence[Any]) -> Tensor:
        """The vectors of pairs with a prefix token, `(3, d)`."""
        rows, columns = (ops.convert_to_tensor(x)[-3:] for x in vectors)
        return ops.cast(rows + columns, self.compute_dtype)

    def of_pairs(self, vectors: Sequence[Any], axis: int) -> Tensor:
        """The vector of each query's and key's place on an axis, `(n, n, d)`."""
        place, reach = np.arange(self.grid[axis]), self.reach[axis]
        index = np.clip(place - place[:, None], -reach, reach) + reach
        found = ops.take(ops.convert_to_tensor(vectors[axis]), index.ravel().astype("int32"), 0)
        return ops.cast(ops.reshape(found, (*index.shape, -1)), self.compute_dtype)

    def logits(self, q: Tensor) -> Tensor:
        """The products of queries and a^K, `(B, heads, N, d) -> (B, heads, N, N)`."""
        (rows, columns), (heads, _, width) = self.grid, q.shape[1:]
        q = ops.reshape(q, (-1, rows, columns, width))  # heads count as pictures
        by_row = ops.matmul(q, ops.transpose(self.of_pairs(self.relative_keys, 0), (0, 2, 1)))
        q = ops.transpose(q, (0, 2, 1, 3))
        by_column = ops.matmul(q, ops.transpose(self.of_pairs(self.relative_keys, 1), (0, 2, 1)))
        by_column = ops.transpose(by_column, (0, 2, 1, 3))
        by_row = ops.reshape(by_row, (-1, rows * columns, rows, 1))
        by_column = ops.reshape(by_column, (-1, rows * columns, 1, columns))
        return ops.reshape(by_row + by_column, (-1, heads, rows * columns, rows * columns))

    def values(self, weights: Tensor) -> Tensor:
        """The weighted sums of a^V, `(B, heads, N, N) -> (B, heads, N, d)`."""
        (rows, columns), heads = self.grid, weights.shape[1]
        weights = ops.reshape(weights, (-1, rows * columns, rows, columns))
        by_row = ops.reshape(ops.sum(weights, axis=3), (-1, rows, columns, rows))
        by_column = ops.reshape(ops.sum(weights, axis=2), (-1, rows, columns, columns))
        x = ops.matmul(by_row, self.of_pairs(self.relative_vals, 0))
        by_column = ops.transpose(by_column, (0, 2, 1, 3))
        by_column = ops.matmul(by_column, self.of_pairs(self.relative_vals, 1))
        x = x + ops.transpose(by_column, (0, 2, 1, 3))
        return ops.reshape(x, (-1, heads, rows * columns, x.shape[-1]))

    def bias(self, q: Tensor) -> Tensor:
        """What a^K adds to the logits, `(B, heads, queries, prefix + N)`."""
        if not (ahead := self.num_prefix_tokens):
            return self.logits(self.full(q))[:, :, : q.shape[2]]
        asked, count = q.shape[2], self.count - ahead
        products = ops.matmul(q, ops.transpose(self.of_prefix(self.relative_keys)))
        to_patch, to_prefix, inside = ops.split(products, 3, axis=-1)
        first = [ops.repeat(x[:, :, :ahead], n, 3) for x, n in ((inside, ahead), (to_patch, count))]
        first = ops.concatenate(first, axis=3)
        if asked <= ahead:
            return first
        found = self.logits(self.parted(self.full(q))[-1])[:, :, : asked - ahead]
        found = ops.concatenate([ops.repeat(to_prefix[:, :, ahead:], ahead, 3), found], axis=3)
        return ops.concatenate([first, found], axis=2)

    def relative(self, scores: Tensor) -> Tensor:
        """What a^V adds to the weighted values: `(B, heads, queries, prefix + N) -> (B, heads,
        queries, d)`."""
        if not (ahead := self.num_prefix_tokens):
            return self.values(self.full(scores))[:, :, : scores.shape[2]]
        asked = scores.shape[2]
        to_patch, to_prefix, inside = ops.split(self.of_prefix(self.relative_vals), 3)
        tokens = ops.sum(scores[..., :ahead], axis=-1, keepdims=True)  # the weight of all of them
        patches = ops.sum(scores[:, :, :ahead, ahead:], axis=-1, keepdims=True)
        first = tokens[:, :, :ahead] * inside + patches * to_patch
        if asked <= ahead:
            return first
        found = self.values(self.parted(self.full(scores))[-1][..., ahead:])
        found = found[:, :, : asked - ahead] + tokens[:, :, ahead:] * to_prefix
        return ops.concatenate([first, found], axis=2)

    def scores(self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None) -> Tensor:
        """The attention map: `(B, prefix + N, D) -> (B, heads, prefix + N, prefix + N)`, float32;
        each row sums to 1."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return softmax_scores(q, k, self.bias(q))

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
        if not self.relative_values:
            return super().combined(q, k, v, self.bias(q), training=training)
        scores = ops.cast(watched("attention", softmax_scores(q, k, self.bias(q))), v.dtype)
        scores = self.drop(scores, training=training)
        x = merge_heads(ops.matmul(scores, v) + self.relative(scores))
        return as_matrix(self.proj, x if self.norm is None else self.norm(x))

"""Base classes of attention on a grid of patches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_vit.layers.attention import Attention, merge_heads, softmax_scores
from keras_vit.layers.base import arguments
from keras_vit.layers.mlp import as_matrix
from keras_vit.layers.watch import is_watched
from keras_vit.layers.windows import part
from keras_vit.types import Shape, Tensor


class GridAttention(Attention):
    """Base class of attention on a grid of patches, after prefix tokens: `(B, prefix + N, D) ->
    (B, prefix + N, D)`, N = rows * columns.

    Args:
        grid: (rows, columns).
        num_prefix_tokens: number of tokens before the patches.
        num_heads and the others: as in `Attention`.

    Raises:
        ValueError: if there is another number of tokens.
    """

    def __init__(
        self, num_heads: int, grid: Sequence[int], num_prefix_tokens: int = 0, **kwargs: Any
    ):
        super().__init__(num_heads, **kwargs)
        rows, columns = grid
        self.grid = (rows, columns)
        self.num_prefix_tokens = num_prefix_tokens

    def get_config(self) -> dict[str, Any]:
        # The arguments of the base classes, which are in `kwargs` of a subclass.
        own = {**arguments(Attention.__init__), **arguments(GridAttention.__init__)}
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.check(input_shape[1])

    @property
    def count(self) -> int:
        """The number of tokens, prefix + N."""
        return self.num_prefix_tokens + self.grid[0] * self.grid[1]

    def check(self, count: int | None) -> None:
        """Raise ValueError if there is another number of tokens."""
        if count not in (None, self.count):
            raise ValueError(
                f"{type(self).__name__} takes {self.num_prefix_tokens} prefix tokens and a grid of "
                f"{self.grid[0]} x {self.grid[1]} patches, all of them (patch_drop_rate=0). "
                f"Received: {count} tokens"
            )

    def rows_and_columns(self) -> np.ndarray:
        """The row and the column of each patch, `(2, N)`."""
        return np.indices(self.grid).reshape(2, -1)

    def parted(self, x: Tensor) -> list[Tensor]:
        """Prefix tokens, if there are any, and patches, of `(B, heads, prefix + N, d)`."""
        ahead = self.num_prefix_tokens
        return [part(x, 2, 0, ahead), part(x, 2, ahead, self.count)] if ahead else [x]

    def full(self, q: Tensor) -> Tensor:
        """Queries of the leading tokens with zeros for the others, `(B, heads, prefix + N, d)`."""
        missing = self.count - q.shape[2]
        return ops.pad(q, ((0, 0), (0, 0), (0, missing), (0, 0))) if missing else q


class PartialAttention(GridAttention):
    """Base class of attention to a part of the patches: `(B, prefix + N, D) -> (B, prefix + N,
    D)`.

    Prefix tokens attend to all tokens, and all tokens attend to them.

    Args:
        grid, num_prefix_tokens: as in `GridAttention`.
        num_heads and the others: as in `Attention`.

    Call arguments:
        x, queries: as in `Attention`. There is no bias and no mask.

    Raises:
        ValueError: if there is another number of tokens, a bias or a mask.
    """

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

    def prefix_bias(self) -> Tensor | None:
        """The bias of prefix tokens' logits, `(1, heads, prefix, prefix + N)`, or None."""
        return None

    def total_bias(self) -> Tensor | None:
        """The bias of all tokens' logits, `(1, heads, prefix + N, prefix + N)`, or None."""
        return None

    def whole(self, queries: int | None = None) -> dict[str, Tensor]:
        """`bias` and `attention_mask` of `Attention` for the whole map."""
        ahead, bias = self.num_prefix_tokens, self.total_bias()
        mask = np.pad(self.allowed(), ((0, 0), (ahead, 0), (ahead, 0)), constant_values=True)
        mask = ops.convert_to_tensor(mask[:, :queries])
        return {"bias": None if bias is None else bias[:, :, :queries], "attention_mask": mask}

    def scores(self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None) -> Tensor:
        """The attention map: `(B, prefix + N, D) -> (B, heads, prefix + N, prefix + N)`, float32; 0
        where a token does not look. Each row sums to 1."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return softmax_scores(q, k, **self.whole())

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
        ahead, asked = self.num_prefix_tokens, q.shape[2]
        if is_watched():  # the whole map: the values are equal
            return super().combined(q, k, v, **self.whole(asked), training=training)
        found = []
        if ahead:
            first, bias = min(ahead, asked), self.prefix_bias()
            bias = None if bias is None else bias[:, :, :first]
            found = [self.weighted(part(q, 2, 0, first), k, v, bias, training=training)]
        if asked > ahead:
            (*_, q), (*keys, k), (*vals, v) = map(self.parted, (self.full(q), k, v))
            values = self.patches(q, k, v, [*keys, *vals], training)
            found.append(values if asked == self.count else part(values, 2, 0, asked - ahead))
        x = merge_heads(ops.concatenate(found, axis=2) if len(found) > 1 else found[0])
        return as_matrix(self.proj, x if self.norm is None else self.norm(x))


def refuse(layer: Attention, bias: Tensor, attention_mask: Tensor) -> None:
    """Raise ValueError if there is a bias or a mask, for a layer that has no place for them."""
    if bias is not None or attention_mask is not None:
        raise ValueError(f"{type(layer).__name__} takes no bias and no attention_mask.")

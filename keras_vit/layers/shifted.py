"""Attention in shifted windows, for tokens with a class token."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_vit.layers.base import register
from keras_vit.layers.grid import PartialAttention
from keras_vit.layers.patches import pair
from keras_vit.layers.relative import RelativeBias
from keras_vit.layers.windows import ShiftedWindows
from keras_vit.types import Shape, Size, Tensor


@register
class ShiftedWindowAttention(PartialAttention):
    """Attention in the windows of the grid: `(B, prefix + N, D) -> (B, prefix + N, D)`.

    W-MSA and SW-MSA of Swin, section 3.2 of https://arxiv.org/abs/2103.14030, with its bias for
    each head and distance (equation 4). A window begins at row and column `shift`; the others lie
    next to it, and those at the edges of the grid are smaller. Prefix tokens, which Swin does not
    have, attend to all tokens, and all attend to them, with the biases of
    `RelativePositionAttention`.

    Args:
        window: (height, width) of a window, in patches, or an int; at most the grid.
        shift: by how many rows and columns the windows are shifted; less than `window`.
        grid, num_prefix_tokens: as in `GridAttention`.
        num_heads and the others: as in `Attention`.

    Call arguments:
        x, queries: as in `Attention`. There is no bias and no mask.

    Raises:
        ValueError: if the window is larger than the grid, the shift is not smaller than the window,
            there is another number of tokens, a bias or a mask.
    """

    def __init__(
        self,
        num_heads: int,
        grid: Sequence[int],
        num_prefix_tokens: int = 0,
        window: Size = 7,
        shift: Size = 0,
        **kwargs: Any,
    ):
        super().__init__(num_heads, grid, num_prefix_tokens, **kwargs)
        self.window = pair(window)
        self.shift = pair(shift)
        for n, w, s in zip(self.grid, self.window, self.shift, strict=True):
            if not 0 <= s < w <= n:
                raise ValueError(
                    "A window is at most as large as the grid, and the shift is smaller than the "
                    f"window. Received: grid={self.grid}, window={self.window}, shift={self.shift}"
                )

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        options = {"num_heads": self.num_heads, "window": self.window}
        options["class_token"] = self.num_prefix_tokens
        self.position = self.child(RelativeBias, shape=(), name="rel_pos", **options)
        self.windows = ShiftedWindows(self.grid, self.window, self.shift, pad_first=True)
        # (n, h * w, h * w): which tokens of a window see each other; added zeros are not seen.
        places, regions = self.windows.places(), self.windows.regions()
        self.seen = np.repeat((places >= 0)[:, None], places.shape[1], axis=1)
        if regions is not None:
            self.seen &= regions[:, :, None] == regions[:, None]

    def allowed(self) -> np.ndarray:
        window = ((self.rows_and_columns().T - self.shift) // self.window).T
        return (window[:, :, None] == window[:, None]).all(axis=0)[None]

    def prefix_bias(self) -> Tensor:
        ahead, count = self.num_prefix_tokens, self.grid[0] * self.grid[1]
        bias = self.position.bias()[:, :, :ahead]
        patches = ops.repeat(bias[..., ahead : ahead + 1], count, axis=3)
        return ops.concatenate([bias[..., :ahead], patches], axis=3)

    def total_bias(self) -> Tensor:
        reach = np.array(self.window)[:, None, None] - 1
        place = self.rows_and_columns()
        down, across = np.clip(place[:, :, None] - place[:, None], -reach, reach) + reach
        index = down * (2 * self.window[1] - 1) + across
        table = ops.take(ops.transpose(self.position.table), index.ravel().astype("int32"), axis=1)
        table = ops.reshape(table, (1, self.num_heads, *index.shape))
        if not (ahead := self.num_prefix_tokens):
            return table
        columns = ops.repeat(self.position.bias()[:, :, ahead : ahead + 1, :ahead], len(index), 2)
        rows = ops.concatenate([columns, table], axis=3)
        return ops.concatenate([self.prefix_bias(), rows], axis=2)

    def patches(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: Sequence[Tensor], training: bool | None
    ) -> Tensor:
        heads, width, count = self.num_heads, q.shape[3], len(self.seen)
        size, ahead = self.seen.shape[1], self.num_prefix_tokens

        def cut(x):  # heads count as pictures: (B, heads * windows, h * w, d)
            x = self.windows.cut(ops.reshape(x, (-1, *self.grid, width)))
            return ops.reshape(x, (-1, heads * count, size, width))

        q, k, v = cut(q), cut(k), cut(v)
        bias, seen = self.position.bias()[:, :, ahead:], self.seen
        if prefix:
            k, v = (
                ops.concatenate([repeated(tokens, count), x], axis=2)
                for tokens, x in zip(prefix, (k, v), strict=True)
            )
            seen = np.pad(seen, ((0, 0), (0, 0), (ahead, 0)), constant_values=True)
        mask = None
        if not seen.all():
            mask = ops.convert_to_tensor(np.tile(seen, (heads, 1, 1))[None])
        bias = ops.repeat(bias, count, axis=1)  # heads, and the windows of each
        bias = ops.reshape(bias, (1, heads * count, size, bias.shape[-1]))
        x = self.weighted(q, k, v, bias, mask, training)
        x = self.windows.join(ops.reshape(x, (-1, size, width)))
        return ops.reshape(x, (-1, heads, self.grid[0] * self.grid[1], width))


def repeated(x: Tensor, count: int) -> Tensor:
    """Each head's tokens for `count` windows: `(B, heads, n, d) -> (B, heads * count, n, d)`."""
    heads, size, width = x.shape[1:]
    x = ops.reshape(x, (-1, heads, 1, size * width))
    return ops.reshape(ops.concatenate([x] * count, axis=2), (-1, heads * count, size, width))

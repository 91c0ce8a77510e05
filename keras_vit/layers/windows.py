"""Windows of a feature map, as sequences of tokens, and back.

Every transpose here has rank 4, which is the most that the GPU delegate of TFLite takes. Sizes are
plain numbers; only the batch may be unknown.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from keras_vit.types import Tensor


def windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """Cut a map into adjacent windows: `(B, H, W, C) -> (B * n, h * w, C)`.

    Swin's windows (section 3.2 of https://arxiv.org/abs/2103.14030), block attention of MaxViT. The
    n windows of an image lie together, row by row; so do the tokens of a window.

    Args:
        x: the map. H and W are multiples of h and w.
        window: (h, w).
    """
    (h, w), columns, width = window, x.shape[2], x.shape[3]
    x = _swap(x, h, columns // w, w * width)
    return ops.reshape(x, (-1, h * w, width))


def from_windows(x: Tensor, window: Sequence[int], size: Sequence[int]) -> Tensor:
    """Lay windows back, the reverse of `windows`: `(B * n, h * w, C) -> (B, H, W, C)`.

    Args:
        x: the windows.
        window: (h, w).
        size: (H, W).
    """
    (rows, columns), (h, w), width = size, window, x.shape[2]
    x = _swap(x, columns // w, h, w * width)
    return ops.reshape(x, (-1, rows, columns, width))


def grids(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Cut a map into sparse grids: `(B, H, W, C) -> (B * n, h * w, C)`.

    Grid attention of MaxViT (section 3.2 of https://arxiv.org/abs/2204.01697): a sequence holds
    h * w tokens that lie H / h rows and W / w columns apart.

    Args:
        x: the map. H and W are multiples of h and w.
        grid: (h, w).
    """
    (rows, columns), (h, w), width = x.shape[1:3], grid, x.shape[3]
    x = _swap(x, h, rows // h, columns * width)
    x = _swap(x, h * w, columns // w, width)
    return ops.reshape(x, (-1, h * w, width))


def from_grids(x: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Lay grids back, the reverse of `grids`: `(B * n, h * w, C) -> (B, H, W, C)`."""
    (rows, columns), (h, w), width = size, grid, x.shape[2]
    x = _swap(x, columns // w, h * w, width)
    x = _swap(x, rows // h, h, columns * width)
    return ops.reshape(x, (-1, rows, columns, width))


def on_the_map(scores: Tensor, places: np.ndarray) -> Tensor:
    """Attention maps of windows as maps of the whole picture, 0 where two tokens share no window:
    `(B * n, heads, M, M) -> (B, heads, N, N)`.

    Args:
        scores: attention maps, the n windows of an image together.
        places: `(n, M)`, the place of each token on the picture's map, 0 ... N - 1; -1: a token
            that is none of the picture's.
    """
    (n, tokens), heads = places.shape, scores.shape[1]
    order = np.argsort(places.ravel(), kind="stable")[np.count_nonzero(places < 0) :]
    window, token = order // tokens, order % tokens  # of each place
    x = ops.transpose(ops.reshape(scores, (-1, n, heads, tokens * tokens)), (0, 2, 1, 3))
    x = ops.take(ops.reshape(x, (-1, heads, n * tokens, tokens)), order.astype("int32"), axis=2)
    x = ops.take(x, token.astype("int32"), axis=3)
    return x * ops.convert_to_tensor((window[:, None] == window).astype("float32"))


def neighbours(x: Tensor) -> Tensor:
    """Join each 2 x 2 neighbours of a map: `(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 4 * C)`.

    Columns first: the upper left, lower left, upper right, lower right (Swin's patch merging).
    Where H or W is odd, zeros are added.
    """
    rows, columns, width = x.shape[1:]
    if rows % 2 or columns % 2:
        x = ops.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)))
        rows, columns = rows + rows % 2, columns + columns % 2
    x = _swap(x, 2, columns, width)
    return ops.reshape(x, (-1, rows // 2, columns // 2, 4 * width))


def _swap(x, a, b, width):
    """`(..., a, b, width) -> (..., b, a, width)`, whatever the shape of x is."""
    if a == 1 or b == 1:  # the order of the numbers stays
        return ops.reshape(x, (-1, b, a, width))
    return ops.transpose(ops.reshape(x, (-1, a, b, width)), (0, 2, 1, 3))


def rolled(x: Tensor, shift: Sequence[int]) -> Tensor:
    """A map moved up and to the left; what leaves it comes in on the other side, as in `np.roll`.

    Slices and a concatenation, because TFLite has no operation for it.

    Args:
        x: `(B, H, W, C)`.
        shift: (rows, columns), each from minus the map's size to its size.
    """
    rows, columns = shift
    for axis, first in ((1, rows % x.shape[1]), (2, columns % x.shape[2])):
        if first:
            sides = part(x, axis, first, x.shape[axis]), part(x, axis, 0, first)
            x = ops.concatenate(sides, axis=axis)
    return x


def part(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """`x[start:stop]` along an axis of known size; TensorFlow's gradient of an index expression
    takes ten times as long."""
    first = [0] * len(x.shape)
    first[axis] = start
    shape = [-1 if size is None else size for size in x.shape]  # -1: all there are
    shape[axis] = stop - start
    return ops.slice(x, first, shape)


@dataclasses.dataclass(frozen=True)
class ShiftedWindows:
    """Windows of a map that was moved (section 3.2 of https://arxiv.org/abs/2103.14030).

    Where the windows do not divide the map, zeros are added below and on the right. A token on the
    far side of the map's edge, or in the zeros, may share a window with others.

    Attributes:
        size: (H, W) of the map.
        window: (h, w).
        shift: by how many rows and columns the map moves up and to the left.
        pad_first: whether the zeros are added before the map moves, and move along.
    """

    size: tuple[int, int]
    window: Sequence[int]
    shift: Sequence[int] = (0, 0)
    pad_first: bool = False

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros that are added."""
        rows, columns = (-n % w for n, w in zip(self.size, self.window, strict=True))
        return rows, columns

    @property
    def padded(self) -> tuple[int, int]:
        """(H, W) with the zeros."""
        rows, columns = (n + p for n, p in zip(self.size, self.padding, strict=True))
        return rows, columns

    @property
    def count(self) -> int:
        """n, the number of windows."""
        return math.prod(n // w for n, w in zip(self.padded, self.window, strict=True))

    def cut(self, x: Tensor) -> Tensor:
        """The windows of a map: `(B, H, W, C) -> (B * n, h * w, C)`."""
        if not self.pad_first:
            x = rolled(x, self.shift)
        if any(self.padding):
            x = ops.pad(x, ((0, 0), *((0, p) for p in self.padding), (0, 0)))
        if self.pad_first:
            x = rolled(x, self.shift)
        return windows(x, self.window)

    def join(self, x: Tensor) -> Tensor:
        """The map of windows, the reverse of `cut`: `(B * n, h * w, C) -> (B, H, W, C)`."""
        x = from_windows(x, self.window, self.padded)
        back = (-self.shift[0], -self.shift[1])
        if self.pad_first:
            x = rolled(x, back)
        if any(self.padding):
            for axis, size in enumerate(self.size, 1):
                x = part(x, axis, 0, size)
        return x if self.pad_first else rolled(x, back)

    def regions(self) -> np.ndarray | None:
        """The region of each token, `(n, h * w)`: tokens of different regions are not neighbours.

        None if the map did not move. The regions are those of the map with its zeros, in either
        order: where zeros are added after the move, that is not where the map was cut, in timm as
        in Microsoft's code.
        """
        if not any(self.shift):
            return None
        rows, columns = (
            np.digitize(np.arange(n), [n - w, n - s]) if s else np.zeros(n, int)
            for n, w, s in zip(self.padded, self.window, self.shift, strict=True)
        )
        return self._cut(3 * rows[:, None] + columns)

    def places(self) -> np.ndarray:
        """The index in the map of each token of the windows, `(n, h * w)`; -1: a zero."""
        x = np.arange(math.prod(self.size)).reshape(self.size)
        moves: list[Callable] = [
            lambda x: np.roll(x, (-self.shift[0], -self.shift[1]), (0, 1)),
            lambda x: np.pad(x, [(0, p) for p in self.padding], constant_values=-1),
        ]
        for move in reversed(moves) if self.pad_first else moves:
            x = move(x)
        return self._cut(x)

    def _cut(self, x):
        """The windows of an array `(H, W)`."""
        (rows, columns), (h, w) = x.shape, self.window
        return x.reshape(rows // h, h, columns // w, w).swapaxes(1, 2).reshape(-1, h * w)


def distances(window: Sequence[int]) -> np.ndarray:
    """The number of the distance between each two tokens of a window: `(h * w, h * w)`.

    Distances go from (1 - h, 1 - w) to (h - 1, w - 1), row by row; they are those of a query from a
    key.
    """
    rows, columns = (i.ravel() for i in np.indices(window))
    down, across = (i[:, None] - i[None] for i in (rows, columns))
    return (down + window[0] - 1) * (2 * window[1] - 1) + across + window[1] - 1

"""Resize and crop in one step, with the numbers of PIL's resize: by PIL itself for 8-bit pictures,
by matrix products for floats and inside TensorFlow's graphs.

PIL resamples along one axis, rounds to 8 bits, then resamples along the other. The width comes
first, unless the height shrinks by more than twice what the width does (since Pillow 13).
Coefficients are rounded to 22 bits (`src/libImaging/Resample.c`). Where that is computed exactly,
the results are equal to the bit.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from keras_vit.layers.resample import SUPPORT, Numpy, resize_matrix, tensorflow_numpy, used
from keras_vit.types import Tensor

FILTERS = {name: Image.Resampling[name.upper()] for name in SUPPORT}
ONE, COARSE = 1 << 22, 1 << 11  # PIL's coefficients are whole numbers of 1 / ONE
BLOCKS = 4  # of outputs, each with its own matrix, whose columns are the inputs that it needs
WEIGHTS = 1 << 20  # of a matrix
AREA = 1 << 24  # pixels: a resized picture that is larger than this and than before is not made
EDGE = 1 << 22  # of a picture, in pixels; PIL's coefficients for it take up to 200 MB
GRAPH_EDGE = (
    1 << 16
) - 1  # the same inside a graph, where blocks have a fixed number; JPEG's limit


@dataclasses.dataclass(frozen=True)
class View:
    """What is kept of a resized picture; all are (height, width) in pixels.

    Attributes:
        old, new: the size before and after resizing: ints, or scalar tensors inside a graph.
        starts: (top, left) of the crop in the resized picture; what lies outside is black.
        kept: the size of the crop, ints.
        interpolation: `"bicubic"`, `"bilinear"` or `"lanczos"`.
    """

    old: Sequence[Any]
    new: Sequence[Any]
    starts: Sequence[Any]
    kept: tuple[int, int]
    interpolation: str

    @property
    def known(self) -> bool:
        """Whether all sizes are ints."""
        return all(isinstance(x, int) for x in (*self.old, *self.new, *self.starts))

    @property
    def unscaled(self) -> bool:
        """Whether the crop lies in the picture as it is: nothing is resampled or padded."""
        if not self.known or tuple(self.old) != tuple(self.new):
            return False
        ends = zip(self.starts, self.kept, self.old, strict=True)
        return all(0 <= start <= size - length for start, length, size in ends)

    def crop(self, x: Tensor, xp: Numpy = np) -> Tensor:
        """The crop of unscaled images, as float32."""
        (top, left), (rows, columns) = self.starts, self.kept
        return xp.asarray(x[..., top : top + rows, left : left + columns, :], dtype="float32")

    @property
    def height_first(self) -> bool | Tensor:
        """Whether PIL resamples along the height first."""
        (height, width), (new_height, new_width) = self.old, self.new
        return (height > new_height) & (height - new_height > 2 * (width - new_width))

    def fits(self) -> bool:
        """Whether the whole resized picture is small, compared with the picture itself."""
        (height, width), (new_height, new_width) = self.old, self.new
        between = new_height * width if self.height_first else height * new_width
        largest = max(new_height * new_width, between)
        return max(*self.old, *self.new) <= EDGE and largest <= max(height * width, AREA)


def resize_picture(picture: Image.Image | np.ndarray, view: View) -> np.ndarray:
    """Resize and crop an 8-bit picture: PIL's or a uint8 array `(H, W, C)`, to uint8 `(height,
    width, C)`."""
    if not view.fits():
        (top, bottom), (left, right) = _used(view, 0, np), _used(view, 1, np)
        if isinstance(picture, Image.Image):
            picture = np.asarray(picture.crop((left, top, right, bottom)))
            picture = picture.reshape(bottom - top, right - left, -1)
        else:
            picture = picture[top:bottom, left:right]
        return resize_images(picture, view, origin=(top, left)).astype("uint8")
    size, (top, left), (rows, columns) = tuple(view.new[::-1]), view.starts, view.kept
    bands = []
    for band in _bands(picture):
        band = band if band.size == size else band.resize(size, FILTERS[view.interpolation])
        box = (left, top, left + columns, top + rows)
        band = band if box == (0, 0, *size) else band.crop(box)
        bands.append(np.asarray(band).reshape(rows, columns, -1))
    return bands[0] if len(bands) == 1 else np.concatenate(bands, axis=-1)


def _bands(picture: Image.Image | np.ndarray) -> Iterator[Image.Image]:
    """A picture in parts that PIL resizes independently: it would weight colours by alpha."""
    if isinstance(picture, Image.Image):
        yield from picture.split() if picture.mode == "RGBA" else [picture]
    elif picture.shape[-1] == 3:
        yield Image.fromarray(picture)
    else:
        for i in range(picture.shape[-1]):
            yield Image.fromarray(picture[..., i])


def resize_images(
    x: Tensor,
    view: View,
    xp: Numpy = np,
    origin: tuple[int, int] = (0, 0),
    rounded: bool = True,
) -> Tensor:
    """Resize and crop images by matrix products: `(..., H, W, C) -> (..., height, width, C)`,
    float32.

    Args:
        x: pixels in 0..255, of any dtype.
        view: what is kept.
        xp: numpy, or TensorFlow (`numpy_for`) inside a graph.
        origin: (top, left) of `x` in the picture, where it holds only what the view needs.
        rounded: whether the results are whole numbers, 8 bits, as PIL's.
    """

    def passes(first: int, second: int) -> Tensor:
        low, high = _used(view, second, xp)
        part = slice(low - origin[second], high - origin[second])
        y = x[..., part, :, :] if second == 0 else x[..., part, :]
        y = _resample(_permuted(y, (second, 2, first), xp), view, first, origin[first], xp, sums)
        y = _resample(_permuted(y, (2, 1, 0), xp), view, second, low, xp, sums)
        return _permuted(y, (2, 0, 1) if second == 0 else (0, 2, 1), xp)

    exact = xp is not np or x.dtype.kind in "iu"  # fractions have no equal in PIL
    sums = (_sums if exact else _rough_sums) if rounded else _plain_sums
    height_first = view.height_first
    if isinstance(height_first, bool):
        return passes(0, 1) if height_first else passes(1, 0)
    return xp.cond(height_first, lambda: passes(0, 1), lambda: passes(1, 0))


def _permuted(x, axes, xp):
    """The last three axes in another order."""
    before = len(x.shape) - 3
    return xp.transpose(x, (*range(before), *(before + axis for axis in axes)))


def _used(view, axis, xp):
    """The range of inputs that the crop needs; axis 0 is the height."""
    numbers = (view.old[axis], view.new[axis], view.starts[axis], view.kept[axis])
    return used(*numbers, view.interpolation, xp)


def _resample(x, view, axis, origin, xp, sums):
    """`x`, whose last axis is that of the picture from number `origin` on, resampled along it."""
    if not view.known:
        low, high = _used(view, axis, xp)
        xp.check_edge(high - low, GRAPH_EDGE)
    old, new, start = view.old[axis], view.new[axis], view.starts[axis]
    parts = []
    for begin, length in _blocks(view, axis):
        numbers = (old, new, start + begin, origin)
        if view.known:
            parts.append(_block(x, numbers, length, view.interpolation, sums, np, xp))
        else:
            function = _block_of_graphs(x.dtype, len(x.shape), length, view.interpolation, sums)
            parts.append(function(x, xp.stack([xp.asarray(n, dtype="int64") for n in numbers])))
    return parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=-1)


def _block(x, numbers, length, interpolation, sums, constants, xp):
    """`length` outputs from the inputs that they need; `constants`: numpy where sizes are known."""
    old, new, start, origin = numbers
    low, high = used(old, new, start, length, interpolation, constants)
    x = xp.asarray(x[..., low - origin : high - origin], dtype="float32")
    # PIL's coefficients `(inputs, length)`, whole numbers of 2**-22, float64.
    matrix = resize_matrix(
        old, new, start, length, interpolation, columns=(low, high), xp=constants
    )
    whole = constants.floor(constants.abs(matrix) * ONE + 0.5)
    return sums(x, constants.transpose(constants.sign(matrix) * whole / ONE), xp)


@functools.cache
def _block_of_graphs(dtype, rank, length, interpolation, sums):
    """`_block` as a TensorFlow function of (inputs, numbers). It is traced once: a graph that takes
    images of any size has dozens of blocks."""
    import tensorflow as tf  # optional: needed inside TensorFlow graphs only

    @tf.function(
        input_signature=[tf.TensorSpec([None] * rank, dtype), tf.TensorSpec([4], "int64")],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    def block(x, numbers):
        xp = tensorflow_numpy()
        return _block(x, tf.unstack(numbers), length, interpolation, sums, xp, xp)

    return block


def _blocks(view, axis):
    """(begin, length) of the outputs that are computed at once."""
    length = view.kept[axis]
    size = -(-length // BLOCKS)
    if view.known:
        step = view.old[axis] / view.new[axis]
        size = size if step > 1 else length
        # An output needs `taps` inputs, each further one `step` more.
        taps = 2 * SUPPORT[view.interpolation] * max(step, 1.0) + 1
        size = max(min(size, int((WEIGHTS / taps) ** 0.5)), 1)
    return [(begin, min(size, length - begin)) for begin in range(0, length, size)]


def _plain_sums(x, matrix, xp):
    """Not rounded."""
    return xp.tensordot(x, xp.asarray(matrix, dtype="float32"), 1)


def _rough_sums(x, matrix, xp):
    """As `_sums`, quicker, in numpy: of floats."""
    sums = np.tensordot(x, matrix.astype("float32"), 1)
    sums += 0.5
    return np.clip(np.floor(sums, out=sums), 0.0, 255.0, out=sums)


def _sums(x, matrix, xp):
    """Pixels of 8 bits, halves rounded up.

    float32 has 24 bits, a product of a pixel and a coefficient 30: coefficients are split in two.
    Sums of the coarse parts are exact, as are those of the fine parts, for up to 64 inputs, and
    beyond that unless most fine parts have the same sign.
    """
    coarse = xp.floor(matrix * COARSE + 0.5) / COARSE
    fine = xp.asarray(matrix - coarse, dtype="float32")
    coarse = xp.asarray(coarse, dtype="float32")
    # Not matmul: TensorFlow 2.21's corrupts memory where a matrix is broadcast over an axis of
    # length 1, as C of grey pictures is (https://github.com/tensorflow/tensorflow/issues/117700).
    sums = xp.tensordot(x, coarse, 1) + 0.5
    whole = xp.floor(sums)
    rest = xp.floor(sums - whole + xp.tensordot(x, fine, 1))
    return xp.clip(whole + rest, 0.0, 255.0)

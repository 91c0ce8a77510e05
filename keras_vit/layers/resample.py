"""Resampling as one matrix per axis: for pictures, position embeddings and patch kernels.

PIL and torch's `interpolate(..., antialias=True)` resample one axis at a time; each output value is
a fixed weighted sum of inputs: a matrix `(new, old)`. Building that matrix is the whole algorithm;
applying it is a matrix product, in any backend.
"""

import functools
import types
from typing import Any, TypeAlias

import numpy as np
from keras import ops

from keras_vit.types import Tensor

Numpy: TypeAlias = types.ModuleType | types.SimpleNamespace  # numpy, or its twin for tensors


def _bicubic(d, xp):  # Keys' kernel with a = -0.5: PIL's, and torch's when antialias=True
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return xp.where(d < 1.0, near, xp.where(d < 2.0, far, xp.zeros_like(d)))


def _bilinear(d, xp):
    return xp.maximum(1.0 - d, xp.zeros_like(d))


def _lanczos(d, xp):
    x = np.pi * xp.maximum(d, xp.zeros_like(d) + 1e-6)
    return xp.where(d < 3.0, 3.0 * xp.sin(x) * xp.sin(x / 3.0) / (x * x), xp.zeros_like(d))


KERNELS = {"bicubic": _bicubic, "bilinear": _bilinear, "lanczos": _lanczos}
SUPPORT = {"bicubic": 2.0, "bilinear": 1.0, "lanczos": 3.0}  # where the kernels end
RESAMPLE = {  # how a checkpoint's tables and kernels are resized: arguments of `resize_matrix`
    "bicubic": {"interpolation": "bicubic"},
    "bilinear": {"interpolation": "bilinear", "antialias": False},
    "bilinear_corners": {
        "interpolation": "bilinear",
        "antialias": False,
        "align_corners": True,
    },
}


def resize_matrix(
    old: int | Tensor,
    new: int | Tensor,
    start: int | Tensor = 0,
    length: int | None = None,
    interpolation: str = "bicubic",
    columns: tuple[int | Tensor, int | Tensor] | None = None,
    xp: Numpy = np,
    dtype: str = "float64",
    antialias: bool = True,
    align_corners: bool = False,
) -> Tensor:
    """Weights `(length, old)` that resample `old` values to `new` and keep `length` of them,
    beginning at `start`.

    Rows outside `0..new` are zero: a crop that is larger than the picture is padded with zeros.

    Args:
        old, new, start: ints, or scalar tensors of `xp`; with `align_corners` they are ints.
        length: how many values to keep; None: `new`.
        interpolation: `"bicubic"`, `"bilinear"` or `"lanczos"`.
        columns: the range of inputs that have a column; None: all. See `used`.
        xp: numpy, keras.ops (`BACKEND`) or TensorFlow (`numpy_for`).
        dtype: of the result.
        antialias: whether the kernel is widened when downsampling. Without it, "bilinear" is
            torch's `interpolate(..., antialias=False)`; torch's bicubic kernel is then another
            one (a = -0.75).
        align_corners: whether the centres of the outer values are kept, as in torch, instead of
            their outer edges.

    Raises:
        ValueError: unknown interpolation.
    """
    if interpolation not in KERNELS:
        names = ", ".join(KERNELS)
        raise ValueError(f"interpolation must be one of {names}. Received: {interpolation!r}")

    def real(x):
        return x if isinstance(x, (int, float)) else xp.asarray(x, dtype=dtype)

    step = (old - 1) / max(new - 1, 1) if align_corners else real(old) / real(new)
    stretch = _stretch(step, xp) if antialias else 1.0
    rows = xp.asarray(xp.arange(new if length is None else length), dtype=dtype) + real(start)
    inside = (rows >= 0) & (rows < real(new))
    rows = xp.minimum(xp.maximum(rows, xp.zeros_like(rows)), xp.ones_like(rows) * (real(new) - 1))
    centres = rows * step + 0.5 if align_corners else (rows + 0.5) * step
    taps = xp.asarray(xp.arange(*columns or (old,)), dtype=dtype)
    # The operations and their order are PIL's, so that its coefficients come out to the bit.
    distance = xp.abs(taps[None, :] - centres[:, None] + 0.5) * (1.0 / stretch)
    weights = KERNELS[interpolation](distance, xp)
    weights = weights / xp.sum(weights, axis=1, keepdims=True)
    return xp.where(inside[:, None], weights, xp.zeros_like(weights))


def _stretch(step, xp):
    """How much wider the kernel is when downsampling."""
    return max(step, 1.0) if isinstance(step, float) else xp.maximum(step, xp.ones_like(step))


def used(
    old: int | Tensor,
    new: int | Tensor,
    start: int | Tensor,
    length: int,
    interpolation: str,
    xp: Numpy = np,
) -> tuple[int | Tensor, int | Tensor]:
    """The range of inputs, from the first to before the last, that `resize_matrix` gives weight to
    for these outputs; arguments as there."""
    known = all(isinstance(size, int) for size in (old, new, start))
    xp = np if known else xp

    def outer(row, sign):  # PIL's bounds of a row's taps
        row = xp.clip(row, 0, new - 1)
        step = xp.asarray(old, dtype="float64") / xp.asarray(new, dtype="float64")
        reach = SUPPORT[interpolation] * xp.maximum(step, xp.ones_like(step))
        edge = (xp.asarray(row, dtype="float64") + 0.5) * step + sign * reach + 0.5
        edge = xp.asarray(xp.floor(edge), dtype="int64")
        return int(edge) if known else edge

    first, last = outer(start, -1), outer(start + length - 1, 1)
    if known:
        return max(first, 0), min(last, int(old))
    return xp.maximum(first, 0), xp.minimum(last, old)


BACKEND = types.SimpleNamespace(  # what `resize_matrix` needs of numpy, for the backend's tensors
    abs=ops.abs,
    arange=ops.arange,
    asarray=ops.cast,
    maximum=ops.maximum,
    minimum=ops.minimum,
    ones_like=ops.ones_like,
    sum=ops.sum,
    where=ops.where,
    zeros_like=ops.zeros_like,
)


def numpy_for(x: Any) -> Numpy:
    """numpy for concrete values; its twin inside a TensorFlow graph (tf.data, SavedModel)."""
    in_graph = type(x).__module__.startswith("tensorflow") and not hasattr(x, "numpy")
    return tensorflow_numpy() if in_graph else np


@functools.cache
def tensorflow_numpy() -> Numpy:
    """What resampling needs of numpy, for TensorFlow's tensors, with any Keras backend."""
    import tensorflow as tf  # optional: needed inside TensorFlow graphs only

    def check_edge(edge, largest):
        text = f"A picture's edge is longer than {largest} pixels, the limit inside a graph."
        tf.debugging.assert_less_equal(edge, tf.constant(largest, edge.dtype), message=text)

    return types.SimpleNamespace(
        abs=tf.abs,
        arange=tf.range,
        around=tf.round,
        asarray=lambda x, dtype: tf.cast(x, dtype),
        check_edge=check_edge,
        clip=tf.clip_by_value,
        cond=tf.cond,
        concatenate=tf.concat,
        floor=tf.floor,
        maximum=tf.maximum,
        minimum=tf.minimum,
        ones_like=tf.ones_like,
        shape=lambda x: tf.shape(x, tf.int64),  # products of edges
        sign=tf.sign,
        sin=tf.sin,
        stack=tf.stack,
        sum=tf.reduce_sum,
        tensordot=tf.tensordot,
        transpose=tf.transpose,
        where=tf.where,
        zeros_like=tf.zeros_like,
    )

"""Resampling as one matrix per axis: for pictures, position tables and patch kernels
alike.

Both PIL and torch's `interpolate(..., antialias=True)` resample one axis at a time, and each output
value is a fixed weighted sum of inputs: a matrix `(new, old)`. Building that matrix is the whole
algorithm; applying it is a matmul, in any backend.
"""

import functools
import types

import numpy as np
from keras import ops


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
    old,
    new,
    start=0,
    length=None,
    interpolation="bicubic",
    xp=np,
    dtype="float64",
    antialias=True,
    align_corners=False,
):
    """Weights `(length, old)` that resample `old` values to `new` and keep `length` of them from
    `start` on.

    Rows that lie outside `0..new` are zero: a crop that is larger than the picture pads with zeros.
    Without `antialias` the kernel keeps its width where values become fewer; for "bilinear" that is
    torch's `interpolate(..., antialias=False)` (its bicubic kernel is then another one: a = -0.75).
    With `align_corners` the first and the last value stay where they are, as torch's option of that
    name; without it the edges of the outer values do.
    `old`, `new` and `start` may be scalar tensors of `xp` (numpy, keras.ops or TensorFlow's numpy);
    with `align_corners` they are ints.
    """
    if interpolation not in KERNELS:
        names = ", ".join(KERNELS)
        raise ValueError(f"interpolation must be one of {names}. Received: {interpolation!r}")

    def real(x):
        return x if isinstance(x, (int, float)) else xp.asarray(x, dtype=dtype)

    if align_corners:
        step = (old - 1) / max(new - 1, 1)
    else:
        step = real(old) / real(new)
    if not antialias:
        stretch = 1.0
    elif isinstance(step, float):
        stretch = max(step, 1.0)
    else:
        stretch = xp.maximum(step, xp.ones_like(step))
    rows = xp.asarray(xp.arange(new if length is None else length), dtype=dtype) + real(start)
    places = rows * step if align_corners else (rows + 0.5) * step - 0.5
    taps = xp.asarray(xp.arange(old), dtype=dtype)
    distance = xp.abs(taps[None, :] - places[:, None]) / stretch
    weights = KERNELS[interpolation](distance, xp)
    weights = weights / xp.sum(weights, axis=1, keepdims=True)
    inside = (rows[:, None] >= 0) & (rows[:, None] < real(new))
    return xp.where(inside, weights, xp.zeros_like(weights))


BACKEND = types.SimpleNamespace(  # what `resize_matrix` asks of numpy, on tensors of the backend
    abs=ops.abs,
    arange=ops.arange,
    asarray=ops.cast,
    maximum=ops.maximum,
    ones_like=ops.ones_like,
    sum=ops.sum,
    where=ops.where,
    zeros_like=ops.zeros_like,
)


def numpy_for(x):
    """numpy for values at hand; its twin inside a TensorFlow graph (tf.data, SavedModel)."""
    in_graph = type(x).__module__.startswith("tensorflow") and not hasattr(x, "numpy")
    return _tensorflow_numpy() if in_graph else np


@functools.cache
def _tensorflow_numpy():
    """What resampling asks of numpy, on TensorFlow's tensors, with any Keras backend."""
    import tensorflow as tf  # optional: only who is in a TensorFlow graph needs it

    def swapaxes(x, a, b):
        order = list(range(len(x.shape)))
        order[a], order[b] = order[b], order[a]
        return tf.transpose(x, order)

    return types.SimpleNamespace(
        abs=tf.abs,
        arange=tf.range,
        around=tf.round,
        floor=tf.floor,
        asarray=lambda x, dtype: tf.cast(x, dtype),
        clip=tf.clip_by_value,
        concatenate=tf.concat,
        maximum=tf.maximum,
        minimum=tf.minimum,
        ones_like=tf.ones_like,
        shape=tf.shape,
        sin=tf.sin,
        sum=tf.reduce_sum,
        swapaxes=swapaxes,
        tensordot=tf.tensordot,
        where=tf.where,
        zeros_like=tf.zeros_like,
    )

"""Weights that follow from their keys and shapes, so that goldens need not hold them."""

import zlib

import numpy as np


def values(key, shape):
    """Random float32 values of a weight; numpy keeps the streams of RandomState for ever.

    Tokens are small (standard deviation near 0.05), so that the epsilon of a norm shows.
    """
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    leaf = key.replace("/", ".").rpartition(".")[2]
    if leaf in ("weight", "scale", "lambda1") and len(shape) == 1:  # a norm, a layer scale
        noise = 1.0 + 0.2 * noise
    elif len(shape) == 1 or leaf == "bias":
        noise = 0.05 * noise
    elif len(shape) == 2 or (leaf == "kernel" and len(shape) == 3):  # dense, attention of flax
        noise = 0.5 * noise / shape[0] ** 0.5
    else:
        noise = 0.005 * noise
    return np.asarray(np.round(noise * 2**16) / 2**16, "float32")


def weights(shapes):
    """All weights of a file, by its keys' shapes."""
    return {key: values(key, shape) for key, shape in shapes.items()}


def picture(size, channels=3):
    """A batch of two normalised pictures, `(2, size, size, channels)`."""
    return np.random.RandomState(size).standard_normal((2, size, size, channels)).astype("float32")

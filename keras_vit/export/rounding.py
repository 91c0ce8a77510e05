"""What int8 does to a product, computed on its calibration inputs as TFLite's kernels round."""

import dataclasses
from typing import Any

import numpy as np

from keras_vit.export.products import Product

BITS = 8


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A product in int8, in both ways.

    Attributes:
        static: with inputs and outputs of fixed ranges; its bias takes back the mean error.
        dynamic: with inputs rounded row by row, and float outputs; the same.
        excess: the error that static adds to dynamic: root mean square, as part of the outputs'
            deviation from their mean.
    """

    static: Product
    dynamic: Product
    excess: float


def measure(product: Product) -> Rounded:
    """Round a product in both ways."""
    expected = product.run(product.inputs, product.weights)
    static = _with_mean(product, _run(product, _static_inputs(product)), expected)
    dynamic = _with_mean(product, _run(product, _dynamic_inputs(product)), expected)
    outputs = _run(static, _static_inputs(product))
    low, high = product.measured[1]
    errors = (
        _error(_round(outputs, low, high), expected),
        _error(_run(dynamic, _dynamic_inputs(product)), expected),
    )
    excess = np.sqrt(max(errors[0] ** 2 - errors[1] ** 2, 0)) if np.isfinite(errors[0]) else np.inf
    return Rounded(static, dynamic, float(excess))


def input_error(product: Product) -> float:
    """The error of rounded weights, and of inputs in a fixed range."""
    expected = product.run(product.inputs, product.weights)
    return _error(_run(product, _static_inputs(product)), expected)


def _static_inputs(product: Product) -> np.ndarray:
    low, high = product.measured[0]
    return _round(product.inputs, low.min(), high.max())


def _dynamic_inputs(product: Product) -> np.ndarray:
    """Each row has its own range; before a convolution, each image."""
    x = product.inputs
    axes = tuple(range(1, x.ndim))
    return _round(x, x.min(axes, keepdims=True), x.max(axes, keepdims=True))


def _run(product: Product, inputs: np.ndarray) -> np.ndarray:
    """With weights of one scale for each output."""
    weights = product.weights
    largest = np.abs(weights).max(tuple(range(1, weights.ndim)), keepdims=True)
    scale = np.maximum(largest / (2 ** (BITS - 1) - 1), 1e-12)
    return product.run(inputs, np.round(weights / scale) * scale)


def _with_mean(product: Product, found: np.ndarray, expected: np.ndarray) -> Product:
    """The product with a bias that gives its outputs the mean that they should have."""
    axes = tuple(range(found.ndim - 1))
    moved = (expected.mean(axes) - found.mean(axes)).astype("float32")
    return dataclasses.replace(product, bias=product.bias + moved)


def _round(x: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """Numbers as int8 holds them: 256 levels, one of which is 0."""
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = np.maximum((high - low) / (2**BITS - 1), 1e-12).astype("float32")
    zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, 2**BITS - 1) - zero) * scale


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    axes = tuple(range(expected.ndim - 1))
    variance = np.square(expected - expected.mean(axes)).mean()
    error = np.square(found - expected).mean()
    return float(np.sqrt(error / variance)) if variance > 0 else np.inf

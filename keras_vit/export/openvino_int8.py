"""int8 in OpenVINO graphs: weights alone, or with activations, by NNCF."""

import logging
from typing import Any

import numpy as np

from keras_vit.export import openvino_packages
from keras_vit.export.int8 import silence

# How much of an outlier's size moves from activations into weights: of 0.5, 0.7 and NNCF's 0.95,
# a DeiT-Tiny agrees best with itself in float32 (benchmarks/openvino_int8.py).
SMOOTHING = 0.5


def round_weights(graph: Any) -> None:
    """Round the weights of dense layers and convolutions to int8, with a scale per channel.

    Args:
        graph: an `openvino.Model`, which is changed.
    """
    from openvino import opset13 as ops

    for node in graph.get_ops():
        if not _is_product(node):
            continue
        weights = node.input_value(1).get_node().data
        axes = _inner_axes(node, weights.ndim)
        scale = np.abs(weights).max(axes, keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1).astype("float32")
        rounded = ops.constant(np.round(weights / scale).astype("int8"))
        product = ops.multiply(ops.convert(rounded, "f32"), ops.constant(scale))
        node.input(1).replace_source_output(product.output(0))


def _is_product(node):
    """Whether it multiplies by constant float32 matrices or kernels."""
    if node.get_type_name() not in ("MatMul", "Convolution"):
        return False
    weights = node.input_value(1).get_node()
    constant = weights.get_type_name() == "Constant"
    return constant and weights.data.dtype == np.float32 and weights.data.ndim > 1


def _inner_axes(node, axes):
    """The axes of its weights that it sums over."""
    if node.get_type_name() == "Convolution":  # (O, I, height, width)
        return tuple(range(1, axes))
    return (axes - 1,) if node.get_attributes()["transpose_b"] else (axes - 2,)


def quantized(
    graph: Any,
    images: tuple[str, list[np.ndarray]],
    smoothing: float = SMOOTHING,
    attention: bool = False,
) -> Any:
    """A graph in int8.

    Args:
        graph: an `openvino.Model`.
        images: the input's name, and batches of calibration images as it takes them.
        smoothing: see `SMOOTHING`.
        attention: whether products of two activations are in int8, too.

    Returns:
        Another `openvino.Model`.
    """
    nncf = openvino_packages.nncf()
    from nncf.quantization import advanced_parameters as advanced

    name, batches = images
    products = [node for node in graph.get_ops() if node.get_type_name() == "MatMul"]
    left_out = [] if attention else [node for node in products if not _is_product(node)]
    ignored = nncf.IgnoredScope(names=[node.get_friendly_name() for node in left_out])
    alphas = advanced.AdvancedSmoothQuantParameters(matmul=smoothing)
    with silence():
        logging.getLogger("nncf").setLevel(logging.ERROR)
        return nncf.quantize(
            graph,
            nncf.Dataset([{name: batch} for batch in batches]),
            subset_size=len(batches),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=ignored,
            advanced_parameters=advanced.AdvancedQuantizationParameters(smooth_quant_alphas=alphas),
        )

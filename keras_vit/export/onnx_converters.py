"""A Keras model as ONNX, by the exporter of each backend."""

import logging
import pathlib
import tempfile
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.export import common, fold, onnx_products, onnx_weights

OPSET = 18  # the newest that tf2onnx writes
LACKS = "This model contains an operation that ONNX lacks, or lacks in this form: {}"
PACKAGES = {"tensorflow": "tf2onnx", "torch": "onnxscript", "jax": "jax2onnx"}  # besides onnx


def convert(whole: keras.Model, model: keras.Model, batch_size: int | None) -> Any:
    """A model as an `onnx.ModelProto`.

    Args:
        whole: the functional model to convert, with one input and one output.
        model: the model inside, without `whole`'s normalisation and softmax.
        batch_size: None: any number of images.

    Raises:
        ValueError: the model contains an operation that ONNX lacks.
    """
    import onnx

    exporters = {"tensorflow": _by_tensorflow, "torch": _by_torch, "jax": _by_keras}
    shape = (batch_size, *whole.inputs[0].shape[1:])
    with warnings.catch_warnings(action="ignore"):  # they concern the exporters' own code
        try:
            proto = exporters[keras.backend.backend()](whole, model, shape)
            onnx.checker.check_model(proto)
        except (onnx.checker.ValidationError, NotImplementedError) as error:
            raise ValueError(LACKS.format(error)) from error
    return proto


def _by_tensorflow(whole, model, shape):
    # Not whole.export(format="onnx"): it cannot pass tf2onnx a handler for erfc, which GELU needs.
    # And tf2onnx takes 50 times the memory of the weights it sees, so they are inputs here.
    import tensorflow as tf
    import tf2onnx

    images, raw = whole.inputs[0], whole.inputs[0].name == common.PIXELS
    folded, act = fold.fold(model, pixels=raw), common.activation(model)
    weights = folded.constants

    def call(x, *values):
        if raw:
            normalize = common.converter(model).normalize
            x = tf.cast(x, "float32") if folded.takes_pixels else normalize(x)
        state = [(variable, value) for (variable, _), value in zip(weights, values, strict=True)]
        with keras.StatelessScope(state_mapping=state):
            return {whole.name: common.finish(folded.model(x, training=False), whole.name, act)}

    specs = [tf.TensorSpec(shape, images.dtype, name=images.name)]
    for i, (variable, _) in enumerate(weights):
        specs.append(tf.TensorSpec(variable.shape, variable.dtype, name=f"weight_{i}"))
    log = logging.getLogger("tf2onnx")
    level, log.level = log.level, logging.CRITICAL
    try:
        proto, _ = tf2onnx.convert.from_function(
            tf.function(call, specs, autograph=False),
            specs,
            opset=OPSET,
            custom_op_handlers={"Erfc": (_erfc, [])},
        )
    finally:
        log.level = level
    onnx_weights.insert(proto, [(variable.path, value) for variable, value in weights])
    onnx_products.merge_reshapes(proto)
    return proto


def _erfc(graph, node, name, args):
    """erfc(x) = 1 - erf(x), for tf2onnx, which lacks it."""
    one = graph.make_const(f"{name}_one", np.array(1.0, "float32")).output[0]
    erf = graph.make_node("Erf", node.input[:1]).output[0]
    outputs = {"outputs": node.output, "shapes": node.output_shapes, "dtypes": node.output_dtypes}
    graph.remove_node(node.name)
    graph.make_node("Sub", [one, erf], name=node.name, **outputs)


def _by_torch(whole, model, shape):
    # Not whole.export(format="onnx"): for a dynamic batch size it uses torch's old exporter, which
    # fails at a convolution.
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = whole

        def forward(self, x):
            return self.whole(x, training=False)

    dynamic = ({0: "batch"},) if shape[0] is None else None
    x = ops.zeros((shape[0] or 2, *shape[1:]), whole.inputs[0].dtype)
    try:
        found = torch.onnx.export(
            Module().eval(), (x,), dynamo=True, dynamic_shapes=dynamic, verbose=False
        )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(LACKS.format(error.__cause__ or error)) from error
    found.optimize()
    return found.model_proto


def _by_keras(whole, model, shape):
    import onnx

    spec = keras.InputSpec(shape=shape, dtype=whole.inputs[0].dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        whole.export(path, format="onnx", verbose=False, input_signature=[spec])
        return onnx.load(path)

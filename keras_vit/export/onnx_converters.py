"""A Keras model as ONNX, by the exporter of each backend's own makers."""

import logging
import pathlib
import tempfile
import warnings

import keras
import numpy as np
from keras import ops

OPSET = 18  # the newest that tf2onnx writes
PACKAGES = {"tensorflow": "tf2onnx", "torch": "onnxscript", "jax": "jax2onnx"}  # beside onnx


def convert(whole, batch_size):
    """A functional model with one input and one output as an `onnx.ModelProto`.

    Raises:
        ValueError: it has an operation that ONNX does not.
    """
    import onnx

    exporters = {"tensorflow": _by_tensorflow, "torch": _by_torch, "jax": _by_keras}
    shape = (batch_size, *whole.inputs[0].shape[1:])
    with warnings.catch_warnings(action="ignore"):  # they speak of their own code
        try:
            proto = exporters[keras.backend.backend()](whole, shape)
            onnx.checker.check_model(proto)
        except (onnx.checker.ValidationError, NotImplementedError) as error:
            raise ValueError(
                f"This model has an operation that ONNX lacks, or lacks in this form: {error}"
            ) from error
    return proto


def _by_tensorflow(whole, shape):
    # Not whole.export(format="onnx"): it has no way to tell tf2onnx of erfc, which GELU needs.
    import tensorflow as tf
    import tf2onnx

    spec = tf.TensorSpec(shape, whole.inputs[0].dtype, name=whole.inputs[0].name)
    function = tf.function(lambda x: {whole.name: whole(x, training=False)}, [spec])
    log = logging.getLogger("tf2onnx")
    level, log.level = log.level, logging.CRITICAL
    try:
        return tf2onnx.convert.from_function(
            function, [spec], opset=OPSET, custom_op_handlers={"Erfc": (_erfc, [])}
        )[0]
    finally:
        log.level = level


def _erfc(graph, node, name, args):
    """erfc(x) = 1 - erf(x), for tf2onnx, which does not know it."""
    one = graph.make_const(f"{name}_one", np.array(1.0, "float32")).output[0]
    erf = graph.make_node("Erf", node.input[:1]).output[0]
    outputs = {"outputs": node.output, "shapes": node.output_shapes, "dtypes": node.output_dtypes}
    graph.remove_node(node.name)
    graph.make_node("Sub", [one, erf], name=node.name, **outputs)


def _by_torch(whole, shape):
    # Not whole.export(format="onnx"): with any batch size it takes torch's old exporter, which
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
    found = torch.onnx.export(
        Module().eval(), (x,), dynamo=True, dynamic_shapes=dynamic, verbose=False
    )
    found.optimize()
    return found.model_proto


def _by_keras(whole, shape):
    import onnx

    spec = keras.InputSpec(shape=shape, dtype=whole.inputs[0].dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        whole.export(path, format="onnx", verbose=False, input_signature=[spec])
        return onnx.load(path)

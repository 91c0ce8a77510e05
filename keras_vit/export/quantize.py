"""The options of quantization; float16 and int8_dynamic, by TensorFlow's converter. Static int8 has
a module of its own, `int8`."""

from typing import Any

import numpy as np

from keras_vit.export import graph, model_file

# The relative error (root mean square) of the outputs above which a file is rejected.
TOLERANCES = {None: 1e-3, "float16": 0.02, "int8_dynamic": 0.25, "int8": 0.25}
ADVICE: dict[str | None, str] = {  # what to do if a file is rejected
    "float16": ' Its weights do not fit float16: use quantize=None or "int8_dynamic".',
    "int8_dynamic": ' Its weights do not tolerate int8: use quantize="float16".',
    "int8": (
        ' Its weights do not tolerate int8, even with float activations: use quantize="float16". '
        "Or the calibration images are unlike those that it was trained on: use others."
    ),
}


def check(quantize: str | None, calibration: Any) -> None:
    """Raise an error if `quantize` is unknown, or the two do not go together."""
    if quantize not in TOLERANCES:
        names = ", ".join(map(repr, TOLERANCES))
        raise ValueError(f"quantize must be one of {names}. Received: {quantize!r}")
    if quantize != "int8":
        if calibration is not None:
            raise ValueError(
                f'calibration is for quantize="int8" only. Received: quantize={quantize!r}'
            )
        return
    if calibration is None or not len(calibration):
        raise ValueError(
            'quantize="int8" needs calibration images to measure the ranges of activations: about '
            "a hundred of your own, as paths, PIL images or arrays (calibration=...). Without "
            'images, use quantize="int8_dynamic".'
        )


def prepare(converter: Any, quantize: str | None) -> None:
    """Set the options of a `tf.lite.TFLiteConverter`."""
    import tensorflow as tf

    if quantize in ("float16", "int8_dynamic"):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]


def depthwise_in_float(content: bytes) -> bytes:
    """A dynamic int8 file whose small depthwise convolutions have float32 weights again.

    XNNPACK has no depthwise convolution of int8 weights and float activations: each would split its
    partition, and be computed by slower code. Their weights are few. Kernels of more than 25 places
    stay: in float32 those of ConvNeXt make a file 1.6 times slower on x86.
    """
    model = model_file.unpacked(content)
    tensors, kinds = model.subgraphs[0].tensors, model_file.schema().TensorType
    for operator in model.subgraphs[0].operators:
        if graph.name_of(model, operator) != "DEPTHWISE_CONV_2D":
            continue
        weights = tensors[operator.inputs[1]]
        floats = tensors[operator.inputs[0]].type == kinds.FLOAT32
        small = np.prod(weights.shape[1:3]) <= 25
        if small and floats and weights.type == kinds.INT8:
            data = np.asarray(model.buffers[weights.buffer].data, "uint8").view("int8")
            value = data.reshape(weights.shape) * np.asarray(weights.quantization.scale, "float32")
            weights.type, weights.quantization = kinds.FLOAT32, None
            model.buffers[weights.buffer].data = value.astype("float32").ravel().view("uint8")
    return model_file.packed(model, len(content))

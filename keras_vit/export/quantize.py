"""The options of quantization; float16 and int8_dynamic, by TensorFlow's converter. Static int8 has
a module of its own, `int8`."""

from typing import Any

from keras_vit.export import int8

# The relative error (root mean square) of the outputs above which a file is rejected.
TOLERANCES = {None: 1e-3, "float16": 0.02, "int8_dynamic": 0.25, "int8": 0.25}
ADVICE = {  # what to do if a file is rejected
    "float16": ' Its weights do not fit float16: use quantize=None or "int8_dynamic".',
    "int8_dynamic": ' Its weights do not tolerate int8: use quantize="float16".',
    "int8": (
        ' Its weights do not tolerate int8, even with float activations: use quantize="float16". '
        "Or the calibration images are unlike those that it was trained on: use others."
    ),
}


def check(quantize: str | None, calibration: Any) -> None:
    """Raise an error if the two do not go together, or if a package is missing."""
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
    int8.modules()


def prepare(converter: Any, quantize: str | None) -> None:
    """Set the options of a `tf.lite.TFLiteConverter`."""
    import tensorflow as tf

    if quantize in ("float16", "int8_dynamic"):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]

"""Smaller numbers in a TFLite file: float16 and int8, by TensorFlow's converter and Google's AI
Edge Quantizer."""

import contextlib
import logging
import os
import warnings

# By what part of their own size outputs may differ from the model's before a file is broken.
TOLERANCES = {None: 1e-3, "float16": 0.02, "int8_dynamic": 0.25, "int8": 0.35}

# What computes in int8, activations too. With attention's products in int8 as well, DeiT-Tiny falls
# from 105 to 80 of 125 photographs (docs/benchmarks.md); sums, norms and softmax stay in float32.
INTEGER = ("FULLY_CONNECTED", "CONV_2D")


def check(quantize, calibration):
    """Raises where the two do not go together."""
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
            'quantize="int8" needs calibration images, from which the ranges of activations are '
            "taken: about a hundred of your own, as paths, PIL images or arrays (calibration=...). "
            'Without images use quantize="int8_dynamic".'
        )
    _quantizer()


def prepare(converter, quantize):
    """Sets what TensorFlow's own converter does."""
    import tensorflow as tf

    if quantize in ("float16", "int8_dynamic"):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]


def calibrated(content, inputs):
    """A float32 file with int8 weights and int8 activations.

    Args:
        content: the bytes of a file with one signature of one input.
        inputs: (name, array) of calibration images as that input takes them.

    Returns:
        bytes.
    """
    quantizer, types = _quantizer()
    name, images = inputs
    with _silence():
        work = quantizer.Quantizer(content)
        for operation in INTEGER:
            work.add_static_config(
                regex=".*",
                operation_name=types.TFLOperationName(operation),
                activation_num_bits=8,
                weight_num_bits=8,
            )
        batches = [{name: batch} for batch in images]
        ranges = work.calibrate({"serving_default": batches})
        return bytes(work.quantize(ranges).quantized_model)


def _quantizer():
    try:
        with _silence():
            from ai_edge_quantizer import qtyping, quantizer
    except ImportError as error:
        raise ImportError(
            'quantize="int8" is the work of AI Edge Quantizer: pip install ai-edge-quantizer'
        ) from error
    return quantizer, qtyping


@contextlib.contextmanager
def _silence():
    """It prints bars and reports, and warns of itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nothing, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
                yield
    finally:
        logging.disable(level)

"""int8 weights, with int8 activations where a model tolerates them, by AI Edge Quantizer.

A static product (a dense layer or convolution) rounds its inputs and outputs to 256 levels in
ranges that are fixed at export: one outlier channel makes them coarse for all others, and an image
unlike those of the calibration is cut off. A dynamic product rounds its inputs alone, each row in
its own range. So, measured on calibration images:

- outlier channels move into the weights (`smoothing`);
- biases take back the mean of the rounding errors (`rounding`);
- products that lose more than `LIMITS` in static int8 become dynamic;
- if the whole file is still much worse than a dynamic one, so do more of them, in the end all.
"""

import contextlib
import dataclasses
import logging
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_vit.export import common, graph, model_file, rounding, runtime, smoothing
from keras_vit.export.products import Product, collect
from keras_vit.export.rounding import BITS, Rounded

WORTH = 0.8  # smoothing must bring the error below this part of it, to pay for a multiplication
LIMITS = (0.03, 0.02, 0.01)  # `Rounded.excess` of a static product; the next one if a file is bad
GOOD, RATIO = 0.1, 1.5  # a file's error is fine below that, or below that multiple of the dynamic
CHECKED = 8  # batches that a file is checked with


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Bytes of a file, and how many of its products are static, of how many."""

    content: bytes
    static: int
    products: int


def quantized(
    content: bytes, inputs: tuple[str, list[np.ndarray]], activation: str | None
) -> Quantized:
    """Quantize a float32 file.

    Args:
        content: the bytes of a file with one signature, of one input and one output.
        inputs: the input's name, and batches of calibration images as it takes them.
        activation: of the model.
    """
    model = model_file.unpacked(content)
    model_file.shorten_names(model)
    content = model_file.packed(model, len(content))
    found = collect(content, *inputs)
    factors = chosen_factors(found, smoothing.divisible(model))
    content = smoothing.insert(content, factors)
    choices = [
        rounding.measure(
            smoothing.smoothed(product, factors[product.source])
            if product.source in factors
            else product
        )
        for product in found
    ]
    checked = inputs[1][1::2][:CHECKED] or inputs[1]
    return _best(content, choices, (inputs[0], checked), activation)


def chosen_factors(found: list[Product], divisible: set[str]) -> dict[str, np.ndarray]:
    """{name of a tensor: what to divide its channels by}, where that is worth it."""
    factors = {}
    for source in {product.source for product in found} & divisible:
        readers = [product for product in found if product.source == source]
        errors = {0.0: sum(map(rounding.input_error, readers))}
        by = {}
        for strength in smoothing.STRENGTHS:
            by[strength] = smoothing.factors(readers, strength)
            after = [smoothing.smoothed(product, by[strength]) for product in readers]
            errors[strength] = sum(map(rounding.input_error, after))
        best = min(errors, key=lambda strength: errors[strength])
        if errors[best] < WORTH * errors[0.0]:
            factors[source] = by[best]
    return factors


def _best(
    content: bytes,
    choices: list[Rounded],
    inputs: tuple[str, list[np.ndarray]],
    activation: str | None,
) -> Quantized:
    """The file with the most static products that is good enough."""
    name, expected = _outputs(content, *inputs)

    def error(file: bytes) -> float:
        try:
            return common.relative_error(expected, _outputs(file, *inputs)[1], name, activation)
        except RuntimeError:  # XNNPACK refuses scales that are too far apart
            return np.inf

    dynamic = written(content, choices, [])
    allowed = max(GOOD, RATIO * error(dynamic))
    for limit in LIMITS:
        static = [choice for choice in choices if choice.excess <= limit]
        if not static:
            break
        file = written(content, choices, static)
        if error(file) <= allowed:
            return Quantized(file, len(static), len(choices))
    return Quantized(dynamic, 0, len(choices))


def _outputs(content: bytes, name: str, batches: list[np.ndarray]) -> tuple[str, np.ndarray]:
    """The name of a file's output, and its values for these inputs."""
    run = runtime.interpreter_of(content).get_signature_runner()
    (output,) = run.get_output_details()
    return output, np.concatenate([run(**{name: batch})[output] for batch in batches])


def written(content: bytes, choices: list[Rounded], static: list[Rounded]) -> bytes:
    """A float32 file in int8: the products `static` in static int8, the others in dynamic int8."""
    chosen = {choice.static.name for choice in static}
    products = [c.static if c.static.name in chosen else c.dynamic for c in choices]
    content = graph.with_biases(content, {product.name: product.bias for product in products})
    quantizer, types = modules()
    ranges = {}
    with silence():
        work = quantizer.Quantizer(content)
        for name in map(types.TFLOperationName, graph.PRODUCTS):
            work.add_dynamic_config(".*", name, BITS)
            for choice in static:
                exactly = f"^{re.escape(choice.static.name)};"
                work.add_static_config(exactly, name, BITS, BITS)
        for product in (choice.static for choice in static):
            (low, high), (lowest, highest) = product.whole
            ranges[product.source] = {"min": low.min(keepdims=True), "max": high.max(keepdims=True)}
            ranges[product.name] = {"min": lowest[None], "max": highest[None]}
        return bytes(work.quantize(ranges).quantized_model)


def modules() -> tuple[Any, Any]:
    """AI Edge Quantizer: its modules `quantizer` and `qtyping`."""
    try:
        with silence():
            from ai_edge_quantizer import qtyping, quantizer
    except ImportError as error:
        raise ImportError(
            'quantize="int8" needs AI Edge Quantizer: pip install "keras-vit-zoo[int8]"'
        ) from error
    return quantizer, qtyping


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide the progress bars, reports and warnings of a quantizer."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nothing, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
                yield
    finally:
        logging.disable(level)

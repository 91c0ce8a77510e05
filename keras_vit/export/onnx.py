"""ONNX: one file for onnxruntime and the many other programs that read the format."""

import functools
import importlib.util
import pathlib
from typing import Any

import keras

from keras_vit import atomic
from keras_vit.export import common, onnx_graph
from keras_vit.types import Path, Size


def to_onnx(
    model: keras.Model,
    path: Path,
    preprocessing: bool = True,
    input: str = "uint8",
    batch_size: int | None = None,
    image_size: Size | None = None,
) -> pathlib.Path:
    """Write a model as an ONNX file.

    It has one input and one output, with channels last:

    - with preprocessing: `images` of the model's own size, `(B, height, width, C)`, uint8 or
      floats in 0..255 -> `probabilities`, `(B, num_classes)` float32. Normalisation is inside;
      resize and crop the images beforehand, for example with
      `model.preprocessor.image_converter.pixels(images)`.
    - without: `inputs`, preprocessed floats of the same shape -> `logits`.

    A model without a head (`num_classes=0`) gives `features` in both cases. The file's metadata
    contain `preset` and `labels` as JSON: source, preprocessing values and class names.

    `pip install "keras-vit-zoo[onnx]"` installs what the TensorFlow backend needs. The torch
    backend needs onnxscript instead of tf2onnx, the JAX backend jax2onnx.

    Args:
        model: a built classifier.
        path: the file to write; an existing file is replaced once the new one is verified.
        preprocessing: whether the file takes raw pixels and returns probabilities.
        input: `"uint8"` or `"float32"`: the type of raw pixels. Without preprocessing: float32.
        batch_size: a fixed number of images; None: any number.
        image_size: int or (height, width), in pixels; None: the model's. Positions are resampled
            as `from_preset` does.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ImportError: a package is missing; the message names it.
        ValueError: an unknown option; a model that is not built, has no preprocessor or no fixed
            size, is too large, or contains an operation that ONNX lacks.
        RuntimeError: the file does not compute what the model does.
        OSError: the file cannot be written, or is a folder.
    """
    onnx_graph.check_options(input, batch_size)
    common.check_model(model, preprocessing)
    onnx_graph.check_packages()
    path = common.target_file(path)
    source = onnx_graph.source(model, preprocessing, input, batch_size, image_size)
    with atomic.replacing(path) as new:
        content = source.proto().SerializeToString()
        with common.disk_errors(f"The ONNX file {str(path)!r}"):
            new.write_bytes(content)
        load = functools.partial(_loaded, new, source.whole.inputs[0].name)
        source.verify(load, "The ONNX file")
    return path


def session(path: Path, threads: int | None = None) -> Any:
    """An onnxruntime `InferenceSession` on the CPU."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("ONNX files run in onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors only: its warnings concern the exporter
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def operations(path: Path) -> list[str] | None:
    """Names of the graph's operations, in order; None if the package onnx is not installed."""
    try:
        import onnx
    except ImportError:
        return None
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def _loaded(path, name):
    """A function of the file's input: onnxruntime; without it, the slow reference evaluator of the
    package onnx."""
    if importlib.util.find_spec("onnxruntime"):
        runner = session(path)
    else:
        from onnx.reference import ReferenceEvaluator

        runner = ReferenceEvaluator(str(path))
    return lambda images: runner.run(None, {name: images})[0]

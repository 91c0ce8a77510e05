"""ONNX: one file for onnxruntime and the many other programs that read the format."""

import importlib.util
import json
import pathlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit import atomic
from keras_vit.export import common, metadata, onnx_converters, variants
from keras_vit.types import Path, Size

TOLERANCE = 1e-3  # relative error of the outputs (root mean square)
LARGEST = 2**31  # bytes of a protocol buffer


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
    _check_options(input, batch_size)
    common.check_model(model, preprocessing)
    check_packages()
    path = common.target_file(path)
    model = variants.in_float32(variants.at_size(model, image_size))
    _check_size(model)
    dtype = input if preprocessing else "float32"
    whole = _whole(model, preprocessing, dtype)
    with atomic.replacing(path) as new:
        proto = onnx_converters.convert(whole, model, batch_size)
        _name(proto, whole)
        _describe(proto, model, preprocessing)
        with common.disk_errors(f"The ONNX file {str(path)!r}"):
            new.write_bytes(proto.SerializeToString())
        _verify(new, model, whole, batch_size)
    return path


def _check_options(input, batch_size):
    if input not in ("uint8", "float32"):
        raise ValueError(f'input must be "uint8" or "float32". Received: {input!r}')
    common.check_batch_size(batch_size)


def check_packages() -> None:
    """Raise an error if a package that writes ONNX files on this backend is missing."""
    backend, known = keras.backend.backend(), onnx_converters.PACKAGES
    if backend not in known:
        raise RuntimeError(
            f"ONNX export needs one of the backends {', '.join(known)}. Received: {backend!r}"
        )
    needed = ("onnx", known[backend])
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX export on the {backend} backend needs {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )


def _check_size(model):
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            "An ONNX file is made for one image size: pass image_size=. "
            f"Received: a model with an input of shape {model.inputs[0].shape}"
        )
    if model.count_params() * 4 >= LARGEST:
        raise ValueError(
            f"An ONNX file holds at most 2 GB. Received: {model.count_params():,} parameters of 4 "
            "bytes. Use to_saved_model."
        )


def _whole(model, preprocessing, dtype):
    """The model to convert: with normalisation and activation, and with named tensors."""
    argument = common.PIXELS if preprocessing else common.NORMALIZED
    images = keras.Input(model.inputs[0].shape[1:], dtype=dtype, name=argument)
    x = images
    if preprocessing:
        scale, offset = common.converter(model).scale_and_offset()
        x = ops.cast(images, "float32") * scale + offset
    name = common.output_name(model, preprocessing)
    x = ops.cast(model(x, training=False), "float32")
    if name == "probabilities":
        x = ops.softmax(x) if common.activation(model) == "softmax" else ops.sigmoid(x)
    return keras.Model(images, x, name=name)


def _name(proto, whole):
    """Name the input, the output and the batch axis as in the other formats."""
    graph, images = proto.graph, whole.inputs[0]
    names = {graph.input[0].name: images.name, graph.output[0].name: whole.name}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
        if not value.type.tensor_type.shape.dim[0].HasField("dim_value"):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _describe(proto, model, preprocessing):
    about = {"preset": {**metadata.about(model), "preprocessing": preprocessing}}
    about["labels"] = metadata.class_names(model)
    for key, value in about.items():
        if value:
            proto.metadata_props.add(key=key, value=json.dumps(value))


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


def _verify(path, model, whole, batch_size):
    count = common.sample_count(batch_size)
    images = common.samples(count, *whole.inputs[0].shape[1:])
    if whole.inputs[0].name == common.NORMALIZED:
        images = images.astype("float32") / 127.5 - 1
    images = images.astype(whole.inputs[0].dtype)
    batches = np.split(images, count // (batch_size or count))
    try:
        run = _runner(path).run
        found = np.concatenate([run(None, {whole.inputs[0].name: x})[0] for x in batches])
    except Exception as error:  # onnxruntime raises many classes of its own
        raise RuntimeError(f"The exported file does not run: {error}") from error
    expected = ops.convert_to_numpy(whole(images, training=False))
    what, checked = "The ONNX file", f"{count} generated test images"
    act = common.activation(model)
    difference = common.check_outputs(expected, found, whole.name, act, TOLERANCE, what, checked)
    common.log_check(what, checked, common.scale_of(whole.name), difference, TOLERANCE)


def _runner(path):
    """onnxruntime; without it, the slow reference evaluator of the package onnx."""
    if importlib.util.find_spec("onnxruntime"):
        return session(path)
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path))

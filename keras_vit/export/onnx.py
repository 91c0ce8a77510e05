"""ONNX: one file for onnxruntime and the many programs that read the format."""

import importlib.util
import json
import pathlib

import keras
from keras import ops

from keras_vit.export import common, metadata, onnx_converters, variants

TOLERANCE = 1e-3  # by what part of their own size outputs may differ from the model's
LARGEST = 2**31  # bytes of a protocol buffer


def to_onnx(model, path, preprocessing=True, input="uint8", batch_size=None, image_size=None):
    """Write a model as an ONNX file.

    It has one input and one output, with channels last:

    - with preprocessing: `images` of the model's own size, `(B, height, width, C)`, uint8 or
      floats in 0..255 -> `probabilities`, `(B, num_classes)` float32. Normalisation happens
      inside; resize and crop, where they are needed, happen before, for instance by
      `model.preprocessor.image_converter.pixels(pictures)`.
    - without: `inputs`, preprocessed floats of the same shape -> `logits`.

    A model without a head (`num_classes=0`) gives `features` in both cases. The file's metadata
    hold `preset` and `labels` as JSON: where it comes from, the numbers of its preprocessing, the
    names of its classes.

    `pip install "keras-vit-zoo[onnx]"` brings what is needed on the TensorFlow backend. On torch
    it is onnxscript instead of tf2onnx, on JAX jax2onnx.

    Args:
        model: a built classifier.
        path: the file to write; an old one is replaced once the new one is proved.
        preprocessing: whether raw pixels go in and probabilities come out.
        input: `"uint8"` or `"float32"`: the type of raw pixels. Without preprocessing: float32.
        batch_size: None: any number of images at once; or a fixed number.
        image_size: int or (height, width), in pixels; None: the model's. Positions are resampled
            as `from_preset` does.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ImportError: a package is missing; it is named.
        ValueError: an unknown option; the model is not built, has no preprocessor or fixed size,
            is too large, or has an operation that ONNX does not.
        RuntimeError: the file does not compute what the model does.
        OSError: the file cannot be written.
    """
    _check_options(input, batch_size)
    common.check_model(model, preprocessing)
    check_packages()
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Give the name of a file in it.")
    model = variants.in_float32(variants.at_size(model, image_size))
    _check_size(model)
    dtype = input if preprocessing else "float32"
    whole = _whole(model, preprocessing, dtype)
    with common.replacing(path) as new:
        proto = onnx_converters.convert(whole, model, batch_size)
        _name(proto, whole)
        _describe(proto, model, preprocessing)
        with common.disk_errors(f"The ONNX file {str(path)!r}"):
            new.write_bytes(proto.SerializeToString())
        _verify(new, whole, batch_size or 2)
    return path


def _check_options(input, batch_size):
    if input not in ("uint8", "float32"):
        raise ValueError(f'input must be "uint8" or "float32". Received: {input!r}')
    common.check_batch_size(batch_size)


def check_packages():
    """Raises where a package is missing that writes ONNX files on this backend."""
    backend, known = keras.backend.backend(), onnx_converters.PACKAGES
    if backend not in known:
        raise RuntimeError(
            f"ONNX files are made on the backends {', '.join(known)}. Received: {backend!r}"
        )
    needed = ("onnx", known[backend])
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Writing ONNX files on the {backend} backend needs {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )


def _check_size(model):
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            "An ONNX file is made for one size of images: give image_size=. "
            f"Received: a model with an input of shape {model.inputs[0].shape}"
        )
    if model.count_params() * 4 >= LARGEST:
        raise ValueError(
            f"An ONNX file holds at most 2 GB. Received: {model.count_params():,} parameters of 4 "
            "bytes. Use to_saved_model."
        )


def _whole(model, preprocessing, dtype):
    """The Keras model that the file is to be: with normalisation and softmax, its tensors named."""
    argument = common.RAW if preprocessing else common.PREPARED
    images = keras.Input(model.inputs[0].shape[1:], dtype=dtype, name=argument)
    x = images
    if preprocessing:
        scale, offset = common.converter(model).scale_and_offset()
        x = ops.cast(images, "float32") * scale + offset
    name = common.output_name(model, preprocessing)
    x = ops.cast(model(x, training=False), "float32")
    if name == "probabilities":
        x = ops.softmax(x) if x.shape[-1] > 1 else ops.sigmoid(x)
    return keras.Model(images, x, name=name)


def _name(proto, whole):
    """The input, the output and the axis of the batch as in the other formats."""
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


def session(path, threads=None):
    """onnxruntime with the file in it, on the processor."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("Running ONNX files needs onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors; what it warns of is the exporter's
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def operations(path):
    """Names of the graph's operations, in order; None where the package onnx is not installed."""
    try:
        import onnx
    except ImportError:
        return None
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def _verify(path, whole, count):
    images = common.samples(count, *whole.inputs[0].shape[1:])
    if whole.inputs[0].name == common.PREPARED:
        images = images.astype("float32") / 127.5 - 1
    images = images.astype(whole.inputs[0].dtype)
    try:
        (found,) = _runner(path).run(None, {whole.inputs[0].name: images})
    except Exception as error:  # of pybind11, and of many kinds
        raise RuntimeError(f"The file that was made does not run: {error}") from error
    expected = ops.convert_to_numpy(whole(images, training=False))
    common.check_outputs(expected, found, whole.name, TOLERANCE, "The ONNX file")


def _runner(path):
    """onnxruntime; or what the package onnx has in Python, which is slow, but sure."""
    if importlib.util.find_spec("onnxruntime"):
        return session(path)
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path))

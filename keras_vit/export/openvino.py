"""OpenVINO: a graph and its weights in two files, fast on the processors of Intel, AMD and ARM."""

import functools
import pathlib
from typing import Any

import keras

from keras_vit import atomic
from keras_vit.export import (
    calibrating,
    common,
    onnx_graph,
    openvino_int8,
    openvino_packages,
)
from keras_vit.export import quantize as quantization
from keras_vit.types import Images, Path, Size

SECTION = "keras_vit"  # of the file's rt_info
HINTS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names
ADVICE = {  # what to do if a file is rejected
    **quantization.ADVICE,
    "int8": (
        ' Its activations do not tolerate int8: use quantize="int8_dynamic". Or the calibration '
        "images are unlike those that it was trained on: use others."
    ),
}


def to_openvino(
    model: keras.Model,
    path: Path,
    quantize: str | None = None,
    preprocessing: bool = True,
    input: str = "uint8",
    batch_size: int | None = None,
    image_size: Size | None = None,
    calibration: Images | None = None,
) -> pathlib.Path:
    """Write a model as two files for OpenVINO: NAME.xml, the graph, and NAME.bin, its weights.

    It has one input and one output, with channels last:

    - with preprocessing: `images` of the model's own size, `(B, height, width, C)`, uint8 or
      floats in 0..255 -> `probabilities`, `(B, num_classes)` float32. Normalisation is inside;
      resize and crop the images beforehand, for example with
      `model.preprocessor.image_converter.pixels(images)`.
    - without: `inputs`, preprocessed floats of the same shape -> `logits`.

    A model without a head (`num_classes=0`) gives `features` in both cases. The graph's `rt_info`
    contains `preset` and `labels` in the section `keras_vit`, as JSON: source, preprocessing values
    and class names.

    bfloat16 is chosen when the file is loaded, not here: where the processor has it, OpenVINO
    computes in it by default. `INFERENCE_PRECISION_HINT="f32"` gives the model's own numbers.

    `pip install "keras-vit-zoo[openvino]"` installs what the TensorFlow backend needs; for the
    others see `to_onnx`, whose graph it is.

    Args:
        model: a built classifier.
        path: the file to write, which must end in .xml. An existing pair is replaced once the new
            one is verified.
        quantize: None: float32. `"float16"`: float16 weights, half the size. `"int8_dynamic"`:
            int8 weights, a quarter of the size; activations are quantized in each product, where
            OpenVINO can. `"int8"`: dense layers and convolutions compute in int8, with ranges
            measured on calibration images; the products of attention, sums, norms and softmax stay
            in floats. Needs the package nncf.
        preprocessing: whether the file takes raw pixels and returns probabilities.
        input: `"uint8"` or `"float32"`: the type of raw pixels. Without preprocessing: float32.
        batch_size: a fixed number of images; None: any number.
        image_size: int or (height, width), in pixels; None: the model's. Positions are resampled
            as `from_preset` does.
        calibration: for `"int8"`: about a hundred raw images of all classes, as `to_tflite` takes
            them.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ImportError: a package is missing; the message names it.
        ValueError: an unknown option, or options that do not go together; a path that does not end
            in .xml; a model that is not built, has no preprocessor or no fixed size, is too large,
            or contains an operation that ONNX or OpenVINO lacks.
        RuntimeError: the files do not compute what the model does.
        FileExistsError: there is a NAME.bin without NAME.xml, which may be anything.
        OSError: the files cannot be written, or one is a folder.
    """
    quantization.check(quantize, calibration)
    onnx_graph.check_options(input, batch_size)
    common.check_model(model, preprocessing)
    check_packages(quantize)
    path = check_path(path)
    source = onnx_graph.source(model, preprocessing, input, batch_size, image_size)
    dtype = source.whole.inputs[0].dtype
    images = calibrating.batches(source.model, calibration, preprocessing, dtype, batch_size or 1)
    with atomic.filling(path.resolve().parent) as folder:
        graph = _graph(source, quantize, images)
        new = folder / path.resolve().name
        with common.disk_errors(f"The OpenVINO file {str(path)!r}"):
            _save(graph, new, quantize)
        checked = images and calibrating.some(images[1])
        tolerance, advice = quantization.TOLERANCES[quantize], ADVICE.get(quantize, "")
        load = functools.partial(_loaded, new, source.whole.inputs[0].name)
        source.verify(load, "The OpenVINO file", checked, tolerance, advice)
    return path


def check_packages(quantize: str | None = None) -> None:
    """Raise an error if a package that writes OpenVINO files is missing."""
    openvino_packages.openvino()
    onnx_graph.check_packages()
    if quantize == "int8":
        openvino_packages.nncf()


def check_path(path: Path) -> pathlib.Path:
    """The path of a pair of files to write; an error if it cannot be."""
    path = common.target_file(path)
    if path.suffix != ".xml":
        raise ValueError(f"An OpenVINO file must end in .xml. Received: {str(path)!r}")
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write to.")
    weights = common.target_file(weights_of(path))
    if weights.exists() and not path.exists():
        raise FileExistsError(
            f"{str(weights)!r} would be overwritten: OpenVINO keeps the weights of {path.name!r} "
            "there. Give another name, or remove that file."
        )
    return path


def weights_of(path: pathlib.Path) -> pathlib.Path:
    """The file of weights beside a graph; links to the graph are followed."""
    return path.resolve().with_suffix(".bin")


def read(path: pathlib.Path) -> Any:
    """The `openvino.Model` of a file.

    Raises:
        RuntimeError: it is not valid.
    """
    with open(path, "rb") as file:
        if b"<net" not in file.read(1000):  # OpenVINO would print what all its readers say
            raise RuntimeError("there is no <net> in it")
    return openvino_packages.openvino().Core().read_model(path)


def compiled(graph: Any, threads: int | None = None, precision: str = "float32") -> Any:
    """An `openvino.CompiledModel` on the CPU, for single batches.

    Args:
        graph: an `openvino.Model`.
        threads: None: OpenVINO's choice.
        precision: `"float32"` or `"bfloat16"`, in which to compute what is not int8.

    Raises:
        ValueError: another precision, or one that this processor lacks.
    """
    core = openvino_packages.openvino().Core()
    if precision not in HINTS:
        raise ValueError(f'precision must be "float32" or "bfloat16". Received: {precision!r}')
    if precision == "bfloat16" and "BF16" not in core.get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        raise ValueError('This processor has no bfloat16: use precision="float32".')
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
    return core.compile_model(graph, "CPU", {**options, "INFERENCE_NUM_THREADS": threads or 0})


def _graph(source, quantize, images):
    """The `openvino.Model`, with its metadata."""
    content = source.proto().SerializeToString()
    try:
        graph = openvino_packages.openvino().Core().read_model(content, b"")
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot read this model's ONNX graph: {error}") from error
    if quantize == "int8_dynamic":
        openvino_int8.round_weights(graph)
    if quantize == "int8":
        graph = openvino_int8.quantized(graph, images)
    for key, value in source.about(quantize=quantize).items():
        graph.set_rt_info(value, [SECTION, key])
    return graph


def _save(graph, path, quantize):
    try:
        openvino_packages.openvino().save_model(graph, path, compress_to_fp16=quantize == "float16")
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _loaded(path, name):
    request = compiled(read(path)).create_infer_request()
    return lambda images: request.infer({name: images}).to_tuple()[0]

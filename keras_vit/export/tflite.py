"""TFLite (LiteRT): one static graph of built-in operations, for phones and small computers."""

import contextlib
import io
import pathlib
import tempfile

import keras
import numpy as np

from keras_vit import atomic, weights
from keras_vit.export import calibrating, common, fold, int8, metadata, variants
from keras_vit.export import quantize as quantization
from keras_vit.export.quantize import TOLERANCES
from keras_vit.export.runtime import interpreter, operations
from keras_vit.types import Images, Path, Size

LARGEST = 2**31  # bytes in one flatbuffer


def to_tflite(
    model: keras.Model,
    path: Path,
    quantize: str | None = None,
    preprocessing: bool = True,
    input: str = "uint8",
    batch_size: int = 1,
    image_size: Size | None = None,
    calibration: Images | None = None,
    gpu: bool = False,
) -> pathlib.Path:
    """Write a model as a TFLite file.

    The graph has static shapes and built-in operations only, so it needs no Flex delegate, and
    XNNPACK runs it as a single partition. Its signature has one input and one output:

    - with preprocessing: `images` of the model's own size, `(batch_size, height, width, C)`, uint8
      or floats in 0..255 -> `probabilities`, `(batch_size, num_classes)` float32. Normalisation is
      inside; resize and crop the images beforehand, for example with
      `model.preprocessor.image_converter.pixels(images)`.
    - without: `inputs`, preprocessed floats of the same shape -> `logits`.

    A model without a head (`num_classes=0`) gives `features` in both cases. The file's metadata
    contain class names, preprocessing values and the preset's name
    (`keras_vit.export.metadata.read_metadata`).

    Args:
        model: a built classifier, on the TensorFlow backend.
        path: the file to write; an existing file is replaced once the new one is verified.
        quantize: None: float32. `"float16"`: float16 weights, half the size. `"int8_dynamic"`:
            int8 weights, a quarter of the size; activations are float32 between operations.
            `"int8"`: dense layers and the patch projection compute in int8, activations too, with
            ranges measured on calibration images; the products of attention, sums, norms and
            softmax stay in float32.
        preprocessing: whether the file takes raw pixels and returns probabilities.
        input: `"uint8"` or `"float32"`: the type of raw pixels. Without preprocessing: float32.
        batch_size: the fixed number of images; 1 has the lowest latency.
        image_size: int or (height, width), in pixels; None: the model's. Positions are resampled
            as `from_preset` does.
        calibration: for `"int8"`: about a hundred raw images of all classes, as `model.predict`
            takes them, with `preprocessing=False`, too; for a model without a preprocessor: its
            inputs, `(N, H, W, C)`.
        gpu: whether the graph must suit TFLite's GPU delegate: float tensors with at most four
            axes. Needs `input="float32"` and float32 or float16 weights.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: an unknown option, or options that do not go together; no calibration images;
            a model that is not built, has no preprocessor or no fixed size, is too large, or
            contains an operation that TFLite (or its GPU delegate) lacks.
        ImportError: `"int8"` without the package ai-edge-quantizer.
        RuntimeError: another backend; or the file does not compute what the model does.
        OSError: the file cannot be written, or is a folder.
    """
    _check_options(quantize, preprocessing, input, batch_size, calibration, gpu)
    common.check_exportable(model, preprocessing)
    path = common.target_file(path)
    with atomic.replacing(path) as new:
        model = variants.in_float32(variants.at_size(model, image_size))
        _check_model(model)
        dtype = input if preprocessing else "float32"
        images = calibrating.batches(model, calibration, preprocessing, dtype, batch_size)
        content = _convert(model, quantize, preprocessing, dtype, batch_size)
        if quantize == "int8_dynamic":
            content = quantization.depthwise_in_float(content)
        if images is not None:
            content = _int8(content, images, common.activation(model))
        content = metadata.add_metadata(content, model, preprocessing, quantize)
        with common.disk_errors(f"The TFLite file {str(path)!r}"):
            new.write_bytes(content)
        _check_operations(new, gpu)
        _verify(new, model, quantize, images)
    return path


def _check_options(quantize, preprocessing, input, batch_size, calibration, gpu):
    quantization.check(quantize, calibration)
    if quantize == "int8":
        int8.modules()
    if input not in ("uint8", "float32"):
        raise ValueError(f'input must be "uint8" or "float32". Received: {input!r}')
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            "batch_size must be a positive whole number: a TFLite file has static shapes. "
            f"Received: {batch_size!r}"
        )
    if gpu and (quantize in ("int8", "int8_dynamic") or (preprocessing and input == "uint8")):
        raise ValueError(
            'A GPU computes in floats: gpu=True needs input="float32" and quantize=None or '
            f'"float16". Received: input={input!r}, quantize={quantize!r}'
        )


def _check_model(model):
    weights.check_float(model, "TFLite")
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            "A TFLite file has static shapes: the model needs a fixed image size. Pass "
            f"image_size=. Received: an input of shape {model.inputs[0].shape}"
        )
    if model.count_params() * 4 >= LARGEST:
        raise ValueError(
            "TFLite export takes models of at most 2 GB of weights. Received: "
            f"{model.count_params():,} parameters of 4 bytes. Use to_saved_model."
        )


def _int8(content, images, activation):
    """The file in int8, its activations, too, where the model tolerates that."""
    found = int8.quantized(content, images, activation)
    common.log.info(
        "%d of %d matrix products compute in static int8, the others in dynamic int8.",
        found.static,
        found.products,
    )
    if not found.static:
        common.log.warning(
            "No layer of this model tolerates int8 activations in fixed ranges: the file computes "
            'as one of quantize="int8_dynamic" does.'
        )
    return found.content


def _convert(model, quantize, preprocessing, dtype, batch_size):
    """The bytes of the file."""
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    name, act = common.output_name(model, preprocessing), common.activation(model)
    folded = fold.fold(model, pixels=preprocessing)
    # Constants of the graph: what depends on weights alone is computed now, not at run time.
    constants = [(variable, tf.constant(value)) for variable, value in folded.constants]

    def call(x):
        if preprocessing:
            normalize = common.converter(model).normalize
            x = tf.cast(x, "float32") if folded.takes_pixels else normalize(x)
        with keras.StatelessScope(state_mapping=constants):
            return {name: common.finish(folded.model(x, training=False), name, act)}

    argument = common.PIXELS if preprocessing else common.NORMALIZED
    spec = tf.TensorSpec((batch_size, *model.inputs[0].shape[1:]), dtype, name=argument)
    module = tf.Module()
    module.call = tf.function(call, autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.call.get_concrete_function(spec)], module
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    quantization.prepare(converter, quantize)
    try:
        return converter.convert()
    except ConverterError as error:
        raise ValueError(
            f"This model contains an operation that TFLite lacks, or lacks in this form: {error}"
        ) from error


def _check_operations(path, gpu):
    """Raise an error if the file cannot run as intended."""
    loaded = interpreter(path)
    unknown = sorted({name for name in operations(loaded) if not _is_builtin(name)})
    if unknown:
        raise ValueError(f"This model needs an operation that TFLite lacks: {', '.join(unknown)}")
    if not loaded.get_signature_list():  # the converter's fallback, which loses the names
        raise OSError(
            "The converter could not write its temporary files: is there space for the model in "
            f"{tempfile.gettempdir()!r}?"
        )
    if gpu:
        _check_gpu(path, loaded)


def _verify(path, model, quantize, calibration):
    """Raise an error if the file's outputs are not the model's."""
    run = interpreter(path).get_signature_runner()
    ((argument, details),) = run.get_input_details().items()
    size, *shape = details["shape"]
    if calibration is None:
        images = common.samples(common.sample_count(size), *shape)
        kind = "generated test images"
        images = images if argument == common.PIXELS else images.astype("float32") / 127.5 - 1
    else:
        images, kind = calibrating.some(calibration[1]), "calibration images"
    inputs = common.converter(model).normalize(images) if argument == common.PIXELS else images
    (name,) = run.get_output_details()
    batches = np.split(images.astype(details["dtype"]), len(images) // size)
    found = np.concatenate([run(**{argument: batch})[name] for batch in batches])
    what, checked, tolerance = "The TFLite file", f"{len(images)} {kind}", TOLERANCES[quantize]
    act = common.activation(model)
    expected = common.finish(model(inputs, training=False), name, act).numpy()
    advice = quantization.ADVICE.get(quantize, "")
    error = common.check_outputs(expected, found, name, act, tolerance, what, checked, advice)
    common.log_check(what, checked, common.scale_of(name), error, tolerance)


def _is_builtin(name):
    from tensorflow.lite.python.schema_py_generated import BuiltinOperator

    return hasattr(BuiltinOperator, name) and name != "CUSTOM"


def _check_gpu(path, loaded):
    """Raise an error if the GPU delegate cannot run the file: because of tensors with more than
    four axes, or of what TensorFlow's analyzer reports, which does not count axes."""
    import tensorflow as tf

    names = [t["name"] for t in loaded.get_tensor_details() if len(t["shape"]) > 4]
    if names:
        raise ValueError(
            "TFLite's GPU delegate cannot run this model: it takes tensors of at most four axes. "
            f"Received: {', '.join(names[:5])}"
        )
    with contextlib.redirect_stdout(io.StringIO()) as report:
        tf.lite.experimental.Analyzer.analyze(model_path=str(path), gpu_compatibility=True)
    lines = [line.strip() for line in report.getvalue().splitlines() if "GPU COMPAT" in line]
    if lines:
        raise ValueError(f"TFLite's GPU delegate cannot run this model: {' '.join(lines)}")

"""TFLite (LiteRT): one static graph of built-in operations, for phones and small computers."""

import contextlib
import io
import pathlib
import tempfile
import warnings

import keras
import numpy as np

from keras_vit import weights
from keras_vit.export import common, compact, fold, metadata, variants
from keras_vit.export import quantize as quantization
from keras_vit.layers import frozen

LARGEST = 2**31  # bytes in one flatbuffer


def to_tflite(
    model,
    path,
    quantize=None,
    preprocessing=True,
    input="uint8",
    batch_size=1,
    image_size=None,
    calibration=None,
    gpu=False,
):
    """Write a model as a TFLite file.

    The graph has static shapes and built-in operations only, so it needs no Flex delegate, and
    XNNPACK runs it as one piece. Its signature has one input and one output:

    - with preprocessing: `images` of the model's own size, `(batch_size, height, width, C)`, uint8
      or floats in 0..255 -> `probabilities`, `(batch_size, num_classes)` float32. Normalisation
      happens inside; resize and crop, where they are needed, happen before, for instance by
      `model.preprocessor.image_converter.pixels(pictures)`.
    - without: `inputs`, preprocessed floats of the same shape -> `logits`.

    A model without a head (`num_classes=0`) gives `features` in both cases. Names of the classes,
    the numbers of the preprocessing and the preset's name lie in the file's metadata
    (`keras_vit.export.metadata.read`).

    Args:
        model: a built classifier, on the TensorFlow backend.
        path: the file to write; an old one is replaced once the new one is proved.
        quantize: None: float32. `"float16"`: float16 weights, half of the size. `"int8_dynamic"`:
            int8 weights, a quarter of the size; activations are float32 between operations.
            `"int8"`: dense layers and patches compute in int8, activations too, in ranges that
            calibration images show; attention's products, sums, norms and softmax in float32.
        preprocessing: whether raw pixels go in and probabilities come out.
        input: `"uint8"` or `"float32"`: the type of raw pixels. Without preprocessing: float32.
        batch_size: images at once; the fewer, the sooner each is done.
        image_size: int or (height, width), in pixels; None: the model's. Positions are resampled
            as `from_preset` does.
        calibration: for `"int8"`: about a hundred images, as `model.predict` takes them; for a
            model without a preprocessor: its inputs, `(N, H, W, C)`.
        gpu: whether the graph must suit TFLite's GPU delegate: tensors of at most four axes, none
            of them integers. With `input="float32"`, and float32 or float16 weights.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: an unknown option, or options that do not go together; no calibration images;
            the model is not built, has no preprocessor or fixed size, is too large, or has an
            operation that TFLite (or its GPU delegate) does not.
        ImportError: `"int8"` without the package ai-edge-quantizer.
        RuntimeError: another backend; or the file does not compute what the model does.
        OSError: the file cannot be written.
    """
    _check_options(quantize, preprocessing, input, batch_size, calibration, gpu)
    common.check_exportable(model, preprocessing)
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Give the name of a file in it.")
    with common.replacing(path) as new:
        model = variants.in_float32(variants.at_size(model, image_size))
        _check_model(model)
        dtype = input if preprocessing else "float32"
        images = _calibration(model, calibration, preprocessing, dtype, batch_size)
        content = _convert(model, quantize, preprocessing, dtype, batch_size)
        if quantize == "int8":
            content = quantization.calibrated(content, images)
        content = metadata.write(compact.compact(content), model, preprocessing, quantize)
        with common.disk_errors(f"The TFLite file {str(path)!r}"):
            new.write_bytes(content)
        _verify(new, model, quantization.TOLERANCES[quantize], images, gpu)
    return path


def _check_options(quantize, preprocessing, input, batch_size, calibration, gpu):
    quantization.check(quantize, calibration)
    if input not in ("uint8", "float32"):
        raise ValueError(f'input must be "uint8" or "float32". Received: {input!r}')
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            "batch_size must be a whole number from 1 on: a TFLite file has static shapes. "
            f"Received: {batch_size!r}"
        )
    if gpu and (quantize in ("int8", "int8_dynamic") or (preprocessing and input == "uint8")):
        raise ValueError(
            'A GPU computes in floats: gpu=True goes with input="float32" and quantize=None or '
            f'"float16". Received: input={input!r}, quantize={quantize!r}'
        )


def _check_model(model):
    weights.check_float(model, "TFLite")
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            "A TFLite file has static shapes: the model needs a fixed image size. Give "
            f"image_size=. Received: an input of shape {model.inputs[0].shape}"
        )
    if model.count_params() * 4 >= LARGEST:
        raise ValueError(
            "A TFLite file is made from at most 2 GB of weights. Received: "
            f"{model.count_params():,} parameters of 4 bytes. Use to_saved_model."
        )


def _calibration(model, images, preprocessing, dtype, batch_size):
    """(the input's name, batches as the file's input takes them), None where there are none."""
    if images is None:
        return None
    converter = common.converter(model)
    if converter is not None:
        images = converter.pixels(images)
        images = images if preprocessing else converter.normalize(images)
    images = np.asarray(images, dtype)
    if images.ndim != 4 or images.shape[1:] != tuple(model.inputs[0].shape[1:]):
        raise ValueError(
            f"calibration must hold images of shape {model.inputs[0].shape[1:]}. "
            f"Received: an array of shape {images.shape}"
        )
    images = images[np.arange(-(-len(images) // batch_size) * batch_size) % len(images)]
    name = common.RAW if preprocessing else common.PREPARED
    return name, np.split(images, len(images) // batch_size)


def _convert(model, quantize, preprocessing, dtype, batch_size):
    """The bytes of the file."""
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    name = common.output_name(model, preprocessing)
    folded = fold.Fold(model, pixels=preprocessing)
    # As constants of the graph: what depends on weights alone is computed now, not at run time.
    constants = [(variable, tf.constant(value)) for variable, value in folded.constants()]

    def call(x):
        if preprocessing:
            normalize = common.converter(model).normalize
            x = tf.cast(x, "float32") if folded.takes_pixels else normalize(x)
        with frozen.freeze(folded.frozen), keras.StatelessScope(state_mapping=constants):
            return {name: common.finish(model(x, training=False), name)}

    argument = common.RAW if preprocessing else common.PREPARED
    spec = tf.TensorSpec((batch_size, *model.inputs[0].shape[1:]), dtype, name=argument)
    module = tf.Module()
    module.call = tf.function(call)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.call.get_concrete_function(spec)], module
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    quantization.prepare(converter, quantize)
    try:
        return converter.convert()
    except ConverterError as error:
        raise ValueError(
            f"This model has an operation that TFLite lacks, or lacks in this form: {error}"
        ) from error


def interpreter(path, threads=None):
    """TensorFlow's interpreter with the file in it, ready to run."""
    import tensorflow as tf

    with warnings.catch_warnings():
        # It points to another package, whose interpreter is the same.
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
        loaded = tf.lite.Interpreter(model_path=str(path), num_threads=threads)
    loaded.allocate_tensors()
    return loaded


def operations(loaded):
    """Names of the graph's operations, in order; what stands for delegated ones is left out."""
    names = [details["op_name"] for details in loaded._get_ops_details()]
    return [name for name in names if name != "DELEGATE"]


def partitions(loaded):
    """How many pieces of the graph a delegate took over; 1 is best."""
    return [d["op_name"] for d in loaded._get_ops_details()].count("DELEGATE")


def _verify(path, model, tolerance, calibration, gpu):
    loaded = interpreter(path)
    foreign = sorted({name for name in operations(loaded) if not _is_builtin(name)})
    if foreign:
        raise ValueError(f"TFLite has no operation {', '.join(foreign)}; this model needs it.")
    if not loaded.get_signature_list():  # the converter went another way, and lost the names
        raise OSError(
            "The converter could not write its temporary files: is there room for the model in "
            f"{tempfile.gettempdir()!r}?"
        )
    if gpu:
        _check_gpu(path, loaded)
    run = loaded.get_signature_runner()
    ((argument, details),) = run.get_input_details().items()
    images = common.samples(*details["shape"]) if calibration is None else calibration[1][0]
    if argument == common.RAW:
        inputs = common.converter(model).normalize(images)
    else:
        inputs = images = images if calibration else images.astype("float32") / 127.5 - 1
    ((name, found),) = run(**{argument: images.astype(details["dtype"])}).items()
    expected = common.finish(model(inputs, training=False), name).numpy()
    common.check_outputs(expected, found, name, tolerance, "The TFLite file")


def _is_builtin(name):
    from tensorflow.lite.python.schema_py_generated import BuiltinOperator

    return hasattr(BuiltinOperator, name) and name != "CUSTOM"


def _check_gpu(path, loaded):
    """Raises at what the GPU delegate cannot run: more than four axes, or by TensorFlow's analyzer,
    which does not count them."""
    import tensorflow as tf

    names = [t["name"] for t in loaded.get_tensor_details() if len(t["shape"]) > 4]
    if names:
        raise ValueError(
            "TFLite's GPU delegate does not run this model: it takes tensors of at most four axes. "
            f"Received: {', '.join(names[:5])}"
        )
    with contextlib.redirect_stdout(io.StringIO()) as report:
        tf.lite.experimental.Analyzer.analyze(model_path=str(path), gpu_compatibility=True)
    lines = [line.strip() for line in report.getvalue().splitlines() if "GPU COMPAT" in line]
    if lines:
        raise ValueError(f"TFLite's GPU delegate does not run this model: {' '.join(lines)}")

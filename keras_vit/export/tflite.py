"""TFLite (LiteRT): one static graph of built-in operations, for phones and small computers."""

import pathlib
import tempfile
import warnings

import keras

from keras_vit.export import common

# By what part of their own size outputs may differ from the model's before a file is broken.
TOLERANCES = {None: 1e-3, "int8_dynamic": 0.25}
LARGEST = 2**31  # bytes in one flatbuffer


def to_tflite(model, path, quantize=None, preprocessing=True, input="uint8", batch_size=1):
    """Write a model as a TFLite file.

    The graph has static shapes and built-in operations only, so it needs no Flex delegate, and
    XNNPACK runs it as one piece. Its signature has one input and one output:

    - with preprocessing: `images` of the model's own size, `(batch_size, height, width, C)`, uint8
      or floats in 0..255 -> `probabilities`, `(batch_size, num_classes)` float32. Normalisation
      happens inside; resize and crop, where they are needed, happen before, for instance by
      `model.preprocessor.image_converter.pixels(pictures)`.
    - without: `inputs`, preprocessed floats of the same shape -> `logits`.

    A model without a head (`num_classes=0`) gives `features` in both cases.

    Args:
        model: a built classifier, on the TensorFlow backend.
        path: the file to write; an old one is replaced once the new one is proved.
        quantize: None: float32; `"int8_dynamic"`: int8 weights, a quarter of the size;
            activations are float32 between operations.
        preprocessing: whether raw pixels go in and probabilities come out.
        input: `"uint8"` or `"float32"`: the type of raw pixels. Without preprocessing: float32.
        batch_size: images at once; the fewer, the sooner each is done.

    Returns:
        The path, a `pathlib.Path`.

    Raises:
        ValueError: an unknown option; the model is not built, has no preprocessor or fixed size,
            is too large, or has an operation that TFLite does not.
        RuntimeError: another backend; or the file does not compute what the model does.
        OSError: the file cannot be written.
    """
    _check_options(quantize, input, batch_size)
    common.check_exportable(model, preprocessing)
    _check_model(model)
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Give the name of a file in it.")
    with common.replacing(path) as new:
        model = in_float32(model)
        dtype = input if preprocessing else "float32"
        content = _convert(model, quantize, preprocessing, dtype, batch_size)
        with common.disk_errors(f"The TFLite file {str(path)!r}"):
            new.write_bytes(content)
        _verify(new, model, TOLERANCES[quantize])
    return path


def _check_options(quantize, input, batch_size):
    if quantize not in TOLERANCES:
        raise ValueError(
            f"quantize must be one of {', '.join(map(repr, TOLERANCES))}. Received: {quantize!r}"
        )
    if input not in ("uint8", "float32"):
        raise ValueError(f'input must be "uint8" or "float32". Received: {input!r}')
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            "batch_size must be a whole number from 1 on: a TFLite file has static shapes. "
            f"Received: {batch_size!r}"
        )


def _check_model(model):
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            "A TFLite file has static shapes: the model needs a fixed image size. "
            f"Received: an input of shape {model.inputs[0].shape}"
        )
    if model.count_params() * 4 >= LARGEST:
        raise ValueError(
            "A TFLite file is made from at most 2 GB of weights. Received: "
            f"{model.count_params():,} parameters of 4 bytes. Use to_saved_model."
        )


def in_float32(model):
    """The model itself, or a copy that computes in float32: TFLite has no bfloat16."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model
    if not hasattr(model, "backbone"):
        raise ValueError(
            f"TFLite computes in float32. Received: a model of dtype {model.dtype_policy.name!r}. "
            'Build it with dtype="float32" and copy the weights.'
        )
    config = {**model.get_config(), "dtype": "float32"}
    config["backbone"]["config"]["dtype"] = "float32"
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def _convert(model, quantize, preprocessing, dtype, batch_size):
    """The bytes of the file."""
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    name = common.output_name(model, preprocessing)
    # As constants of the graph: what depends on weights alone is computed now, not at run time.
    weights = [(variable, tf.constant(variable.numpy())) for variable in model.variables]

    def call(x):
        x = common.converter(model).normalize(x) if preprocessing else x
        with keras.StatelessScope(state_mapping=weights):
            return {name: common.finish(model(x, training=False), name)}

    argument = common.RAW if preprocessing else common.PREPARED
    spec = tf.TensorSpec((batch_size, *model.inputs[0].shape[1:]), dtype, name=argument)
    module = tf.Module()
    module.call = tf.function(call)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.call.get_concrete_function(spec)], module
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if quantize == "int8_dynamic" else []
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


def _verify(path, model, tolerance):
    loaded = interpreter(path)
    foreign = sorted({name for name in operations(loaded) if not _is_builtin(name)})
    if foreign:
        raise ValueError(f"TFLite has no operation {', '.join(foreign)}; this model needs it.")
    if not loaded.get_signature_list():  # the converter went another way, and lost the names
        raise OSError(
            "The converter could not write its temporary files: is there room for the model in "
            f"{tempfile.gettempdir()!r}?"
        )
    run = loaded.get_signature_runner()
    ((argument, details),) = run.get_input_details().items()
    images = common.samples(*details["shape"])
    if argument == common.RAW:
        inputs = common.converter(model).normalize(images)
    else:
        inputs = images = images.astype("float32") / 127.5 - 1
    ((name, found),) = run(**{argument: images.astype(details["dtype"])}).items()
    expected = common.finish(model(inputs, training=False), name).numpy()
    common.check_outputs(expected, found, name, tolerance, "The TFLite file")


def _is_builtin(name):
    from tensorflow.lite.python.schema_py_generated import BuiltinOperator

    return hasattr(BuiltinOperator, name) and name != "CUSTOM"

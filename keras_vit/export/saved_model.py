"""SavedModel: for TensorFlow Serving, and for programs that have TensorFlow alone."""

import pathlib

from keras_vit.export import common

# By what part of their own size outputs may differ from the model's before a file is broken: a
# pixel between two levels may be rounded either way, and so may most sums in half precision.
TOLERANCE, HALF_TOLERANCE = 0.02, 0.25


def to_saved_model(model, directory, preprocessing=True, batch_size=None):
    """Write a model as a SavedModel.

    `tf.saved_model.load(directory)` gives an object that is called with images and has the
    signature `serving_default`; both return a dict with one entry:

    - with preprocessing: `images`, uint8 or floats in 0..255 (the signature: uint8), of any size,
      `(B, height, width, C)` -> `probabilities`, `(B, num_classes)` float32. Resize, crop and
      normalisation are those of `model.preprocessor`.
    - without: `inputs`, preprocessed floats `(B, height, width, C)` -> `logits`.

    A model without a head (`num_classes=0`) gives `features` in both cases.

    Args:
        model: a built classifier, on the TensorFlow backend.
        directory: where to write; a SavedModel that lies there is replaced by the proved one.
        preprocessing: whether raw images go in and probabilities come out.
        batch_size: None: any number of images at once; or a fixed number.

    Returns:
        The directory, a `pathlib.Path`.

    Raises:
        ValueError: the model is not built or has no preprocessor; the directory holds other files.
        RuntimeError: another backend; or the file does not compute what the model does.
        OSError: the directory cannot be written.
    """
    common.check_exportable(model, preprocessing)
    directory = pathlib.Path(directory)
    if directory.exists() and not _replaceable(directory):
        raise ValueError(
            f"{str(directory)!r} exists and is no SavedModel: it is left alone. "
            "Choose another directory."
        )
    import tensorflow as tf

    with common.replacing(directory) as new:
        module = _module(model, preprocessing, batch_size)
        with common.disk_errors(f"The SavedModel {str(directory)!r}"):
            tf.saved_model.save(module, str(new), signatures=module.traces[0])
        _verify(new, model, preprocessing, batch_size or 2)
    return directory


def _replaceable(directory):
    return directory.is_dir() and (
        (directory / "saved_model.pb").exists() or not any(directory.iterdir())
    )


def _module(model, preprocessing, batch_size):
    """A `tf.Module` that holds the variables and the traced functions, and nothing of Keras."""
    import tensorflow as tf

    name = common.output_name(model, preprocessing)
    height, width, channels = model.inputs[0].shape[1:]

    def call(x):
        x = common.converter(model)(x) if preprocessing else x
        return {name: common.finish(model(x, training=False), name)}

    if preprocessing:
        specs = [((batch_size, None, None, channels), dtype) for dtype in ("uint8", "float32")]
    else:
        specs = [((batch_size, height, width, channels), "float32")]
    argument = common.RAW if preprocessing else common.PREPARED
    module = tf.Module()
    module.__call__ = tf.function(call)
    module.traces = [
        module.__call__.get_concrete_function(tf.TensorSpec(shape, dtype, name=argument))
        for shape, dtype in specs
    ]
    module.weights = list(module.traces[0].variables)
    return module


def _verify(directory, model, preprocessing, count):
    import tensorflow as tf

    name = common.output_name(model, preprocessing)
    height, width, channels = model.inputs[0].shape[1:]
    if preprocessing:  # of another size than the model's
        images = common.samples(count, height + height // 3, width + 7, channels)
        inputs = common.converter(model)(images)
    else:
        inputs = images = (
            common.samples(count, height, width, channels).astype("float32") / 127.5 - 1
        )
    found = tf.saved_model.load(str(directory))(tf.constant(images))[name].numpy()
    expected = common.finish(model(inputs, training=False), name).numpy()
    single = all(layer.compute_dtype == "float32" for layer in model.layers)
    tolerance = TOLERANCE if single else HALF_TOLERANCE
    common.check_outputs(expected, found, name, tolerance, "The SavedModel")

"""What all exports share: what a file computes, how it is put in place, proof that it works."""

import contextlib
import os
import pathlib
import shutil
import tempfile

import keras
import numpy as np

RAW = "images"  # the name of an input that takes pixels in 0..255
PREPARED = "inputs"  # of one that takes what `model.preprocessor` gives
INPUTS = (RAW, PREPARED)
OUTPUTS = ("probabilities", "logits", "features")


def check_exportable(model, preprocessing):
    """Raises where this model cannot be exported in this process."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "SavedModel and TFLite files are made by TensorFlow. Received: the Keras backend "
            f"{keras.backend.backend()!r}. Do it in a process with KERAS_BACKEND=tensorflow; a "
            "model that you trained goes there by model.save_to_preset(folder). ONNX files are "
            "made here, too."
        )
    check_model(model, preprocessing)


def check_model(model, preprocessing):
    """Raises where no file can be made of this model."""
    if not isinstance(model, keras.Model) or not model.built or len(model.inputs) != 1:
        raise ValueError(
            "A built Keras model with one input of images is needed, for instance from "
            f"keras_vit.from_preset. Received: {model!r}"
        )
    if preprocessing and converter(model) is None:
        raise ValueError(
            "This model has no preprocessor, so that raw images mean nothing to it. Give it one "
            "(keras_vit.images.ImagePreprocessor), or export it with preprocessing=False."
        )


def check_batch_size(batch_size):
    """Raises where it is neither a number of images nor None, which is any."""
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"batch_size must be a whole number from 1 on, or None. Received: {batch_size!r}"
        )


def converter(model):
    """The model's image converter, None where it has none."""
    return getattr(getattr(model, "preprocessor", None), "image_converter", None)


def input_shape(model):
    """(height, width, C) of an image for the bare model; one of them where it takes any size."""
    height, width, channels = model.inputs[0].shape[1:]
    if None not in (height, width):
        return height, width, channels
    if converter(model) is not None:
        return *converter(model).image_size, channels
    backbone = getattr(model, "backbone", None)
    if not hasattr(backbone, "grid_size"):
        return 224, 224, channels
    stride = backbone.stride(backbone.options)
    return *(count * stride for count in backbone.grid_size), channels


def output_name(model, preprocessing):
    """What the file gives: `"probabilities"`, `"logits"` or `"features"`."""
    if not getattr(model, "num_classes", None):
        return "features"
    return "probabilities" if preprocessing else "logits"


def finish(outputs, name):
    """The model's output as the file gives it; in TensorFlow, inside or outside a graph."""
    import tensorflow as tf

    outputs = tf.cast(outputs, "float32")
    if name != "probabilities":
        return outputs
    # the softmax of a single logit is 1, whatever the image
    return tf.nn.softmax(outputs) if outputs.shape[-1] > 1 else tf.nn.sigmoid(outputs)


@contextlib.contextmanager
def replacing(path):
    """A path to write to, which takes the place of `path` at the end and vanishes if that fails.

    Raises:
        OSError: the folder does not exist or cannot be written to, the disk is full.
    """
    path = pathlib.Path(path).resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write into.")
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = folder / "new", folder / "old"
    try:
        yield new
        if path.is_dir():  # a rename does not replace a folder
            os.rename(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(what):
    """A full or closed disk, which TensorFlow tells in its own errors, as an OSError."""
    import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise OSError(f"{what} could not be written: {error}") from error


def samples(count, height, width, channels):
    """Coloured squares with some noise, always the same: uint8 `(count, height, width, C)`."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 4, 4, channels)).astype("float32")
    rows, columns = (np.arange(size) * 4 // size for size in (height, width))
    fine = random.normal(0.0, 16.0, (count, height, width, channels))
    return np.clip(coarse[:, rows][:, :, columns] + fine, 0, 255).astype("uint8")


def check_outputs(expected, found, name, tolerance, what):
    """Raises where a file's outputs differ from the model's by more than that part of them."""
    if not np.isfinite(expected).all():
        raise ValueError("The model gives NaN or infinity: its weights are broken, or too large.")
    if found.shape != expected.shape or not np.isfinite(found).all():
        error = np.inf
    else:
        expected, found = (centred(x, name) for x in (expected, found))
        scale = np.sqrt(np.mean(np.square(expected))) + 1e-6
        error = np.sqrt(np.mean(np.square(found - expected))) / scale
    if error > tolerance:
        raise RuntimeError(
            f"{what} does not compute what the model does: on test images its outputs differ by "
            f"{error:.2g} of their own size (root mean square), {tolerance:.2g} is allowed. "
            "Nothing was written."
        )


def centred(x, name):
    """Outputs on the scale of logits, whose common offset is free where they are classes."""
    x = np.asarray(x, "float64")
    if name == "probabilities":
        x = np.log(np.clip(x, 1e-12, None))
    return x if name == "features" or x.shape[-1] == 1 else x - x.mean(-1, keepdims=True)

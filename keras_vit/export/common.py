"""What all formats share: checks of the model, the outputs of a file, and their verification."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_vit.images import ImageConverter
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Path, Tensor

PIXELS = "images"  # the name of an input that takes pixels in 0..255
NORMALIZED = "inputs"  # the name of an input that takes the output of `model.preprocessor`
INPUTS = (PIXELS, NORMALIZED)
OUTPUTS = ("probabilities", "logits", "features")
# With int8 activations, noise of 1e-7 in a DeiT-Tiny's input changes its logits by 0.03.
INT8_TOLERANCE = 0.1
GENERATED = 4  # images that a file is checked on, at least, if there are none for calibration
log = logging.getLogger("keras_vit.export")


def check_exportable(model: keras.Model, preprocessing: bool) -> None:
    """Raise an error if this model cannot be exported in this process."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "SavedModel and TFLite export need TensorFlow. Received: the Keras backend "
            f"{keras.backend.backend()!r}. Export in a process with KERAS_BACKEND=tensorflow: save "
            "a model that you trained with model.save_to_preset(folder) and load it there. ONNX "
            "export works on this backend, too."
        )
    check_model(model, preprocessing)


def check_model(model: keras.Model, preprocessing: bool) -> None:
    """Raise an error if this model cannot be exported."""
    if not isinstance(model, keras.Model) or not model.built or len(model.inputs) != 1:
        raise ValueError(
            "Export needs a built Keras model with one input of images, for example one from "
            f"keras_vit.from_preset. Received: {model!r}"
        )
    if preprocessing and converter(model) is None:
        raise ValueError(
            "This model has no preprocessor, so it cannot take raw images. Give it one "
            "(keras_vit.images.ImagePreprocessor), or export it with preprocessing=False."
        )


def check_batch_size(batch_size: int | None) -> None:
    """Raise an error if it is neither a number of images nor None (any number)."""
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"batch_size must be a positive whole number, or None. Received: {batch_size!r}"
        )


def converter(model: keras.Model) -> ImageConverter | None:
    """The model's image converter, None where it has none."""
    own = isinstance(model, ImageClassifier) and model.preprocessor is not None
    return model.preprocessor.image_converter if own else None


def input_shape(model: keras.Model) -> tuple[int, int, int]:
    """(height, width, C) of an image for the bare model; an example where it takes any size."""
    height, width, channels = model.inputs[0].shape[1:]
    if None not in (height, width):
        return height, width, channels
    images = converter(model)
    if images is not None:
        return *images.image_size, channels
    size = model.backbone.example_size if isinstance(model, ImageClassifier) else (224, 224)
    return *size, channels


def output_name(model: keras.Model, preprocessing: bool) -> str:
    """The name of the file's output: `"probabilities"`, `"logits"` or `"features"`."""
    if not isinstance(model, ImageClassifier) or not model.num_classes:
        return "features"
    return "probabilities" if preprocessing and model.activation else "logits"


def activation(model: keras.Model) -> str | None:
    """What makes predictions of the model's outputs, see `ImageClassifier`."""
    return model.activation if isinstance(model, ImageClassifier) else None


def finish(outputs: Tensor, name: str, activation: str | None) -> Tensor:
    """The model's output as the file returns it, in TensorFlow, inside a graph or eagerly.

    Args:
        outputs: of the model.
        name: of the file's output, see `output_name`.
        activation: of the model.
    """
    import tensorflow as tf

    outputs = tf.cast(outputs, "float32")
    if name != "probabilities" or activation is None:
        return outputs
    return tf.nn.softmax(outputs) if activation == "softmax" else tf.nn.sigmoid(outputs)


def target_file(path: Path) -> pathlib.Path:
    """The path of a file to write.

    Raises:
        IsADirectoryError: it is a folder.
        ValueError: it is a device, a named pipe or something else that must not be replaced.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder. Give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{str(path)!r} is not a regular file, so it is not replaced.")
    return path


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn TensorFlow's own errors about a full or read-only disk into an OSError."""
    import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise OSError(f"{what} could not be written: {error}") from error


def sample_count(batch_size: int | None) -> int:
    """How many generated images a file is checked on: a few, in whole batches."""
    size = batch_size or GENERATED
    return -(-GENERATED // size) * size


def samples(count: int, height: int, width: int, channels: int) -> np.ndarray:
    """Noisy coloured squares, the same in every call: uint8 `(count, height, width, C)`."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 4, 4, channels)).astype("float32")
    rows, columns = (np.arange(size) * 4 // size for size in (height, width))
    fine = random.normal(0.0, 16.0, (count, height, width, channels))
    return np.clip(coarse[:, rows][:, :, columns] + fine, 0, 255).astype("uint8")


def check_outputs(
    expected: np.ndarray,
    found: np.ndarray,
    name: str,
    activation: str | None,
    tolerance: float,
    what: str,
    images: str = "test images",
    advice: str = "",
) -> float:
    """Raise an error if a file's outputs differ from the model's by more than `tolerance`.

    Args:
        expected, found: the model's outputs and the file's, `(B, K)`.
        name: of the output.
        activation: of the model.
        tolerance: the largest `relative_error` that is accepted.
        what: the file, for the message.
        images: which images were used, for the message.
        advice: what to do, for the message.

    Returns:
        The relative error.
    """
    if not np.isfinite(expected).all():
        raise ValueError("The model returns NaN or infinity: its weights are broken or too large.")
    error = relative_error(expected, found, name, activation)
    if error > tolerance:
        raise RuntimeError(
            f"{what} does not compute what the model does: on {images} its outputs have a relative "
            f"error of {error:.2g} (root mean square); the limit is {tolerance:.2g}.{advice} "
            "Nothing was written."
        )
    return error


def tolerance(model: keras.Model, usual: float) -> float:
    """The largest `relative_error` of a file: the usual one, or that of a model with int8
    activations (`model.quantize("int8")`)."""
    int8 = any(layer.quantization_mode == "int8" for layer in model._flatten_layers())
    return max(usual, INT8_TOLERANCE) if int8 else usual


def log_check(what: str, images: str, outputs: str, error: float, tolerance: float) -> None:
    """Log how a file was checked."""
    log.info(
        "%s was checked on %s: the relative error of its %s is %.2g (root mean square; the limit "
        "is %.2g).",
        *(what, images, outputs, error, tolerance),
    )


def scale_of(name: str) -> str:
    """The name of the outputs that errors are measured in."""
    return "features" if name == "features" else "logits"


def relative_error(
    expected: np.ndarray, found: np.ndarray, name: str, activation: str | None
) -> float:
    """Root mean square of the outputs' difference, divided by that of the expected ones; of classes
    on the scale of logits. Infinite for other shapes, NaN or infinity."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return np.inf
    expected, found = (centred(x, name, activation) for x in (expected, found))
    scale = np.sqrt(np.mean(np.square(expected))) + 1e-6
    return float(np.sqrt(np.mean(np.square(found - expected))) / scale)


def centred(x: Any, name: str, activation: str | None) -> np.ndarray:
    """Outputs on the scale of logits; of a softmax, less their mean, which is free."""
    x = np.asarray(x, "float64")
    if name == "features" or activation is None:
        return x
    if name == "probabilities":
        x = np.clip(x, 1e-12, 1 - 1e-12)
        x = np.log(x) if activation == "softmax" else np.log(x) - np.log1p(-x)
    return x - x.mean(-1, keepdims=True) if activation == "softmax" else x

"""Calibration images: the user's images as a file takes them."""

from typing import Any

import keras
import numpy as np

from keras_vit.export import common
from keras_vit.types import Images

CHECKED = 16  # batches that a file is checked on, at most


def batches(
    model: keras.Model,
    images: Images | None,
    preprocessing: bool,
    dtype: str,
    batch_size: int,
) -> tuple[str, list[np.ndarray]] | None:
    """The name of a file's input, and batches as it takes them; None without images.

    Args:
        model: of the file's image size.
        images: as `to_tflite` takes them.
        preprocessing, dtype, batch_size: of the file.

    Raises:
        ValueError: the images are black, normalised already, or of another shape.
    """
    if images is None:
        return None
    found: Any = images
    converter = common.converter(model)
    if converter is not None:
        try:
            found = converter.pixels(images)
        except ValueError as error:
            raise ValueError(
                "calibration must contain raw images, with preprocessing=False, too: the model's "
                f"preprocessor is applied. {error}"
            ) from error
        if found.max() <= 1:
            raise ValueError(
                "calibration must contain raw images with pixels in 0..255. Received: images of "
                f"which the largest value is {found.max():.3g}, so they are black."
            )
        found = found if preprocessing else converter.normalize(found)
    found = np.asarray(found, dtype)
    if found.ndim != 4 or found.shape[1:] != tuple(model.inputs[0].shape[1:]):
        raise ValueError(
            f"calibration must contain images of shape {model.inputs[0].shape[1:]}. "
            f"Received: an array of shape {found.shape}"
        )
    found = found[np.arange(-(-len(found) // batch_size) * batch_size) % len(found)]
    name = common.PIXELS if preprocessing else common.NORMALIZED
    return name, np.split(found, len(found) // batch_size)


def some(batches: list[np.ndarray]) -> np.ndarray:
    """The images of a few batches, to check a file on."""
    spread = np.linspace(0, len(batches) - 1, min(CHECKED, len(batches))).astype(int)
    return np.concatenate([batches[i] for i in spread])

"""An exported file and the images to run it on."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_vit.export import common, files
from keras_vit.images import ImageConverter, to_array


class Sample:
    """Some images in the three forms that files take.

    Attributes:
        images: as the user passed them.
        pixels: resized and cropped by the model's preprocessor, `(B, height, width, C)`; None
            if it has none.
        inputs: normalised, as the bare model takes them.
    """

    def __init__(
        self, model: keras.Model | None, images: Any, converter: ImageConverter | None = None
    ) -> None:
        """With a converter in place of the model: what the file itself says."""
        self.images = images
        if model is not None:
            converter, self.channels = common.converter(model), model.inputs[0].shape[-1]
        elif converter is not None:
            self.channels = len(converter.mean)
        self.pixels = None if converter is None else converter.pixels(images)
        self.inputs = np.asarray(images) if converter is None else converter.normalize(self.pixels)


class Classifier:
    """A file with one input of images and one output, as `keras_vit.export` writes them.

    Raises:
        ValueError: the file has other inputs or outputs.
    """

    def __init__(self, file: files.File) -> None:
        self.file = file
        self.input = _single(file, "input", common.INPUTS)
        self.output = _single(file, "output", common.OUTPUTS)
        self.dtype, self.shape = file.inputs[self.input]
        self.batch_size = self.shape[0] or 1

    def feed(self, sample: Sample) -> Iterator[tuple[np.ndarray, int]]:
        """Batches as the file takes them, each with its number of images without padding."""
        x = sample.pixels if self.input == common.PIXELS else sample.inputs
        if x is None:
            raise ValueError(
                "The file takes raw images, and the model has no preprocessor to prepare them."
            )
        if self.input == common.PIXELS and None in self.shape[1:3]:  # it resizes them itself
            for image in sample.images:
                image = to_array(image, sample.channels)[None].astype(self.dtype)
                yield np.repeat(image, self.batch_size, axis=0), 1
            return
        pairs = zip(self.shape[1:], x.shape[1:], strict=True)
        if any(known not in (None, size) for known, size in pairs):
            raise ValueError(
                f"{str(self.file.path)!r} was made from another model: it takes images of shape "
                f"{self.shape[1:]}, this model of {x.shape[1:]}."
            )
        for start in range(0, len(x), self.batch_size):
            batch = x[start : start + self.batch_size].astype(self.dtype)
            missing = self.batch_size - len(batch)  # the last batch is padded
            yield np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]), len(batch)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The output for one batch, `(B, K)`."""
        return self.file.run(**{self.input: batch})[self.output]


def _single(file, what, allowed):
    """The name of the only input or output."""
    names = list(getattr(file, f"{what}s"))
    if len(names) != 1 or names[0] not in allowed:
        raise ValueError(
            f"{str(file.path)!r} was not written by keras_vit.export: expected one {what} named "
            f"{' or '.join(allowed)}. Received: {', '.join(names) or 'none'}"
        )
    return names[0]

"""The files of this package, read back: what goes in, what comes out, how to run them."""

import collections
import os

import numpy as np

from keras_vit.export import common, tflite
from keras_vit.images import to_array


class Sample:
    """Some images in the three forms that files take.

    Attributes:
        images: as the user has them.
        pixels: resized and cropped by the model's preprocessor, `(B, height, width, C)`; None
            where it has none.
        inputs: normalised, as the bare model takes them.
    """

    def __init__(self, model, images):
        converter = common.converter(model)
        self.images = images
        self.channels = model.inputs[0].shape[-1]
        self.pixels = None if converter is None else converter.pixels(images)
        self.inputs = np.asarray(images) if converter is None else converter.normalize(self.pixels)

    def raw(self, values):
        if self.pixels is None:
            raise ValueError(
                "The file takes raw images, and the model has no preprocessor to cut them with."
            )
        return values


def load(path, threads):
    """A file of this package, by what lies at that path."""
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    return SavedModel(path) if path.is_dir() else TFLite(path, threads)


def _single(names, allowed, path):
    """The one name of an input or output."""
    names = list(names)
    if len(names) != 1 or names[0] not in allowed:
        raise ValueError(
            f"{str(path)!r} is not a file of keras_vit.export: one of {', '.join(allowed)} is "
            f"expected as the name of its input or output. Received: {names}"
        )
    return names[0]


class TFLite:
    def __init__(self, path, threads):
        try:
            loaded = tflite.interpreter(path, threads)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{str(path)!r} is not a TFLite file that runs: {error}") from error
        signatures = loaded.get_signature_list()
        self.runner = loaded.get_signature_runner() if len(signatures) == 1 else None
        inputs = self.runner.get_input_details() if self.runner else {}
        outputs = self.runner.get_output_details() if self.runner else {}
        self.input = _single(inputs, common.INPUTS, path)
        self.output = _single(outputs, common.OUTPUTS, path)
        self.dtype = inputs[self.input]["dtype"]
        self.path = str(path)
        self.shape = tuple(int(size) for size in inputs[self.input]["shape"])
        self.batch_size = self.shape[0]
        self.threads = threads
        self.operations = dict(collections.Counter(tflite.operations(loaded)).most_common())
        self.partitions = tflite.partitions(loaded)

    def feed(self, sample):
        """Batches of the file's own size; the last one is filled up."""
        x = sample.raw(sample.pixels) if self.input == common.RAW else sample.inputs
        if x.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"{self.path!r} was made from another model: it takes images of shape "
                f"{self.shape[1:]}, this model of {x.shape[1:]}."
            )
        missing = -len(x) % self.batch_size
        x = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]).astype(self.dtype)
        return np.split(x, len(x) // self.batch_size)

    def run(self, batch):
        return self.runner(**{self.input: batch})[self.output]


class SavedModel:
    operations = partitions = None

    def __init__(self, path):
        import tensorflow as tf

        try:
            self.loaded = tf.saved_model.load(str(path))
            self.function = self.loaded.signatures["serving_default"]
        except (OSError, KeyError) as error:
            raise ValueError(f"{str(path)!r} is no SavedModel that serves: {error}") from error
        ((self.input, spec),) = self.function.structured_input_signature[1].items()
        self.input = _single([self.input], common.INPUTS, path)
        self.output = _single(self.function.structured_outputs, common.OUTPUTS, path)
        self.batch_size = spec.shape[0] or 1
        self.threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()

    def feed(self, sample):
        """One image at a time, of any size, as often as the file's batch asks for."""
        if self.input == common.RAW:
            images = [to_array(image, sample.channels) for image in sample.raw(sample.images)]
        else:
            images = sample.inputs
        return [np.repeat(image[None], self.batch_size, axis=0) for image in images]

    def run(self, batch):
        import tensorflow as tf

        return self.function(**{self.input: tf.constant(batch)})[self.output].numpy()[:1]

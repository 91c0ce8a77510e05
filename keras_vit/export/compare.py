"""What a file costs and what it gives, beside its model: agreement, size, latency."""

import dataclasses

import keras
import numpy as np

from keras_vit.export import common, feed, files
from keras_vit.export.benchmark import Report, counted_threads, latencies, listing


@dataclasses.dataclass(frozen=True)
class Comparison(Report):
    """A file beside the model that it was made from, on the same images.

    `print` gives a table, `to_json` the same as JSON, rich's `print` the table in colour.
    """

    path: str
    size: int  # bytes
    images: int
    output: str  # "probabilities", "logits" or "features": what the differences are of
    agreement: float | None  # part of the images with the same best class; None: no classes
    largest_difference: float
    mean_difference: float
    largest_logit_difference: float | None  # of classes' logits less their mean; None: no classes
    mean_logit_difference: float | None
    accuracy: float | None  # of the file; None: no labels were given
    model_accuracy: float | None
    latency: float  # seconds, the median of warm runs on one batch
    batch_size: int
    threads: int
    operations: dict | None  # name: how many; not of a SavedModel
    partitions: int | None  # pieces that XNNPACK runs; TFLite only

    def rows(self):
        """(what, value) as text."""
        yield "size", f"{self.size / 1e6:.1f} MB"
        if self.agreement is not None:
            yield "same best class", f"{self.agreement:.1%} of {self.images} images"
        if self.accuracy is not None:
            yield "accuracy", f"{self.accuracy:.1%} (the model's: {self.model_accuracy:.1%})"
        yield f"largest difference of {self.output}", f"{self.largest_difference:.2g}"
        yield f"mean difference of {self.output}", f"{self.mean_difference:.2g}"
        if self.output == "probabilities" and self.mean_logit_difference is not None:
            yield "largest difference of logits", f"{self.largest_logit_difference:.2g}"
            yield "mean difference of logits", f"{self.mean_logit_difference:.2g}"
        threads = counted_threads(self.threads)
        yield "latency", f"{self.latency * 1e3:.1f} ms (batch {self.batch_size}, {threads}, median)"
        yield from listing(self.operations, self.partitions)


def compare(path, model, images, labels=None, threads=None, runs=10):
    """Run a file of `to_tflite`, `to_saved_model` or `to_onnx` and its model on the same images.

    Args:
        path: the file or directory.
        model: the model that it was made from.
        images: paths, PIL images or arrays, as `model.predict` takes them. A TFLite or ONNX file
            is fed with the pixels that the model's preprocessor cuts from them. For a model
            without a preprocessor: its inputs, `(B, H, W, C)`.
        labels: the classes of the images, `(B,)` ints: then the accuracy is told, too.
        threads: of the interpreter; None: one for each processor. (A SavedModel runs with
            TensorFlow's own number, which a running process cannot change.)
        runs: how many warm runs the latency is the median of.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: no image; another number of labels; a file that `keras_vit.export` did not
            write, or that was made from another model.
        FileNotFoundError: there is no such file.
        ImportError: an ONNX file without onnxruntime.
    """
    images = _listed(images)
    if labels is not None and len(labels) != len(images):
        raise ValueError(
            f"labels must hold the class of each of the {len(images)} images. "
            f"Received: {len(labels)} labels"
        )
    file = files.load(path, threads)
    fed = feed.Classifier(file)
    expected, found, batch = _outputs(fed, model, images)
    agreement = accuracy = model_accuracy = None
    if fed.output != "features":
        best, model_best = (_classes(x, fed.output) for x in (found, expected))
        agreement = float(np.mean(best == model_best))
        if labels is not None:
            accuracy, model_accuracy = (float(np.mean(b == labels)) for b in (best, model_best))
    largest, mean = _differences(found, expected)
    logits = None, None
    if fed.output != "features" and found.shape[-1] > 1:
        logits = _differences(*(common.centred(x, fed.output) for x in (found, expected)))
    return Comparison(
        path=str(path),
        size=file.size,
        images=len(images),
        output=fed.output,
        agreement=agreement,
        largest_difference=largest,
        mean_difference=mean,
        largest_logit_difference=logits[0],
        mean_logit_difference=logits[1],
        accuracy=accuracy,
        model_accuracy=model_accuracy,
        latency=latencies(lambda: fed.run(batch), runs)[1],
        batch_size=fed.batch_size,
        threads=file.threads,
        operations=file.operations,
        partitions=file.partitions,
    )


def _listed(images):
    """One image or several as something that has a length and slices."""
    if not isinstance(images, (list, tuple)) and getattr(images, "ndim", 3) < 4:
        images = [images]
    if not len(images):
        raise ValueError("There is no image to compare on. Received: an empty list")
    return images


def _outputs(fed, model, images, step=32):
    """What model and file give for all images, `(B, K)` each, and one batch of the file.

    `step` images at a time are in memory.
    """
    expected, found = [], []
    for start in range(0, len(images), step):
        sample = feed.Sample(model, images[start : start + step])
        logits = keras.Model.predict(model, sample.inputs, verbose=0)
        expected.append(common.finish(logits, fed.output).numpy())
        for batch, count in fed.feed(sample):
            found.append(fed.run(batch)[:count])
            if found[-1].shape[1:] != expected[-1].shape[1:]:
                raise ValueError(
                    f"{str(fed.file.path)!r} was made from another model: it gives "
                    f"{found[-1].shape[-1]} numbers for an image, this model {logits.shape[-1]}."
                )
    return np.concatenate(expected), np.concatenate(found), batch


def _classes(outputs, name):
    """The best class of each image; where there is one output, whether it speaks for the class."""
    if outputs.shape[-1] > 1:
        return outputs.argmax(-1)
    return (outputs[:, 0] > (0.5 if name == "probabilities" else 0.0)).astype(int)


def _differences(found, expected):
    """The largest and the mean one."""
    difference = np.abs(found - expected)
    return float(difference.max()), float(difference.mean())

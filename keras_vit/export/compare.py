"""An exported file compared with its model: agreement, accuracy, size, latency."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_vit.checks import count
from keras_vit.data import check_classes
from keras_vit.export import common, feed, files
from keras_vit.export.benchmark import Report, counted_threads, latencies, listing
from keras_vit.images import listed
from keras_vit.types import Images, Path


@dataclasses.dataclass(frozen=True)
class Comparison(Report):
    """A file compared with the model it was made from, on the same images.

    `print` shows it as a table, rich's `print` in colour; `to_json` returns it as JSON.
    """

    path: str
    size: int  # bytes
    images: int
    output: str  # what is compared: "probabilities", "logits" or "features"
    agreement: float | None  # share of images with the same predicted class; None: no classes
    largest_difference: float
    mean_difference: float
    largest_logit_difference: float | None  # of logits less their mean; None: no classes
    mean_logit_difference: float | None
    accuracy: float | None  # of the file; None: no labels
    model_accuracy: float | None
    latency: float  # seconds for one batch, the median of warm runs
    batch_size: int
    threads: int
    operations: dict[str, int] | None  # name: count; None for a SavedModel
    partitions: int | None  # XNNPACK partitions; TFLite only
    precision: str | None  # in which it computes; OpenVINO only

    def rows(self) -> Iterator[tuple[str, str]]:
        """The rows of the table: (name, value) as text."""
        yield "size", f"{self.size / 1e6:.1f} MB"
        if self.agreement is not None:
            yield "same prediction", f"{self.agreement:.1%} of {self.images} images"
        if self.accuracy is not None:
            yield "accuracy", f"{self.accuracy:.1%} (the model's: {self.model_accuracy:.1%})"
        yield f"largest difference of {self.output}", f"{self.largest_difference:.2g}"
        yield f"mean difference of {self.output}", f"{self.mean_difference:.2g}"
        if self.output == "probabilities" and self.mean_logit_difference is not None:
            yield "largest difference of logits", f"{self.largest_logit_difference:.2g}"
            yield "mean difference of logits", f"{self.mean_logit_difference:.2g}"
        if self.precision:
            yield "precision", self.precision
        threads = counted_threads(self.threads)
        yield "latency", f"{self.latency * 1e3:.1f} ms (batch {self.batch_size}, {threads}, median)"
        yield from listing(self.operations, self.partitions)


def compare(
    path: Path,
    model: keras.Model,
    images: Images,
    labels: Sequence[int] | np.ndarray | None = None,
    threads: int | None = None,
    runs: int = 10,
    precision: str = "float32",
) -> Comparison:
    """Run an exported file and its model on the same images.

    Args:
        path: the file or directory.
        model: the model it was made from.
        images: paths, PIL images or arrays, as `model.predict` takes them. All files but a
            SavedModel get the pixels that the model's preprocessor makes of them. For a model
            without a preprocessor: its inputs, `(B, H, W, C)`.
        labels: the classes of the images, ints `(B,)`, to report the accuracy, too.
        threads: of the interpreter; None: one per processor. (A SavedModel runs with TensorFlow's
            own number of threads, which a running process cannot change.)
        runs: how many runs are timed; the latency is their median.
        precision: `"bfloat16"`, for OpenVINO alone, computes in it what is not int8.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: no images; labels that are not one class for each; a file that
            `keras_vit.export` did not write, or that was made from another model.
        FileNotFoundError: there is no such file.
        ImportError: an ONNX file without onnxruntime, or an OpenVINO file without openvino.
    """
    inputs = listed(images)
    labels = None if labels is None else _labels(labels, len(inputs))
    count(runs, "runs", 1)
    file = files.open_file(path, threads, precision)
    fed = feed.Classifier(file)
    expected, found, batch = _outputs(fed, model, inputs)
    agreement = accuracy = model_accuracy = None
    activation = common.activation(model)
    has_classes = fed.output != "features" and activation is not None
    if has_classes:
        best, model_best = (_classes(x, fed.output) for x in (found, expected))
        agreement = float(np.mean(best == model_best))
        if labels is not None:
            check_classes(labels, max(found.shape[-1], 2))
            accuracy, model_accuracy = (float(np.mean(b == labels)) for b in (best, model_best))
    largest, mean = _differences(found, expected)
    logits = None, None
    if has_classes and found.shape[-1] > 1:
        logits = _differences(
            *(common.centred(x, fed.output, activation) for x in (found, expected))
        )
    return Comparison(
        path=str(path),
        size=file.size,
        images=len(inputs),
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
        precision=file.precision,
    )


def _labels(labels: Any, images: int) -> np.ndarray:
    """Labels `(B,)`; as `fit`, it also takes `(B, 1)`."""
    found = np.asarray(labels)
    if found.shape not in ((images,), (images, 1)):
        raise ValueError(
            f"labels must contain the class of each of the {images} images, a whole number. "
            f"Received: labels of shape {found.shape}"
        )
    return found.ravel()


def _outputs(fed, model, images, step=32):
    """Outputs of the model and the file for all images, `(B, K)` each, and one batch of the file.

    At most `step` images are in memory at a time.
    """
    expected, found = [], []
    for start in range(0, len(images), step):
        sample = feed.Sample(model, images[start : start + step])
        logits = keras.Model.predict(model, sample.inputs, verbose=0)
        expected.append(common.finish(logits, fed.output, common.activation(model)).numpy())
        for batch, real in fed.feed(sample):
            found.append(fed.run(batch)[:real])
            if found[-1].shape[1:] != expected[-1].shape[1:]:
                raise ValueError(
                    f"{str(fed.file.path)!r} was made from another model: it returns "
                    f"{found[-1].shape[-1]} numbers per image, this model {logits.shape[-1]}."
                )
    return np.concatenate(expected), np.concatenate(found), batch


def _classes(outputs, name):
    """The predicted class of each image; for a single output, whether it is above one half."""
    if outputs.shape[-1] > 1:
        return outputs.argmax(-1)
    return (outputs[:, 0] > (0.5 if name == "probabilities" else 0.0)).astype(int)


def _differences(found, expected):
    """The largest and the mean absolute difference."""
    difference = np.abs(found - expected)
    return float(difference.max()), float(difference.mean())

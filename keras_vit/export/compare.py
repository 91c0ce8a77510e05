"""What a file costs and what it gives: agreement with the model, size, latency."""

import dataclasses
import io
import json
import os
import pathlib
import statistics
import time

import keras
import numpy as np

from keras_vit.export import common, files


@dataclasses.dataclass(frozen=True)
class Comparison:
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
    accuracy: float | None  # of the file; None: no labels were given
    model_accuracy: float | None
    latency: float  # seconds, the median of warm runs on one batch
    batch_size: int
    threads: int
    operations: dict | None  # name: how many; TFLite only
    partitions: int | None  # pieces that XNNPACK runs; TFLite only

    def to_json(self):
        return json.dumps(dataclasses.asdict(self), indent=2)

    def rows(self):
        """(what, value) as text."""
        yield "size", f"{self.size / 1e6:.1f} MB"
        if self.agreement is not None:
            yield "same best class", f"{self.agreement:.1%} of {self.images} images"
        if self.accuracy is not None:
            yield "accuracy", f"{self.accuracy:.1%} (the model's: {self.model_accuracy:.1%})"
        yield f"largest difference of {self.output}", f"{self.largest_difference:.2g}"
        yield f"mean difference of {self.output}", f"{self.mean_difference:.2g}"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        yield "latency", f"{self.latency * 1e3:.1f} ms (batch {self.batch_size}, {threads}, median)"
        if self.operations is not None:
            total = sum(self.operations.values())
            yield "operations", f"{total}, XNNPACK partitions: {self.partitions}"

    def __rich__(self):
        from rich.table import Table

        table = Table(title=self.path, title_justify="left", show_header=False)
        for what, value in self.rows():
            table.add_row(what, value)
        return table

    def __str__(self):
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=80).print(self)
        return text.getvalue().rstrip()


def compare(path, model, images, labels=None, threads=None, runs=10):
    """Run a file of `to_tflite` or `to_saved_model` and its model on the same images.

    Args:
        path: the file or directory.
        model: the model that it was made from.
        images: paths, PIL images or arrays, as `model.predict` takes them. A TFLite file is fed
            with the pixels that the model's preprocessor cuts from them. For a model without a
            preprocessor: its inputs, `(B, H, W, C)`.
        labels: the classes of the images, `(B,)` ints: then the accuracy is told, too.
        threads: of the TFLite interpreter; None: one for each processor. (A SavedModel runs with
            TensorFlow's own number, which a running process cannot change.)
        runs: how many warm runs the latency is the median of.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: no image; another number of labels; a file that `keras_vit.export` did not
            write, or that was made from another model.
        FileNotFoundError: there is no such file.
    """
    images = _listed(images)
    if labels is not None and len(labels) != len(images):
        raise ValueError(
            f"labels must hold the class of each of the {len(images)} images. "
            f"Received: {len(labels)} labels"
        )
    file = files.load(pathlib.Path(path), threads or os.cpu_count())
    expected, found, batch = _outputs(file, model, images)
    if found.shape != expected.shape:
        raise ValueError(
            f"{str(path)!r} was made from another model: it gives {found.shape[1]} numbers for an "
            f"image, this model {expected.shape[1]}."
        )
    agreement = accuracy = model_accuracy = None
    if file.output != "features":
        best, model_best = (_classes(x, file.output) for x in (found, expected))
        agreement = float(np.mean(best == model_best))
        if labels is not None:
            accuracy, model_accuracy = (float(np.mean(b == labels)) for b in (best, model_best))
    difference = np.abs(found - expected)
    return Comparison(
        path=str(path),
        size=_size(pathlib.Path(path)),
        images=len(images),
        output=file.output,
        agreement=agreement,
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        accuracy=accuracy,
        model_accuracy=model_accuracy,
        latency=_latency(file.run, batch, runs),
        batch_size=file.batch_size,
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


def _outputs(file, model, images, step=32):
    """What model and file give for all images, `(B, K)` each, and one batch of the file.

    `step` images at a time are in memory.
    """
    expected, found = [], []
    for start in range(0, len(images), step):
        sample = files.Sample(model, images[start : start + step])
        logits = keras.Model.predict(model, sample.inputs, verbose=0)
        expected.append(common.finish(logits, file.output).numpy())
        batches = file.feed(sample)
        found.append(np.concatenate([file.run(x) for x in batches])[: len(logits)])
    return np.concatenate(expected), np.concatenate(found), batches[0]


def _classes(outputs, name):
    """The best class of each image; where there is one output, whether it speaks for the class."""
    if outputs.shape[-1] > 1:
        return outputs.argmax(-1)
    return (outputs[:, 0] > (0.5 if name == "probabilities" else 0.0)).astype(int)


def _latency(run, batch, runs):
    times = []
    for _ in range(runs + 2):  # the first two warm up
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _size(path):
    """Bytes of a file, or of all files in a directory."""
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())

"""What a file costs by itself: size and latency, of any TFLite, SavedModel or ONNX file."""

import abc
import dataclasses
import io
import json
import statistics
import time

import numpy as np

from keras_vit.export import files

WARM_UP = 2  # runs that do not count
PIXELS = 224  # height and width where a file takes images of any size and does not tell its own


class Report(abc.ABC):
    """A dataclass with `rows` that `print` shows as a table, rich's `print` in colour."""

    def to_json(self):
        """All of it as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @abc.abstractmethod
    def rows(self):
        """(what, value) as text."""

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


@dataclasses.dataclass(frozen=True)
class Benchmark(Report):
    """A file's size, latency and contents.

    `print` gives a table, `to_json` the same as JSON, rich's `print` the table in colour.
    """

    path: str
    kind: str  # "TFLite", "SavedModel" or "ONNX"
    size: int  # bytes
    latency: float  # seconds, the median of warm runs
    quartiles: (
        tuple  # seconds: a quarter of the runs is faster than the first, slower than the second
    )
    runs: int
    threads: int
    inputs: dict  # name: (dtype, shape) as it was run
    outputs: dict
    operations: dict | None  # name: how many; not of a SavedModel
    partitions: int | None  # pieces that XNNPACK runs; TFLite only
    labels: list | None  # names of the classes, if the file has them
    preset: dict | None  # what the file says of the model that it was made from

    def rows(self):
        yield "format", self.kind
        if self.preset:
            yield "made from", self.preset["name"]
        yield "size", f"{self.size / 1e6:.1f} MB"
        times = (self.quartiles[0], self.latency, self.quartiles[1])
        low, middle, high = (f"{seconds * 1e3:.1f}" for seconds in times)
        yield "latency", f"{middle} ms, quartiles {low} and {high} ms"
        yield "measured", f"{self.runs} runs, {counted_threads(self.threads)}"
        for what, tensors in (("input", self.inputs), ("output", self.outputs)):
            for name, (dtype, shape) in tensors.items():
                yield what, f"{name}: {dtype} {shape}"
        if self.labels:
            yield (
                "classes",
                f"{len(self.labels)}: {', '.join(self.labels[:5])}"
                + (" ..." if len(self.labels) > 5 else ""),
            )
        yield from listing(self.operations, self.partitions)


def benchmark(path, threads=None, runs=50):
    """Run a file on random inputs and measure it.

    Args:
        path: a TFLite file, an ONNX file (its name ends in .onnx) or a SavedModel directory, of
            this package or any other.
        threads: of the interpreter; None: one for each processor. (A SavedModel runs with
            TensorFlow's own number, which a running process cannot change.)
        runs: how many warm runs are measured, one after the other.

    Returns:
        A `Benchmark`. Where the file takes any number of images, one at once was measured; where
        it takes any size, the size of the model that it was made from, or 224 x 224.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or takes what cannot be made up, such as text.
        ImportError: an ONNX file without onnxruntime.
    """
    if not isinstance(runs, int) or runs < 1:
        raise ValueError(f"runs must be a whole number from 1 on. Received: {runs!r}")
    file = files.load(path, threads)
    size = (file.preset or {}).get("image_size") or (None, None)
    inputs = {name: _random(file, name, tensor, size) for name, tensor in file.inputs.items()}
    outputs = file.run(**inputs)
    low, middle, high = latencies(lambda: file.run(**inputs), runs)
    described = (
        {name: (x.dtype.name, tuple(x.shape)) for name, x in tensors.items()}
        for tensors in (inputs, outputs)
    )
    return Benchmark(
        path=str(path),
        kind=file.kind,
        size=file.size,
        latency=middle,
        quartiles=(low, high),
        runs=runs,
        threads=file.threads,
        inputs=next(described),
        outputs=next(described),
        operations=file.operations,
        partitions=file.partitions,
        labels=file.labels,
        preset=file.preset,
    )


def _random(file, name, tensor, size):
    """An array for an input."""
    dtype, shape = tensor
    if len(shape) == 4:
        shape = (
            shape[0],
            *(n or m or PIXELS for n, m in zip(shape[1:3], size, strict=True)),
            shape[3],
        )
    shape = tuple(n or 1 for n in shape)
    random = np.random.default_rng(0)
    try:
        kind = np.dtype(dtype).kind
    except TypeError:
        kind = None
    if kind == "f":
        return random.random(shape).astype(dtype)
    if kind in ("i", "u", "b"):
        return random.integers(0, 2 if kind == "b" else 100, shape).astype(dtype)
    raise ValueError(
        f"{str(file.path)!r} takes {dtype} as its input {name!r}: only numbers can be made up."
    )


def latencies(run, runs):
    """Lower quartile, median and upper quartile of the seconds of a call."""
    times = []
    for _ in range(runs + WARM_UP):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    times = times[WARM_UP:]
    if runs == 1:
        return times * 3
    return tuple(statistics.quantiles(times, n=4, method="inclusive"))


def counted_threads(threads):
    return f"{threads} thread{'s' * (threads > 1)}"


def listing(operations, partitions):
    """The rows that tell of a graph's operations."""
    if operations is not None:
        names = ", ".join(f"{count} {name}" for name, count in operations.items())
        yield "operations", f"{sum(operations.values())}: {names}"
    if partitions is not None:
        yield "XNNPACK partitions", str(partitions)

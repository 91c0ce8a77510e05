"""Size and latency of any TFLite, SavedModel, ONNX or OpenVINO file."""

import abc
import dataclasses
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vit.checks import count
from keras_vit.export import files, runtime
from keras_vit.types import Path

if TYPE_CHECKING:
    from rich.table import Table

WARM_UP = 2  # runs that are not timed
PIXELS = 224  # height and width, where a file takes any size and does not name its own


class Report(abc.ABC):
    """A dataclass that `print` shows as a table; rich's `print` shows it in colour."""

    path: str

    def to_json(self) -> str:
        """The report as a JSON object."""
        values: Any = self  # a dataclass
        return json.dumps(dataclasses.asdict(values), indent=2)

    @abc.abstractmethod
    def rows(self) -> Iterator[tuple[str, str]]:
        """The rows of the table: (name, value) as text."""

    def __rich__(self) -> "Table":
        from rich.table import Table

        table = Table(title=self.path, title_justify="left", show_header=False)
        for what, value in self.rows():
            table.add_row(what, value)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=80).print(self)
        return text.getvalue().rstrip()


@dataclasses.dataclass(frozen=True)
class Benchmark(Report):
    """A file's size, latency and contents.

    `print` shows it as a table, rich's `print` in colour; `to_json` returns it as JSON.
    """

    path: str
    kind: str  # "TFLite", "SavedModel", "ONNX" or "OpenVINO"
    size: int  # bytes
    latency: float  # seconds, the median of warm runs
    quartiles: tuple[float, float]  # seconds: the lower and the upper quartile
    runs: int
    threads: int
    inputs: dict[str, tuple[str, tuple[int, ...]]]  # name: (dtype, shape), as it was run
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    operations: dict[str, int] | None  # name: count; None for a SavedModel
    partitions: int | None  # XNNPACK partitions; TFLite only
    precision: str | None  # in which it computes; OpenVINO only
    labels: list[str] | None  # class names, if the file has them
    preset: dict[str, Any] | None  # what the file says of the model it was made from
    starts: tuple[float, float] | None = None  # seconds: without and with XNNPACK's weight cache

    def rows(self) -> Iterator[tuple[str, str]]:
        yield "format", self.kind
        if self.preset:
            yield "made from", self.preset["name"]
        yield "size", f"{self.size / 1e6:.1f} MB"
        times = (self.quartiles[0], self.latency, self.quartiles[1])
        low, middle, high = (f"{seconds * 1e3:.1f}" for seconds in times)
        yield "latency", f"{middle} ms, quartiles {low} and {high} ms"
        yield "measured", f"{self.runs} runs, {counted_threads(self.threads)}"
        if self.precision:
            yield "precision", self.precision
        if self.starts:
            without, cached = (f"{seconds * 1e3:.1f}" for seconds in self.starts)
            yield "start", f"{without} ms, with the weight cache {cached} ms"
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


def benchmark(
    path: Path,
    threads: int | None = None,
    runs: int = 50,
    precision: str = "float32",
    weight_cache: bool = False,
) -> Benchmark:
    """Run a file on random inputs and measure it.

    Args:
        path: a TFLite file, an ONNX file, the .xml file of OpenVINO or a SavedModel directory,
            written by this package or any other.
        threads: of the interpreter; None: one per processor. (A SavedModel runs with TensorFlow's
            own number of threads, which a running process cannot change.)
        runs: how many runs are timed, after two to warm up.
        precision: `"bfloat16"`, for OpenVINO alone, computes in it what is not int8.
        weight_cache: of a TFLite file: measure the start of LiteRT, too, without and with a file in
            which XNNPACK keeps its packed weights.

    Returns:
        A `Benchmark`. A file with a dynamic batch size is measured with one image; a file for
        images of any size with the size of the model it was made from, or 224 x 224.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind or damaged, or takes an input that cannot be made
            up, such as text.
        ImportError: an ONNX file without onnxruntime, or an OpenVINO file without openvino;
            `weight_cache` without LiteRT.
    """
    count(runs, "runs", 1)
    file = files.open_file(path, threads, precision)
    if weight_cache and file.kind != "TFLite":
        raise ValueError(f"weight_cache is for TFLite files. {str(path)!r} is {file.kind}.")
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
        precision=file.precision,
        labels=file.labels,
        preset=file.preset,
        starts=runtime.starts(path, file.threads) if weight_cache else None,
    )


def _random(file, name, tensor, size):
    """A random array for an input."""
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
        f"The input {name!r} of {str(file.path)!r} takes {dtype}: only numbers can be made up."
    )


def latencies(run: Callable[[], Any], runs: int) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of a call's time, in seconds."""
    times = []
    for _ in range(runs + WARM_UP):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    times = times[WARM_UP:]
    if runs == 1:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def counted_threads(threads: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{threads} thread{'s' * (threads > 1)}"


def listing(operations: dict[str, int] | None, partitions: int | None) -> Iterator[tuple[str, str]]:
    """The table's rows about a graph's operations."""
    if operations is not None:
        names = ", ".join(f"{count} {name}" for name, count in operations.items())
        yield "operations", f"{sum(operations.values())}: {names}"
    if partitions is not None:
        yield "XNNPACK partitions", str(partitions)

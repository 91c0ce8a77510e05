"""One part after the other: pictures to rows to files, in one process."""

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_vit.scale.outputs import Output
from keras_vit.scale.reading import decoded, threads_for
from keras_vit.scale.shards import Row, Shards
from keras_vit.scale.sources import Picture

LISTED = 100  # errors that a result names
NOT_FINITE = "The model gives NaN or infinity for this picture."


@dataclasses.dataclass(frozen=True)
class Part:
    """Pictures whose rows go into one file: its number, and them."""

    number: int
    pictures: list[Picture]


@dataclasses.dataclass(frozen=True)
class Done:
    """A part that is written: how many rows it has, and how many without a value; the first of
    these as (path, error)."""

    rows: int
    broken: int
    examples: list[tuple[str, str]]


def planned(pictures: Sequence[Picture], shards: Shards, size: int) -> list[Part]:
    """The parts that are missing, in the order of the pictures, with numbers that are free."""
    paths = shards.paths()
    missing = [picture for picture in pictures if picture.path not in paths]
    taken = shards.parts()
    free = (number for number in itertools.count() if number not in taken)
    chunks = (missing[i : i + size] for i in range(0, len(missing), size))
    return [Part(number, chunk) for chunk, number in zip(chunks, free, strict=False)]


def again(pictures: Sequence[Picture], errors: Mapping[str, tuple[int, str]]) -> list[Part]:
    """Finished parts with only those of their pictures that have an error, as `Shards.errors`."""
    parts: dict[int, Part] = {}
    for picture in pictures:
        if picture.path in errors:
            number, _ = errors[picture.path]
            parts.setdefault(number, Part(number, [])).pictures.append(picture)
    return list(parts.values())


def write_parts(
    parts: Sequence[Part], output: Output, shards: Shards, threads: int | None = None
) -> Generator[Done, None, None]:
    """Write parts, each as soon as it is complete. Threads decode while the model computes, across
    the borders of parts, too.

    Args:
        parts: what to do.
        output: of the model.
        shards: where they go.
        threads: that decode; None: as many as there are processors, more for URLs.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    pictures = [picture for part in parts for picture in part.pictures]
    threads = threads or threads_for(pictures)
    ahead = 2 * output.batch_size + threads
    stream = decoded(pictures, output.converter, threads, ahead)
    try:
        for part in parts:
            rows = _rows(part.pictures, stream, output)
            shards.write(part.number, rows)
            broken = [(row.path, row.error) for row in rows if row.error]
            yield Done(len(rows), len(broken), broken[:LISTED])
    finally:
        stream.close()  # type: ignore[attr-defined]  # the threads end


def _rows(pictures: Sequence[Picture], stream: Iterator[Any], output: Output) -> list[Row]:
    """The rows of some pictures, in order; only good ones fill a batch."""
    errors: dict[int, str] = {}
    values: dict[int, Any] = {}
    batch: list[tuple[int, np.ndarray]] = []
    for i, result in enumerate(itertools.islice(stream, len(pictures))):
        if isinstance(result, str):
            errors[i] = result
        else:
            batch.append((i, result))
        if batch and (len(batch) == output.batch_size or i == len(pictures) - 1):
            places, pixels = zip(*batch, strict=True)
            values.update(zip(places, output(pixels), strict=True))
            batch = []
    return [_row(p.path, values.get(i), errors.get(i)) for i, p in enumerate(pictures)]


def _row(path, value, error):
    return Row(path, value) if value is not None else Row(path, None, error or NOT_FINITE)

"""Many pictures to Parquet files: `embed`."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from keras_vit import atomic
from keras_vit.checks import MANY, count
from keras_vit.models.classifier import ImageClassifier
from keras_vit.scale.arrow import pyarrow
from keras_vit.scale.outputs import Output, fingerprint
from keras_vit.scale.parts import LISTED, Done, again, planned, write_parts
from keras_vit.scale.shards import LOCK, Manifest, Shards, prepared
from keras_vit.scale.sources import Source, find
from keras_vit.types import Path, Progress
from keras_vit.zoo import from_preset

DTYPES = ("float32", "float16")
LEAST, MOST = 256, 4096  # pictures per part
PARTS = 16  # of a small source
BYTES = 1 << 26  # of embeddings per part


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What `embed` did.

    Attributes:
        folder: with the Parquet files.
        pictures: that the source has.
        before: how many of them had a row already, which was left as it is.
        broken: how many of the source's pictures have an error in place of a value, also from
            earlier runs.
        examples: the first of these as (path, error).
    """

    folder: pathlib.Path
    pictures: int
    before: int
    broken: int
    examples: list[tuple[str, str]]


def embed(
    model: ImageClassifier | Path,
    source: Source,
    out: Path,
    what: str = "features",
    *,
    batch_size: int = 32,
    workers: int | None = None,
    top: int = 5,
    dtype: str = "float32",
    part_size: int | None = None,
    threads: int | None = None,
    column: str | None = None,
    retry_errors: bool = False,
    options: dict[str, Any] | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Embed many pictures, into Parquet files `part-000000.parquet` ... with a row for each.

    The columns are `path`; `embedding`, a list of fixed size, or `classes` and `probabilities`; and
    `error`, a text where a picture cannot be read, else null. A part appears when it is complete. A
    second run does only what is missing; rows are in the order of the source.

    Args:
        model: a classifier, or the name of a preset, as in `from_preset`.
        source: a folder, a list of paths or URLs, `.tar` files (WebDataset) or a pattern of them, a
            Parquet file with a column of paths or URLs.
        out: a folder; it is made if need be. All machines must see it.
        what: `"features"`: the pooled vector before the head, `(D,)`; `"tokens"`: all tokens of the
            last block, `(N, D)`, stored flat, row by row; `"classes"`: names and probabilities of
            the most probable classes.
        batch_size: pictures per step.
        workers: None: this process; a number: so many processes of Ray, on one machine or on the
            cluster that `ray.init` has joined.
        top: how many classes.
        dtype: of the stored numbers, `"float32"` or `"float16"`.
        part_size: pictures per file; None: a sixteenth of them, but 256 to 4096, and fewer if they
            would take more than 64 MiB. An interruption loses the part that is not complete.
        threads: that read and decode, in each process; None: one per processor, 32 for URLs.
        column: of the Parquet file with paths or URLs.
        retry_errors: whether pictures whose rows have an error are tried again.
        options: of `from_preset`, where `model` is a name.
        name: by which `search` loads the model again; None: the preset that it came from.
        progress: a function of (iterable of parts, how many) that yields them and shows progress.

    Raises:
        ValueError: there is no picture; `out` holds embeddings of another model, source or kind; a
            number is not positive.
        OSError: `out` cannot be written to, or the disk is full. What is complete stays.
        BlockingIOError: another process writes to `out`.
        ImportError: pyarrow or Ray is not installed.
    """
    pyarrow()  # raises now, not after the work
    _check(batch_size=batch_size, top=top, part_size=part_size, workers=workers, threads=threads)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}. Received: {dtype!r}")
    sources = find(source, column)
    if not isinstance(model, ImageClassifier):
        name = name or str(model)
        model = from_preset(model, **(options or {}))
    name = name or model.preset
    if name and pathlib.Path(name).exists():
        name = str(pathlib.Path(name).resolve())
    output = Output(model, what, batch_size, top)
    manifest = Manifest(
        what=what,
        shape=output.shape,
        dtype=dtype,
        model=fingerprint(model),
        root=sources.root,
        preset=name,
        options=options or {},
    )
    with _opened(out, manifest) as shards:
        size = part_size or _part_size(manifest, len(sources.pictures), workers or 1)
        parts, errors = planned(sources.pictures, shards, size), shards.errors()
        if retry_errors:
            parts, errors = [*again(sources.pictures, errors), *parts], {}
        if workers is None:
            results = write_parts(parts, output, shards, threads)
        else:
            from keras_vit.scale import on_ray

            settings = on_ray.Settings(what, batch_size, top, workers, threads)
            results = on_ray.write_parts(parts, model, shards, settings)
        with contextlib.closing(results):  # its threads, or Ray, end even if the progress fails
            done = _collected(progress(results, len(parts)) if progress else results, parts)
    before = len(sources.pictures) - sum(len(part.pictures) for part in parts)
    left = [(p.path, errors[p.path][1]) for p in sources.pictures if p.path in errors]
    examples = [*(example for one in done for example in one.examples), *left][:LISTED]
    broken = len(left) + sum(one.broken for one in done)
    return Embedded(pathlib.Path(out), len(sources.pictures), before, broken, examples)


def _check(**numbers: int | None) -> None:
    """Raise a ValueError unless these are positive whole numbers, or None."""
    for name, value in numbers.items():
        if value is not None:
            count(value, name, 1, MANY)


@contextlib.contextmanager
def _opened(out: Path, manifest: Manifest) -> Iterator[Shards]:
    """The folder's shards, which no other process writes to meanwhile."""
    folder = pathlib.Path(out)
    with atomic.making(folder), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(atomic.locked(folder / LOCK))
        except BlockingIOError:
            raise BlockingIOError(f"Another process embeds into {str(out)!r}.") from None
        try:
            yield prepared(folder, manifest)
        finally:
            if not any(path.name != LOCK for path in folder.iterdir()):
                (folder / LOCK).unlink(missing_ok=True)


def _collected(results: Iterable[Done], parts: list) -> list[Done]:
    """All results; if something stops them, its error says how to continue."""
    done: list[Done] = []
    try:
        for one in results:
            done.append(one)
    except BaseException as error:
        text = f"{len(done)} of {len(parts)} parts are complete: run the same again to continue."
        error.add_note(text)
        raise
    if len(done) < len(parts):
        raise RuntimeError(f"Only {len(done)} of {len(parts)} parts are complete. Run it again.")
    return done


def _part_size(manifest: Manifest, pictures: int, workers: int) -> int:
    """Pictures per part: few enough for memory, for all workers to have some, and for an
    interruption to cost little."""
    number = 4 if manifest.dtype == "float32" else 2
    fit = BYTES // (int(np.prod(manifest.shape)) * number)
    share = -(-pictures // (4 * workers)) if workers > 1 else max(LEAST, -(-pictures // PARTS))
    return max(1, min(MOST, fit, share))

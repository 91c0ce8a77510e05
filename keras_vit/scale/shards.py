"""The output of `embed`: a folder of Parquet files, and a manifest that says what is in them."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_vit import atomic
from keras_vit.scale.arrow import pyarrow
from keras_vit.types import Path

MANIFEST, LOCK = "embedding.json", ".lock"
NAME = re.compile(r"part-(\d{6,})\.parquet")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the shards of a folder hold.

    Attributes:
        what: `"features"`, `"classes"` or `"tokens"`.
        shape: of one embedding: `[D]`, or `[N, D]` for tokens; `[top]` for classes.
        dtype: of the numbers: `"float32"` or `"float16"`.
        model: the model's fingerprint.
        root: what the paths are relative to, `""`: to nothing.
        preset: where the model came from, or None; `search` loads it again.
        options: of `from_preset`.
    """

    what: str
    shape: list[int]
    dtype: str
    model: str
    root: str
    preset: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def differences(self, other: "Manifest") -> Iterator[str]:
        """What makes rows of two manifests not comparable, in words."""
        names = {"what": "content", "shape": "shape", "dtype": "dtype", "root": "source"}
        for field, name in names.items():
            mine, wanted = getattr(self, field), getattr(other, field)
            if mine != wanted:
                yield f"the {name} {mine!r}, not {wanted!r}"
        if self.model != other.model:
            yield f"another model ({self.preset or self.model[:12]})"


class Row(NamedTuple):
    """A picture's row: its value is an array, or pairs of (class, probability); None: `error` says
    why."""

    path: str
    value: Any
    error: str | None = None


class Shards:
    """A folder that receives parts.

    Args:
        folder: it exists and has a manifest.

    Raises:
        FileNotFoundError: it has none.
        ValueError: the manifest is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = pathlib.Path(folder)
        try:
            text = (self.folder / MANIFEST).read_text("utf-8")
            self.manifest = Manifest(**json.loads(text))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{str(folder)!r} has no {MANIFEST}: it is no folder that `embed` wrote."
            ) from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{str(self.folder / MANIFEST)!r} is damaged: {error}") from error

    def parts(self) -> dict[int, pathlib.Path]:
        """The finished parts, by number."""
        found = ((NAME.fullmatch(p.name), p) for p in sorted(self.folder.iterdir()))
        return dict(sorted((int(match[1]), path) for match, path in found if match))

    def paths(self) -> set[str]:
        """The paths of all rows."""
        return {path for part in self.parts().values() for path in column(part, "path")}

    def errors(self) -> dict[str, tuple[int, str]]:
        """Rows without a value: {path: (number of its part, error)}."""
        found: dict[str, tuple[int, str]] = {}
        for number, part in self.parts().items():
            read = _read(part, ["path", "error"])
            pairs = zip(read["path"].to_pylist(), read["error"].to_pylist(), strict=True)
            found |= {path: (number, error) for path, error in pairs if error is not None}
        return found

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Write one part; it appears when it is complete. Of a part that is there already, only
        the rows of the same paths are replaced.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        _, parquet = pyarrow()
        part = self.folder / f"part-{number:06d}.parquet"
        made = table(self.manifest, rows)
        if part.exists():
            made = _replaced(_read(part, made.column_names), made)
        with atomic.replacing(part) as new:
            parquet.write_table(made, new, compression="zstd")


def prepared(folder: Path, manifest: Manifest) -> Shards:
    """The shards of a folder for that manifest, which is written if the folder has none.

    Raises:
        ValueError: the folder holds something else.
    """
    folder = pathlib.Path(folder)
    if not (folder / MANIFEST).exists():
        if any(NAME.fullmatch(path.name) for path in folder.iterdir()):
            raise ValueError(
                f"{str(folder)!r} has Parquet parts but no {MANIFEST} that says of which model. "
                "Choose another folder."
            )
        with atomic.replacing(folder / MANIFEST) as new:
            new.write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n", "utf-8")
    shards = Shards(folder)
    differences = list(shards.manifest.differences(manifest))
    if differences:
        raise ValueError(
            f"{str(folder)!r} already holds embeddings with {' and '.join(differences)}. Choose "
            "another folder, or delete this one."
        )
    return shards


def table(manifest: Manifest, rows: Sequence[Row]) -> Any:
    """A pyarrow table: path, then embedding or classes and probabilities, then error."""
    pa, _ = pyarrow()
    columns = {"path": pa.array([row.path for row in rows], pa.string())}
    if manifest.what == "classes":
        names = [row.value and [name for name, _ in row.value] for row in rows]
        numbers = [row.value and [p for _, p in row.value] for row in rows]
        columns["classes"] = pa.array(names, pa.list_(pa.string()))
        columns["probabilities"] = pa.array(numbers, pa.list_(pa.float32()))
    else:
        columns["embedding"] = _vectors(manifest, rows)
    columns["error"] = pa.array([row.error for row in rows], pa.string())
    made = pa.table(columns)
    return made.replace_schema_metadata({"keras_vit": json.dumps(dataclasses.asdict(manifest))})


def _replaced(old, new):
    """A part's table, with the rows of another in place of those of the same path."""
    pa, _ = pyarrow()
    places = {path: i for i, path in enumerate(new["path"].to_pylist())}
    kept = range(len(new), len(new) + len(old))
    order = map(places.get, old["path"].to_pylist(), kept)
    same = old.cast(new.schema)  # another program may have written it
    return pa.concat_tables([new, same]).take(list(order))


def _vectors(manifest, rows):
    """A fixed-size list for each row, null where there is an error."""
    pa, _ = pyarrow()
    width = int(np.prod(manifest.shape))
    values = np.zeros((len(rows), width), manifest.dtype)
    try:
        with np.errstate(over="raise"):
            for i, row in enumerate(rows):
                if row.value is not None:
                    values[i] = np.ravel(row.value)
    except FloatingPointError:
        raise ValueError(
            f"An embedding does not fit into {manifest.dtype}. Choose another folder and float32."
        ) from None
    missing = pa.array([row.value is None for row in rows])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width, mask=missing)


def column(part: pathlib.Path, name: str) -> list[Any]:
    """A column of a part, as Python values."""
    return _read(part, [name])[name].to_pylist()


def embeddings(part: pathlib.Path) -> tuple[list[str], np.ndarray]:
    """The paths and embeddings, `(B, D)` as stored, of a part's rows without an error."""
    read = _read(part, ["path", "embedding", "error"])
    rows = read["embedding"].combine_chunks().drop_null()  # pandas writes lists of any size
    flat = rows.flatten().to_numpy(zero_copy_only=False)
    pairs = zip(read["path"].to_pylist(), read["error"].to_pylist(), strict=True)
    vectors = flat.reshape(len(rows), len(flat) // max(1, len(rows)))
    return [path for path, error in pairs if error is None], vectors


def _read(part, columns):
    pa, parquet = pyarrow()
    try:
        return parquet.read_table(part, columns=columns)
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(
            f"{str(part)!r} is damaged: {error}. Delete it and run again: its rows are made anew."
        ) from error

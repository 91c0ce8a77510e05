"""Where pictures come from: folders, lists, WebDataset shards, Parquet files of paths or URLs."""

import glob
import http.client
import io
import os
import pathlib
import string
import tarfile
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from keras_vit.pixels import picture_endings, picture_files
from keras_vit.scale.arrow import pyarrow
from keras_vit.types import Path
from keras_vit.version import __version__

Source: TypeAlias = Path | Sequence[Path]
SCHEMES = ("http://", "https://")
COLUMNS = ("path", "url", "image_url", "file_name", "image")  # that a Parquet file may have
TIMEOUT = 20  # seconds without an answer
TRIES = 3
PAUSE = 0.5  # seconds after the first failure
LARGEST = 1 << 28  # bytes of a download


class Picture(NamedTuple):
    """Where the bytes of one picture are.

    Attributes:
        path: what the rows of the output call it: relative to the source's root, or a URL.
        place: the file or the URL.
        start, size: the part of a `.tar` file that it takes, in bytes; -1: all of the file.
    """

    path: str
    place: str
    start: int = 0
    size: int = -1

    def read(self, stopped: threading.Event | None = None) -> bytes:
        """Its bytes.

        Args:
            stopped: once set, a server is not asked again.

        Raises:
            OSError: there is no such file, or no answer from the server.
            ValueError: the archive ends before the picture does.
        """
        if self.place.startswith(SCHEMES):
            return _download(self.place, stopped or threading.Event())
        with open(self.place, "rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ValueError(f"{self.path!r} is cut off after {len(data)} of {self.size} bytes.")
        return data

    def opened(self, stopped: threading.Event | None = None) -> io.BytesIO:
        """As `read`, as a file, which errors call by its path."""
        return _Named(self.read(stopped), self.path)


class Pictures(NamedTuple):
    """The pictures of a source, each once, in order; `root` is what their paths are relative to,
    `""` if they are not."""

    pictures: list[Picture]
    root: str


class _Named(io.BytesIO):
    def __init__(self, data, name):
        super().__init__(data)
        self.called = name

    def __repr__(self):
        return repr(self.called)


def find(source: Source, column: str | None = None) -> Pictures:
    """The pictures of a source.

    Args:
        source: a folder, which is searched for pictures by their extension, and if it has none for
            `.tar` files; a `.tar` file (WebDataset) or a pattern of these (`"shards/*.tar"`); a
            `.parquet` file with a column of paths or URLs; or a list of paths, URLs, `.tar` files.
        column: of the Parquet file; None: the first one named path, url, image_url, file_name or
            image.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it has no pictures; the archive is compressed or none; the column is not there.
    """
    if isinstance(source, (list, tuple)):
        found = Pictures(list(_listed(source)), "")
    elif str(source).startswith(SCHEMES):
        found = Pictures([Picture(str(source), str(source))], "")
    else:
        found = _on_disk(pathlib.Path(os.fspath(source)), column)  # type: ignore[arg-type]
    if not found.pictures:
        raise ValueError(f"There is no picture in {_text(source)!r}.")
    once = {picture.path: picture for picture in found.pictures}
    return Pictures(list(once.values()), found.root)


def _on_disk(path: pathlib.Path, column: str | None) -> Pictures:
    if path.is_dir():
        root = path.resolve()
        files = picture_files(root)
        if not files:
            return _archives(sorted(root.glob("*.tar")), root)
        return Pictures([Picture(_relative(f, root), str(f)) for f in files], str(root))
    if not path.exists():
        shards = sorted(glob.glob(str(path), recursive=True))
        if shards and all(name.endswith(".tar") for name in shards):
            files = [pathlib.Path(name).resolve() for name in shards]
            return _archives(files, pathlib.Path(os.path.commonpath([f.parent for f in files])))
        raise FileNotFoundError(f"There is no {str(path)!r} to read pictures from.")
    root = path.resolve().parent
    if path.suffix == ".tar":
        return _archives([path.resolve()], root)
    if path.suffix == ".parquet":
        return Pictures([_row(name, root) for name in _column(path, column)], str(root))
    return Pictures([Picture(path.name, str(path.resolve()))], str(root))


def _listed(source: Iterable[Path]) -> Iterator[Picture]:
    for item in source:
        place = os.fspath(item)
        if place.endswith(".tar") and not place.startswith(SCHEMES):
            yield from _members(pathlib.Path(place), _text(place))
        else:
            yield Picture(_text(place), place)


def _archives(files: Sequence[pathlib.Path], root: pathlib.Path) -> Pictures:
    found = [picture for file in files for picture in _members(file, _relative(file, root))]
    return Pictures(found, str(root))


def _members(path: pathlib.Path, name: str) -> Iterator[Picture]:
    """The pictures of a `.tar` file, in its order. One that is cut off has those before the cut."""
    endings, count = picture_endings(), 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                inside, count = pathlib.PurePosixPath(member.name), count + 1
                if not member.isfile() or inside.name.startswith("."):
                    continue
                if inside.suffix.lower() in endings:
                    whole = f"{name}/{_text(member.name.removeprefix('./'))}"
                    yield Picture(whole, str(path), member.offset_data, member.size)
    except tarfile.TarError as error:
        if not count:
            raise ValueError(
                f"{str(path)!r} is not a .tar file without compression: {error}."
            ) from error
        warnings.warn(f"{str(path)!r} is damaged after {count} entries: {error}.", stacklevel=2)


def _column(path: pathlib.Path, column: str | None) -> list[str]:
    """The paths or URLs in a Parquet file."""
    pa, parquet = pyarrow()
    try:
        names = parquet.read_schema(path).names
        column = column or next((name for name in COLUMNS if name in names), None)
        if column not in names:
            raise ValueError(
                f"{str(path)!r} has no column {column or ' or '.join(COLUMNS)}. Its columns are "
                f"{', '.join(names)}."
            )
        values = parquet.read_table(path, columns=[column])[column].to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"{str(path)!r} is not a Parquet file: {error}") from error
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"The column {column} of {str(path)!r} must have a text in each row.")
    return values


def _row(name: str, root: pathlib.Path) -> Picture:
    return Picture(name, name if name.startswith(SCHEMES) else str(root / name))


def _relative(path: pathlib.Path, root: pathlib.Path) -> str:
    return _text(path.relative_to(root).as_posix())


def _text(path: object) -> str:
    """A path as Unicode: bytes that are not become escapes, as Parquet could not store them."""
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")


def _download(url: str, stopped: threading.Event) -> bytes:
    """What a server answers; after three failures, or if it refuses, an OSError."""
    plain = urllib.parse.quote(url, safe=string.punctuation)  # spaces and letters with accents
    request = urllib.request.Request(plain, headers={"User-Agent": f"keras-vit/{__version__}"})
    for trial in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                data = answer.read(LARGEST + 1)
                if answer.length and len(data) <= LARGEST:
                    raise http.client.IncompleteRead(data, answer.length)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 or trial == TRIES - 1:
                raise OSError(f"{url}: the server answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            if trial == TRIES - 1:
                incomplete = isinstance(error, http.client.IncompleteRead)
                why = "the answer is cut off" if incomplete else getattr(error, "reason", error)
                raise OSError(f"{url} cannot be downloaded: {why}") from None
        else:
            if len(data) > LARGEST:
                raise OSError(f"{url} has more than {LARGEST >> 20} MiB.")
            return data
        if stopped.wait(PAUSE * 2**trial):
            break
    raise OSError(f"{url}: stopped before it could be downloaded")

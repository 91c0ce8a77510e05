"""Files of the Hugging Face Hub or of a directory.

huggingface_hub does the transfer: cache, locks between processes, progress bar, resuming, retries.
"""

import hashlib
import json
import os
import pathlib
import re
import time
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors

from keras_vit.hub_errors import DamagedError, MissingFile, NotCached, explain, missing, transient
from keras_vit.hub_errors import HubError as HubError  # public here, too
from keras_vit.hub_waiting import Limits, limited
from keras_vit.tensor_files import lfs_pointer, read_safetensors
from keras_vit.text import printable
from keras_vit.types import Path
from keras_vit.weights import Tensor, WeightsError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
WAITS = (1, 4)  # seconds before the second and the third attempt


class Repository:
    """A directory, or a repository on the Hub, as a source of files.

    The first file pins the commit: all files come from the same one, even if someone pushes
    meanwhile. Cached files need no network. The environment variable HF_ENDPOINT sets a mirror.

    Args:
        name: a directory, or `org/name`, optionally as `hf://org/name@revision`.
        revision: a branch, tag or commit; by default `main`.
        token: an access token; None: the one that `hf auth login` stored.
        cache_dir: where downloads are kept; by default huggingface_hub's cache.
        local_files_only: use cached files only.
    """

    def __init__(
        self,
        name: Path,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | None = None,
        local_files_only: bool = False,
    ):
        name = str(name)
        self.directory = None if name.startswith("hf://") else pathlib.Path(name)
        if self.directory is not None and not self.directory.is_dir():
            self.directory = None
        self.id, _, suffix = name.removeprefix("hf://").partition("@")
        if self.directory is None and suffix and revision and suffix != revision:
            raise ValueError(
                f"The name says revision {suffix!r}, the argument {revision!r}. Give one of them."
            )
        self.revision = suffix or revision
        self.local_files_only = local_files_only
        self._missing: set[str] = set()
        self.options: dict[str, Any] = {
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }

    def __str__(self):
        return str(self.directory) if self.directory is not None else self.id

    @property
    def commit(self) -> str | None:
        """The commit that the files come from; None for a directory, or before the first file."""
        if self.directory is None and re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            return self.revision
        return None

    @property
    def uri(self) -> str:
        """The directory, or `hf://org/name@commit`, which gives the same files again."""
        if self.directory is not None:
            return str(self.directory)
        return f"hf://{self.id}" + (f"@{self.revision}" if self.revision else "")

    def file(self, filename: str) -> pathlib.Path:
        """The local path of a file, which is downloaded unless it is in the cache.

        Raises:
            MissingFile: there is no such file.
            HubError: the file cannot be downloaded.
        """
        if self.directory is not None:
            path = self.directory / filename
            if not path.is_file():
                raise MissingFile(f"{self.directory} has no file {filename}. {self._holds()}")
            return path
        path = pathlib.Path(self._ask(filename))
        self.revision = snapshot_of(path).name
        return path

    def find(self, filename: str) -> pathlib.Path | None:
        """Like `file`, but None if there is no such file."""
        try:
            return self.file(filename)
        except MissingFile:
            return None

    def has(self, filename: str) -> bool:
        """Whether the file exists; nothing is downloaded."""
        if self.directory is not None:
            return (self.directory / filename).is_file()
        try:
            self._ask(filename, dry_run=True)
        except (MissingFile, NotCached):
            return False
        return True

    def json(self, filename: str) -> dict[str, Any]:
        """The content of a JSON file.

        Raises:
            ValueError: the file is not JSON, or holds no object.
        """
        path = self.file(filename)
        try:
            value = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            said = f"{path} is not valid JSON: {error}. {self._again(path)}"
            raise ValueError(lfs_pointer(path) or said) from error
        if not isinstance(value, dict):
            raise ValueError(f"{path} must hold a JSON object. Received: {type(value).__name__}")
        return value

    def safetensors(self, filename: str) -> dict[str, Tensor]:
        """The tensors of one safetensors file, by key.

        Raises:
            MissingFile: there is no such file.
            WeightsError: the file is truncated or corrupt.
        """
        path = self.file(filename)
        return read_safetensors(path, self._again(path))

    def beside(self, name: Path, revision: str | None = None) -> "Repository":
        """Another repository, with this one's token and cache."""
        return Repository(name, revision, **self.options)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of model.safetensors, or of its shards, by key.

        Raises:
            MissingFile: there is no safetensors file; pickles are never opened.
            WeightsError: a file is truncated or corrupt.
        """
        try:
            path = self.find(WEIGHTS)
        except NotCached:  # another tool may have filled the cache, with index and shards alone
            if not self._cached(INDEX):
                raise
            path = None
        if path is not None:
            return read_safetensors(path, self._again(path))
        if self.find(INDEX) is not None:
            return self._shards()
        pickles = [name for name in PICKLES if self.has(name)]
        if pickles:
            raise MissingFile(
                f"{self} has its weights only in {pickles[0]}, not in {WEIGHTS}. Opening such a "
                "file can run arbitrary code, so it is refused. Convert it, for example with "
                "https://huggingface.co/spaces/safetensors/convert, or ask its owner to."
            )
        if self.directory is None:
            raise missing(WEIGHTS, self.id, self.revision)
        raise MissingFile(
            f"{self.directory} has no file {WEIGHTS} with the weights. {self._holds()}"
        )

    def _holds(self):
        names = sorted(path.name for path in self.directory.iterdir())
        return f"It contains: {printable(', '.join(names[:12])) or 'nothing'}."

    def _shards(self):
        shards = self.json(INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise WeightsError(f"{INDEX} of {self} has no weight_map from tensor names to files.")
        tensors = {}
        for shard in sorted(set(shards.values())):
            if pathlib.PurePath(shard).name != shard:
                raise WeightsError(f"{INDEX} of {self} names a file outside of it: {shard!r}")
            path = self.file(shard)
            tensors |= read_safetensors(path, self._again(path))
        return tensors

    def _ask(self, filename, **options):
        """`hf_hub_download`, with retries where it has none: a 5xx, a reset or damage during a
        download."""
        # A 404 may have been a passing one: the cache's note of it counts only without a network.
        if filename in self._missing or (self._offline and self._cached(filename) is False):
            raise missing(filename, self.id, self.revision)
        options, limits = {**self.options, **options}, Limits()
        for wait in (*WAITS, None):
            try:
                before = self._cached(filename)
                with limited(limits):
                    path = huggingface_hub.hf_hub_download(
                        self.id, filename, revision=self.revision, **options
                    )
                if isinstance(path, str) and path != before:
                    check_download(pathlib.Path(path))
                return path
            except Exception as error:
                if wait is None or not transient(error):
                    raise self._explain(error, filename) from error
            time.sleep(wait)

    @property
    def _offline(self):
        return self.options["local_files_only"] or constants.is_offline_mode()

    def _explain(self, error, filename):
        found = explain(error, filename, self.id, self.revision, self.local_files_only)
        if isinstance(error, errors.RemoteEntryNotFoundError):  # a 404 names the commit, too
            commit = error.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
            self.revision = commit or self.revision
            self._missing.add(filename)
        if isinstance(found, NotCached):
            self.options["local_files_only"] = True  # it is out of reach: do not wait again
            if self._cached(filename) is False:
                return missing(filename, self.id, self.revision)
        return found

    def _cached(self, filename):
        """A file's path in the cache; False: known not to exist; None: unknown."""
        found = huggingface_hub.try_to_load_from_cache(
            self.id, filename, self.options["cache_dir"], self.revision
        )
        return False if found is huggingface_hub._CACHED_NO_EXIST else found

    def _again(self, path):
        """What to do about a damaged file. Snapshots are links to the file to delete."""
        if self.directory is not None:
            return "Copy or save it again."
        path, file = pathlib.Path(path), pathlib.Path(path).resolve()
        inside = file.is_relative_to(snapshot_of(path).parents[1].resolve())
        named = printable(file if inside else path)
        return f"Delete {named} and load again: it will be downloaded again."


def snapshot_of(path: pathlib.Path) -> pathlib.Path:
    """The folder of the cache that has a file, and is named for its commit."""
    return next(folder for folder in path.parents if folder.parent.name == "snapshots")


def check_download(path: pathlib.Path) -> None:
    """Compare a large file, just downloaded, with its hash; note that it exists.

    The ETag of such a file, by which the cache names it, is its sha256. That takes 0.25 s for a
    ViT-B of 350 MB; the environment variable KERAS_VIT_CHECK_DOWNLOADS=0 turns it off.

    Raises:
        DamagedError: they differ; the file is deleted.
    """
    snapshot = snapshot_of(path)
    # huggingface_hub may have noted that there is no such file.
    note = snapshot.parents[1] / ".no_exist" / snapshot.name / path.relative_to(snapshot)
    note.unlink(missing_ok=True)
    file = path.resolve()
    wanted = os.environ.get("KERAS_VIT_CHECK_DOWNLOADS", "1") != "0"
    if wanted and re.fullmatch("[0-9a-f]{64}", file.name):
        with open(file, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != file.name:
            path.unlink()
            file.unlink(missing_ok=True)
            raise DamagedError(path.name)

"""One file down from the Hugging Face Hub, and safetensors into named tensors.

The transfer is huggingface_hub's: cache, locks between processes, progress bar, resuming, waits.
"""

import functools
import json
import pathlib
import re
import time

import huggingface_hub
import ml_dtypes  # noqa: F401  teaches numpy the name "bfloat16", which safetensors asks for
import numpy as np
import safetensors
from huggingface_hub import constants, errors

from keras_vit.hub_errors import HubError as HubError  # part of what this module offers
from keras_vit.hub_errors import MissingFile, NotCached, explain, missing, transient
from keras_vit.weights import Tensor, WeightsError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
WAITS = (1, 4)  # seconds before the second and the third attempt


class Repository:
    """A directory, or a repository of the Hub, as a place to take files from.

    The first file pins the commit: all files come from the same one, whatever is pushed meanwhile.
    What was taken once is there without a network. The environment variable HF_ENDPOINT names a
    mirror of the Hub.

    Args:
        name: a directory, or `org/name`, with `hf://` before and `@revision` behind it if you like.
        revision: a branch, a tag or a commit; the Hub's `main` by default.
        token: a token, or None for the one that `hf auth login` stored.
        cache_dir: where files are kept; huggingface_hub's cache by default.
        local_files_only: take files from the cache only.
    """

    def __init__(self, name, revision=None, token=None, cache_dir=None, local_files_only=False):
        name = str(name)
        self.directory = None if name.startswith("hf://") else pathlib.Path(name)
        if self.directory is not None and not self.directory.is_dir():
            self.directory = None
        self.id, _, suffix = name.removeprefix("hf://").partition("@")
        if self.directory is None and suffix and revision and suffix != revision:
            raise ValueError(
                f"Two revisions were asked for: {suffix!r} in the name and {revision!r}. "
                "Say one of them."
            )
        self.revision = suffix or revision
        self.local_files_only = local_files_only
        self.options = {
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }

    def __str__(self):
        return str(self.directory) if self.directory is not None else self.id

    @property
    def commit(self):
        """The commit that the files come from; None for a directory, or before the first file."""
        if self.directory is None and re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            return self.revision
        return None

    @property
    def uri(self):
        """The directory, or `hf://org/name@commit`, which asks for the very same files again."""
        if self.directory is not None:
            return str(self.directory)
        return f"hf://{self.id}" + (f"@{self.revision}" if self.revision else "")

    def file(self, filename):
        """The local path of a file, downloaded if it is not in the cache yet.

        Raises:
            MissingFile: there is no such file.
            HubError: any other reason why the file cannot be had.
        """
        if self.directory is not None:
            path = self.directory / filename
            if not path.is_file():
                raise MissingFile(f"{self.directory} has no file {filename}. {self._holds()}")
            return path
        path = pathlib.Path(self._ask(filename))
        snapshot = path.parents[len(pathlib.PurePath(filename).parts) - 1]
        if snapshot.parent.name == "snapshots":
            self.revision = snapshot.name
        return path

    def find(self, filename):
        """As `file`, but None where there is no such file."""
        try:
            return self.file(filename)
        except MissingFile:
            return None

    def has(self, filename):
        """Whether the file is there; nothing is downloaded."""
        if self.directory is not None:
            return (self.directory / filename).is_file()
        try:
            self._ask(filename, dry_run=True)
        except (MissingFile, NotCached):
            return False
        return True

    def json(self, filename):
        """A JSON file as a dict.

        Raises:
            ValueError: the file is not JSON, or not an object.
        """
        path = self.file(filename)
        try:
            value = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}. {self._again(path)}") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path} must hold a JSON object. Received: {type(value).__name__}")
        return value

    def tensors(self):
        """The tensors of model.safetensors, or of its shards: a dict of `Tensor`.

        Raises:
            MissingFile: there is no safetensors file; a pickle is never opened.
            WeightsError: a file that is cut off or corrupt.
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
                f"{self} holds its weights in {pickles[0]} only, not in {WEIGHTS}. Such a file "
                "can run any code when it is opened, so it is refused. Convert it, for instance by "
                "https://huggingface.co/spaces/safetensors/convert, or ask its owner to."
            )
        if self.directory is None:
            raise missing(WEIGHTS, self.id, self.revision)
        raise MissingFile(
            f"{self.directory} has no file {WEIGHTS}, where the weights should be. {self._holds()}"
        )

    def _holds(self):
        names = sorted(path.name for path in self.directory.iterdir())
        return f"It holds: {', '.join(names[:12]) or 'nothing'}."

    def _shards(self):
        shards = self.json(INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise WeightsError(f"{INDEX} of {self} has no weight_map from keys to file names.")
        tensors = {}
        for shard in sorted(set(shards.values())):
            if pathlib.PurePath(shard).name != shard:
                raise WeightsError(f"{INDEX} of {self} names a file outside of it: {shard!r}")
            path = self.file(shard)
            tensors |= read_safetensors(path, self._again(path))
        return tensors

    def _ask(self, filename, **options):
        """`hf_hub_download`; a 5xx or a reset amid a download, where it gives up, is retried."""
        if self.commit and self._cached(filename) is False:  # no need to ask: commits do not change
            raise missing(filename, self.id, self.revision)
        options = {**self.options, **options}
        for wait in (*WAITS, None):
            try:
                return huggingface_hub.hf_hub_download(
                    self.id, filename, revision=self.revision, **options
                )
            except Exception as error:
                if wait is None or not transient(error):
                    raise self._explain(error, filename) from error
            time.sleep(wait)

    def _explain(self, error, filename):
        found = explain(error, filename, self.id, self.revision, self.local_files_only)
        if isinstance(error, errors.RemoteEntryNotFoundError):  # this, too, says the commit
            commit = error.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
            self.revision = commit or self.revision
        if isinstance(found, NotCached) and self._cached(filename) is False:
            return missing(filename, self.id, self.revision)
        return found

    def _cached(self, filename):
        """A file's path in the cache; False: there is known to be no such file; None: unknown."""
        found = huggingface_hub.try_to_load_from_cache(
            self.id, filename, self.options["cache_dir"], self.revision
        )
        return False if found is huggingface_hub._CACHED_NO_EXIST else found

    def _again(self, path):
        """What to do with a damaged file. The cache's links lead to the file that must go."""
        if self.directory is not None:
            return "Copy or save it again."
        return f"Delete {pathlib.Path(path).resolve()} and load again: it is then downloaded anew."


def read_safetensors(path, advice=""):
    """The tensors of a safetensors file as a dict of `Tensor`; nothing but the header is read yet.

    Args:
        path: the file.
        advice: what to do if it is damaged; goes into the error.

    Raises:
        WeightsError: the file is cut off, or not a safetensors file.
    """

    def read(key, rows=slice(None)):
        # Opened for each part: pages of one long mapping would count as this process's memory.
        with safetensors.safe_open(path, framework="numpy") as file:
            part = file.get_slice(key)
            array = part[rows] if part.get_shape() else file.get_tensor(key)
        if array.dtype.kind not in "fV":
            raise WeightsError(f"{key} of {path} holds {array.dtype}, not floating-point numbers.")
        return array if array.dtype in ("float32", "float64") else array.astype("float32")

    def tensor(file, key):
        part = functools.partial(read, key)
        return Tensor(tuple(file.get_slice(key).get_shape()), part, part)

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {key: tensor(file, key) for key in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, MemoryError) as error:
        raise WeightsError(
            f"{path} is not a complete safetensors file ({error}). {advice}".rstrip()
        ) from error


def write_safetensors(path, tensors):
    """Write a dict of `Tensor` to a safetensors file, as float32, by way of a file beside it."""
    from safetensors.numpy import save_file

    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    arrays = {key: np.ascontiguousarray(t.read(), dtype="float32") for key, t in tensors.items()}
    save_file(arrays, partial, metadata={"format": "pt"})
    partial.replace(path)

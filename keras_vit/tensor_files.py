"""safetensors files as named tensors, and the reverse."""

import functools
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy the name "bfloat16", which safetensors asks for
import numpy as np
import safetensors

from keras_vit import atomic
from keras_vit.text import printable
from keras_vit.types import Path
from keras_vit.weights import Tensor, WeightsError

LFS = b"version https://git-lfs.github.com/spec/"  # how a pointer begins


def read_safetensors(path: Path, advice: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file, by key; only its header is read now.

    Args:
        path: the file.
        advice: what to do if it is damaged, for the error message.

    Raises:
        WeightsError: the file is truncated, or not a safetensors file.
    """

    def read(key: str, rows: slice = slice(None)) -> np.ndarray:
        # Opened for each part: the pages of one long mapping would count as this process's memory.
        with safetensors.safe_open(path, framework="numpy") as file:
            part = file.get_slice(key)
            array = part[rows] if part.get_shape() else file.get_tensor(key)
        if array.dtype.kind not in "fV":
            name = printable(key)
            raise WeightsError(f"{name} of {path} holds {array.dtype}, not floating-point numbers.")
        return array if array.dtype in ("float32", "float64") else array.astype("float32")

    def tensor(file: Any, key: str) -> Tensor:
        part = functools.partial(read, key)
        return Tensor(tuple(file.get_slice(key).get_shape()), part, part)

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {key: tensor(file, key) for key in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, MemoryError) as error:
        raise damaged(path, "safetensors file", error, advice) from error


def damaged(path: Path, kind: str, error: Exception, advice: str) -> WeightsError:
    """The error for a file that cannot be read.

    Args:
        path: the file.
        kind: what it should be.
        error: why it is not.
        advice: what to do.
    """
    pointer = lfs_pointer(path)
    if pointer:
        return WeightsError(pointer)
    said = f"{path} is not a complete {kind} ({printable(error)}). {advice}"
    return WeightsError(said.rstrip())


def lfs_pointer(path: Path) -> str:
    """What to say of a file that is a Git LFS pointer (https://git-lfs.com); empty: it is none."""
    try:
        with open(path, "rb") as file:
            found = file.read(len(LFS)) == LFS
    except OSError:
        return ""
    if not found:
        return ""
    return (
        f"{path} is a Git LFS pointer, a text of three lines in the place of the file: the "
        "repository was cloned without Git LFS. Run `git lfs pull` in its folder, or load it from "
        "the Hub."
    )


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file, as float32; the file is replaced only when complete."""
    from safetensors.numpy import save_file

    arrays = {key: np.ascontiguousarray(t.read(), dtype="float32") for key, t in tensors.items()}
    with atomic.replacing(path) as new:
        save_file(arrays, new, metadata={"format": "pt"})

"""`.npz` files as named tensors, without pickles."""

import contextlib
import functools
import math
import os
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy the name "bfloat16"
import numpy as np

from keras_vit.tensor_files import damaged
from keras_vit.text import printable
from keras_vit.types import Path
from keras_vit.weights import Tensor, WeightsError

RATIO = 10  # of compression: trained weights are noise, but a head of zeros may be among them
HEADERS: dict[tuple[int, int], Callable[[Any], tuple]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of an `.npz` file by name, without the optimizer's.

    Only the arrays' headers are read now. Pickled objects are never opened.

    Raises:
        WeightsError: the file is damaged, or has arrays that are not floating-point.
    """
    with _naming(path), zipfile.ZipFile(path) as archive:
        _check_size(path, archive)
        found = {
            i.filename.removesuffix(".npy"): _array(path, archive, i) for i in archive.filelist
        }
    for prefix in ("opt/target/", "params/"):
        if any(key.startswith(prefix) for key in found):
            return {k.removeprefix(prefix): t for k, t in found.items() if k.startswith(prefix)}
    return found


def _check_size(path, archive):
    """Refuse an archive that asks for more memory than trained weights of its size may need."""
    held = os.path.getsize(path)
    asked = sum(info.file_size for info in archive.filelist)
    if asked > RATIO * held + (1 << 20):
        raise WeightsError(
            f"{path} of {held:,} bytes holds arrays of {asked:,} bytes, more than weights can be "
            "compressed to."
        )


@contextlib.contextmanager
def _naming(path):
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # a damaged zip fails in zipfile, zlib, numpy or the header's parser
        raise damaged(path, ".npz file", error, "Copy it again.") from error


def _array(path, archive, info):
    with archive.open(info) as file:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    if dtype.kind != "f" and dtype != "V2":
        raise WeightsError(f"{printable(info.filename)} of {path} is {dtype}, not floating-point.")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > info.file_size:
        raise WeightsError(f"{printable(info.filename)} of {path} is truncated. Copy it again.")
    return Tensor(shape, functools.partial(_read, path, info.filename))


def _read(path, name):
    with _naming(path), np.load(path, allow_pickle=False) as file:
        array = file[name.removesuffix(".npy")]
    if array.dtype == "V2":  # bfloat16, which numpy does not know
        array = array.view("bfloat16")
    return array.astype("float32")

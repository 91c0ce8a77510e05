"""`.npz` files into named tensors, without numpy's pickles."""

import contextlib
import functools
import math
import zipfile

import ml_dtypes  # noqa: F401  teaches numpy the name "bfloat16"
import numpy as np

from keras_vit.weights import Tensor, WeightsError

HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path):
    """The arrays of an `.npz` file as a dict of `Tensor`, without the optimizer's.

    Only the arrays' headers are read yet. Pickled objects are never opened.

    Raises:
        WeightsError: the file is damaged, or holds other things than floating-point numbers.
    """
    with _naming(path), zipfile.ZipFile(path) as archive:
        found = {
            i.filename.removesuffix(".npy"): _array(path, archive, i) for i in archive.filelist
        }
    for prefix in ("opt/target/", "params/"):
        if any(key.startswith(prefix) for key in found):
            return {k.removeprefix(prefix): t for k, t in found.items() if k.startswith(prefix)}
    return found


@contextlib.contextmanager
def _naming(path):
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # a damaged zip fails in zipfile, zlib, numpy or the header's parser
        raise WeightsError(f"{path} is not a whole .npz file ({error}). Copy it again.") from error


def _array(path, archive, info):
    with archive.open(info) as file:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    if dtype.kind != "f" and dtype != "V2":
        raise WeightsError(f"{info.filename} of {path} holds {dtype}, not floating-point numbers.")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > info.file_size:
        raise WeightsError(f"{info.filename} of {path} is cut off. Copy it again.")
    return Tensor(shape, functools.partial(_read, path, info.filename))


def _read(path, name):
    with _naming(path), np.load(path, allow_pickle=False) as file:
        array = file[name.removesuffix(".npy")]
    if array.dtype == "V2":  # bfloat16, which numpy does not know
        array = array.view("bfloat16")
    return array.astype("float32")

"""Keras' HDF5 files of weights, looked at before anything of them is read."""

import contextlib
import pathlib
from collections.abc import Iterator

import h5py

from keras_vit.tensor_files import damaged
from keras_vit.text import printable
from keras_vit.weights import WeightsError


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[h5py.File]:
    """An HDF5 file.

    Raises:
        WeightsError: it is damaged, or h5py fails inside.
    """
    try:
        with h5py.File(path) as file:
            yield file
    except WeightsError:
        raise
    except Exception as error:  # h5py's: OSError, KeyError, RuntimeError, ValueError ...
        advice = "Save or download it again."
        raise damaged(path, "Keras weights file", error, advice) from error


def datasets(group: h5py.Group, path: pathlib.Path) -> dict[str, h5py.Dataset]:
    """The datasets below a group, by path.

    Raises:
        WeightsError: one is not in the file itself, byte by byte, as Keras writes it. A small file
            could ask for any amount of memory.
    """
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    group.visititems(visit)
    for name, item in found.items():
        if item.external or item.is_virtual or item.id.get_storage_size() < item.nbytes:
            raise WeightsError(
                f"{printable(name)} of {path} has {item.nbytes:,} bytes, of which the file holds "
                f"{item.id.get_storage_size():,}: it is compressed, stored elsewhere or not "
                "written at all. Save it again with Keras."
            )
    return found


def count(path: pathlib.Path) -> int:
    """How many numbers a file of weights holds.

    Raises:
        WeightsError: it is damaged, or does not hold them itself.
    """
    with opened(path) as file:
        return sum(item.size or 0 for item in datasets(file, path).values())

"""Saving by Keras, after a look at the free space: HDF5 crashes where the disk is full."""

import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_vit import atomic
from keras_vit.types import Path


class Saving:
    """Mixin for models: every way to save raises OSError, and changes nothing, if the disk has no
    room."""

    def save(self, filepath: Path, *args: Any, **options: Any) -> None:
        """As `keras.Model.save`."""
        check_room(filepath, with_optimizer(self))
        super().save(filepath, *args, **options)  # type: ignore[misc]  # of Keras

    def save_weights(self, filepath: Path, *args: Any, **options: Any) -> None:
        """As `keras.Model.save_weights`."""
        check_room(filepath, with_optimizer(self))
        super().save_weights(filepath, *args, **options)  # type: ignore[misc]

    def save_to_preset(self, preset_dir: Path, *args: Any, **options: Any) -> None:
        """Write a directory for `from_preset`: configs, preprocessing and weights; what is frozen
        and LoRA, too."""
        check_room(preset_dir, self.variables)  # type: ignore[attr-defined]
        super().save_to_preset(str(preset_dir), *args, **options)  # type: ignore[misc]


def with_optimizer(model: Any) -> list[Any]:
    """The variables of a model and of its optimizer."""
    optimizer = getattr(model, "optimizer", None)
    return [*model.variables, *(optimizer.variables if optimizer is not None else ())]


def check_room(path: Path, variables: Iterable[Any]) -> None:
    """Raise OSError unless the disk has room for variables at a path, whose files are replaced.

    Args:
        path: a file, or the folder of a preset; either may be new. Addresses such as `gs://` pass.
        variables: of Keras.
    """
    path = pathlib.Path(path)
    if path.parts[:1] and path.parts[0].endswith(":"):
        return
    folder = next((p for p in (path, *path.absolute().parents) if p.is_dir()), None)
    if folder is None:
        return
    needed = file_size(variables) - sum(map(os.path.getsize, _replaced(path)))
    if needed > 0:
        atomic.check_space(folder, needed)


def _replaced(path):
    """The files of weights that new ones take the place of."""
    return path.glob("*.weights.h5") if path.is_dir() else [path] if path.is_file() else []


def file_size(variables: Iterable[Any]) -> int:
    """About how many bytes Keras' files take: the values, and what HDF5 adds to each."""
    sizes = [
        math.prod(v.shape) * np.dtype(keras.backend.standardize_dtype(v.dtype)).itemsize
        for v in variables
    ]
    return sum(sizes) + 4096 * len(sizes) + 65536

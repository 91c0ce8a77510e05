"""A folder with one subfolder per class: its paths and labels, split for training and
validation."""

import concurrent.futures
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_vit.pixels import files_below, open_image, visible
from keras_vit.types import Path

PARTS = ("train", "training", "test", "val", "valid", "validation")
SIDES = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}


class Folder(NamedTuple):
    """The contents of a folder, from `read_folder`."""

    paths: list[pathlib.Path]  # of the readable pictures
    labels: np.ndarray  # their classes, `(B,)` ints
    class_names: list[str]
    broken: list[tuple[pathlib.Path, str]]  # other files, and why they are not readable


def read_folder(
    folder: Path, progress: Callable[[Iterable, int], Iterable] | None = None
) -> Folder:
    """Read a folder that holds one subfolder of pictures per class: `folder/class_name/**/*.jpg`.

    Pictures in subfolders of a class belong to it. Every file is decoded once: files that are not
    pictures, or are damaged, are left out and listed in `broken`. Hidden files and folders
    (`.DS_Store`) are ignored.

    Args:
        folder: a path.
        progress: a function of (iterable, total) that yields the same items and shows progress.

    Returns:
        A `Folder`: (paths, labels, class_names, broken). Classes and files are sorted by name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: fewer than two class folders, class folders without a picture, or folders named
            train or val in their place.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}.")
    names = sorted(path.name for path in visible(folder) if path.is_dir())
    if len(names) < 2:
        raise ValueError(
            f"{str(folder)!r} must hold a folder of pictures for each class, two at least "
            f"(cat/1.jpg, dog/1.jpg). Received: {', '.join(names) or 'no folder'}"
        )
    check_parts(folder, names)
    groups = [files_below(folder / name) for name in names]
    paths = [path for group in groups for path in group]
    labels = np.repeat(np.arange(len(names)), [len(group) for group in groups])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        checks: Iterable = pool.map(fault, paths)
        faults = list(progress(checks, len(paths)) if progress else checks)
    good = np.array([why is None for why in faults], bool)
    broken = [(path, why) for path, why in zip(paths, faults, strict=True) if why]
    empty = [name for i, name in enumerate(names) if not np.any(labels[good] == i)]
    if empty:
        raise ValueError(without_pictures(folder, empty, broken))
    paths = [path for path, why in zip(paths, faults, strict=True) if not why]
    return Folder(paths, labels[good], names, broken)


def read_parts(folder: Path) -> dict[str, pathlib.Path]:
    """The parts of a data set that is split already: {"train": folder, "validation": folder,
    "test": folder}, those that exist; {} if there is none for training.

    A part is a folder named train, training, val, valid, validation or test that holds folders
    only, those of the classes.
    """
    folder, found = pathlib.Path(folder), {}
    if not folder.is_dir():
        return {}
    for path in visible(folder):
        for side, names in SIDES.items():
            if path.name.lower() in names and path.is_dir():
                inside = list(visible(path))
                if inside and all(p.is_dir() for p in inside):
                    found[side] = path
    return found if "train" in found else {}


def fault(path: Path) -> str | None:
    """Why a file cannot be read as a picture; None if it can."""
    try:
        open_image(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def without_pictures(
    folder: pathlib.Path, names: Sequence[str], broken: Sequence[tuple[pathlib.Path, str]]
) -> str:
    """The message for class folders without a picture."""
    text = f"No picture in {', '.join(repr(str(folder / name)) for name in names)}."
    wrong = [path for path, _ in broken if path.relative_to(folder).parts[0] in names]
    if wrong:
        text += f" {len(wrong)} files there are not pictures, {wrong[0].name!r} for one."
    return f"{text} Put pictures of that class there, or remove the folder."


def check_parts(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Raise a ValueError if the class folders lie one level below, in folders like train and val:
    these would become classes."""
    for name in names:
        if name.lower() in PARTS:
            inside = list(visible(folder / name))
            if any(p.is_dir() for p in inside) and not any(p.is_file() for p in inside):
                raise ValueError(
                    f"{str(folder / name)!r} holds folders, not pictures: it is a part of the "
                    "data, not a class. Give it instead of the folder above it."
                )


def split_labels(
    labels: np.ndarray,
    fraction: float = 0.2,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for validation: a random part of each class.

    Args:
        labels: int array `(B,)`.
        fraction: the part for validation; at least one picture of each class is on either side.
        seed: int.
        class_names: for the error.

    Returns:
        Two sorted int arrays.

    Raises:
        ValueError: a fraction outside (0, 1); a class with a single picture.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"The fraction for validation must lie between 0 and 1. Received: {fraction}"
        )
    random = np.random.default_rng(seed)
    sides: tuple[list[Any], list[Any]] = ([], [])
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        if len(rows) < 2:
            name = f"{label} (from 0)" if class_names is None else repr(class_names[label])
            raise ValueError(
                f"Class {name} has a single picture, which cannot be split in two. Add "
                "more, or pass separate pictures for validation."
            )
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        sides[0].append(rows[count:])
        sides[1].append(rows[:count])
    training, validation = (np.sort(np.concatenate(side)) for side in sides)
    return training, validation

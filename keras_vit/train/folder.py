"""A folder of class folders as paths and labels; their division into training and validation."""

import collections
import concurrent.futures
import pathlib

import numpy as np

from keras_vit.images import load_image

PARTS = ("train", "training", "test", "val", "valid", "validation")

Folder = collections.namedtuple("Folder", "paths labels class_names broken")
Folder.__doc__ = """What `read_folder` found.

paths: list of the files that are pictures; labels: int array, a number for each of them;
class_names: what the numbers mean; broken: list of (path, reason) of the files that are none.
"""


def read_folder(folder, progress=None):
    """A folder that holds one folder of pictures for each class: `folder/class_name/*.jpg`.

    Every file is opened once. One that is not a picture, or is cut off, is left out and listed in
    `broken`; hidden files (`.DS_Store`) are not looked at.

    Args:
        folder: a path.
        progress: a function of (iterable, total) that gives the same and shows how far it is.

    Returns:
        A `Folder`: (paths, labels, class_names, broken). Classes and files are sorted by name.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: fewer than two class folders; class folders without a picture, which are named.
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
    groups = [sorted(p for p in visible(folder / name) if p.is_file()) for name in names]
    paths = [path for group in groups for path in group]
    labels = np.repeat(np.arange(len(names)), [len(group) for group in groups])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        checks = pool.map(fault, paths)
        faults = list(progress(checks, len(paths)) if progress else checks)
    good = np.array([why is None for why in faults], bool)
    broken = [(path, why) for path, why in zip(paths, faults, strict=True) if why]
    empty = [name for i, name in enumerate(names) if not np.any(labels[good] == i)]
    if empty:
        raise ValueError(without_pictures(folder, empty, broken))
    paths = [path for path, why in zip(paths, faults, strict=True) if not why]
    return Folder(paths, labels[good], names, broken)


def visible(folder):
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def fault(path):
    """Why a file cannot be read as a picture, None if it can."""
    try:
        load_image(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def without_pictures(folder, names, broken):
    """What to say of class folders without a picture."""
    text = f"No picture in {', '.join(repr(str(folder / name)) for name in names)}."
    wrong = [path for path, _ in broken if path.parent.name in names]
    if wrong:
        text += f" {len(wrong)} files there are not pictures, {wrong[0].name!r} for one."
    nested = [name for name in names if any(p.is_dir() for p in visible(folder / name))]
    if not nested:
        return f"{text} Put pictures of that class there, or remove the folder."
    text += " Folders lie there: give the folder that holds the class folders themselves"
    if nested[0].lower() in PARTS:
        text += f", {str(folder / nested[0])!r} for instance"
    return text + "."


def split(labels, fraction=0.2, seed=0):
    """Indices for training and for validation: of each class the same part, chosen at random.

    Args:
        labels: int array `(B,)`.
        fraction: the part for validation; of each class one picture at least stays on either side.
        seed: int.

    Raises:
        ValueError: a fraction outside of (0, 1); a class with a single picture.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"The part for validation must lie between 0 and 1. Received: {fraction}")
    random, sides = np.random.default_rng(seed), ([], [])
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        if len(rows) < 2:
            raise ValueError(
                f"Class {label} (from 0) has a single picture, which cannot be split in two. Add "
                "some, or give pictures for validation apart."
            )
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        sides[0].append(rows[count:])
        sides[1].append(rows[:count])
    return tuple(np.sort(np.concatenate(side)) for side in sides)

"""Arrays, and what is like an array, as batches: rows are read when a batch needs them."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

Preprocess = Callable[..., Any]  # of a batch's (x, y, sample_weight), None where absent


class ModelInput(keras.utils.PyDataset):
    """Batches that a model takes as they are, without a preprocessor."""


class ArrayBatches(ModelInput):
    """Arrays, or lists of images of any size, as preprocessed batches.

    If shuffled, the order depends only on `seed` and the epoch's number, so that a resumed run sees
    what an uninterrupted one would have seen.

    Args:
        arrays: `(x,)`, `(x, y)` or `(x, y, sample_weight)`, each of the same length: numpy arrays,
            tensors, other array-likes (HDF5 datasets), lists, or dicts of these.
        batch_size: images per batch.
        preprocess: function of a batch's (x, y, sample_weight), None where absent; or None.
        shuffle: whether to shuffle.
        seed: int.

    Raises:
        ValueError: lengths differ, or are 0.
    """

    def __init__(
        self,
        arrays: tuple[Any, ...],
        batch_size: int,
        preprocess: Preprocess | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.arrays = tuple(map(rows_of, arrays))
        lengths = {_length(leaf) for array in self.arrays for leaf in _leaves(array)}
        if len(lengths) > 1:
            raise ValueError(
                "x, y and sample_weight must have the same length. Received: lengths "
                f"{sorted(lengths)}"
            )
        self.size = lengths.pop()
        if not self.size:
            raise ValueError("There are no images to train on or predict. Received: 0 images")
        self.batch_size = batch_size
        self.preprocess = preprocess
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def __len__(self):
        return -(-self.size // self.batch_size)

    def order(self) -> np.ndarray:
        """The indices of all images, in the order of this epoch."""
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.size)

    def __getitem__(self, index):
        rows = self.order()[index * self.batch_size : (index + 1) * self.batch_size]
        batch = tuple(take(array, rows) for array in self.arrays)
        return as_tuple(self.preprocess(*batch)) if self.preprocess else batch


class Part:
    """Consecutive rows of an array-like, which are read when they are asked for.

    Args:
        array: an array-like.
        start, stop: the rows.
    """

    def __init__(self, array: Any, start: int, stop: int):
        self.array, self.start, self.stop = array, start, stop
        self.shape = (stop - start, *array.shape[1:])
        self.dtype = array.dtype

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, rows):
        return take(self.array, np.arange(self.start, self.stop)[rows])


def as_tuple(batch: Any) -> tuple[Any, ...]:
    """A batch as Keras takes it: (x,), (x, y) or (x, y, sample_weight)."""
    return batch if isinstance(batch, tuple) else (batch,)


def rows_of(value: Any) -> Any:
    """Something that `take` reads rows of: arrays and array-likes stay what they are, a list of
    numbers becomes an array, other lists are of images; dicts hold these."""
    if isinstance(value, dict):
        return {key: rows_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        numbers = len(value) and isinstance(value[0], (int, float, np.number))
        return np.asarray(value) if numbers else list(value)
    if hasattr(value, "iloc"):  # pandas
        return value.to_numpy()
    if hasattr(value, "__getitem__") and len(getattr(value, "shape", ())):
        return value
    return keras.ops.convert_to_numpy(value)


def take(array: Any, rows: np.ndarray) -> Any:
    """Rows of what `rows_of` gives, as a numpy array, a list or a dict."""
    if isinstance(array, dict):
        return {key: take(item, rows) for key, item in array.items()}
    if isinstance(array, list):
        return [array[i] for i in rows]
    consecutive = len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all()
    part = slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows
    if isinstance(array, (np.ndarray, Part)):
        return array[part]
    library = type(array).__module__.split(".")[0]
    if library in ("jax", "jaxlib", "tensorflow", "torch"):
        gathered = library == "tensorflow" and not consecutive
        return in_memory(_gather(array, rows) if gathered else array[part])
    if consecutive:
        return np.asarray(array[part])
    unique, places = np.unique(rows, return_inverse=True)  # h5py takes rising indices only
    return np.asarray(array[unique])[places]


def _gather(tensor, rows):
    import tensorflow as tf

    return tf.gather(tensor, rows)


def in_memory(value: Any) -> Any:
    """A numpy array of an array, a tensor on any device or an array-like; a dict of them; None."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: in_memory(item) for key, item in value.items()}
    value = rows_of(value)
    if isinstance(value, (np.ndarray, list)):
        return value
    match type(value).__module__.split(".")[0]:
        case "torch":
            value = value.detach().cpu()
            return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        case "tensorflow":
            return value.numpy()
    return np.asarray(value)


def _leaves(array):
    if isinstance(array, dict):
        return [leaf for item in array.values() for leaf in _leaves(item)]
    return [array]


def _length(leaf):
    return len(leaf) if isinstance(leaf, list) else leaf.shape[0]


def split_arrays(arrays: Iterable[Any], fraction: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(training, validation): the last `fraction` of each array is for validation, as in Keras;
    None stays None. Array-likes are not read."""
    arrays = tuple(None if a is None else rows_of(a) for a in arrays)
    size = _length(next(leaf for a in arrays if a is not None for leaf in _leaves(a)))
    kept = int(size * (1 - fraction))
    if kept in (0, size):
        raise ValueError(f"validation_split={fraction} of {size} images leaves one side empty.")
    sides = ((0, kept), (kept, size))
    training, validation = (tuple(_part(a, *side) for a in arrays) for side in sides)
    return training, validation


def _part(array, start, stop):
    if array is None:
        return None
    if isinstance(array, dict):
        return {key: _part(item, start, stop) for key, item in array.items()}
    if isinstance(array, (np.ndarray, list)):
        return array[start:stop]
    return Part(array, start, stop)

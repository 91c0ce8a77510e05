"""What `fit`, `evaluate` and `predict` accept, as batches that a preprocessor has seen."""

import types

import keras
import numpy as np
from keras import tree


class ArrayBatches(keras.utils.PyDataset):
    """Arrays, or lists of images of any size, as preprocessed batches.

    Shuffled, the order of an epoch follows from `seed` and the number of the epoch alone, so that a
    run that is resumed sees what an unbroken one would have seen.

    Args:
        arrays: `(x,)`, `(x, y)` or `(x, y, sample_weight)`, each of the same length.
        batch_size: images per batch.
        prepare: function of a batch's (x, y, sample_weight), None where absent.
        shuffle: whether to shuffle.
        seed: int.
    """

    def __init__(self, arrays, batch_size, prepare, shuffle=False, seed=0):
        super().__init__()
        lengths = {len(a) for a in tree.flatten(tuple(map(_opaque, arrays)))}
        if len(lengths) > 1:
            raise ValueError(
                "x, y and sample_weight must have the same length. Received: lengths "
                f"{sorted(lengths)}"
            )
        self.size = lengths.pop()
        if not self.size:
            raise ValueError("There is nothing to learn from or predict. Received: 0 images")
        self.arrays = arrays
        self.batch_size = batch_size
        self.prepare = prepare
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def __len__(self):
        return -(-self.size // self.batch_size)

    def order(self):
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.size)

    def __getitem__(self, index):
        rows = self.order()[index * self.batch_size : (index + 1) * self.batch_size]
        batch = tuple(
            [a[i] for i in rows]
            if isinstance(a, _Opaque)
            else tree.map_structure(lambda t: t[rows], a)
            for a in map(_opaque, self.arrays)
        )
        return _tuple(self.prepare(*batch))


class _Opaque(list):
    """A list of images: one leaf, not a structure."""


def _opaque(value):
    """Arrays stay arrays; a list of numbers becomes one; a list of images or paths stays a list."""
    if isinstance(value, dict):
        return {key: _opaque(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if len(value) and isinstance(value[0], (int, float, np.number)):
            return np.asarray(value)
        return _Opaque(value)
    if isinstance(value, np.ndarray):
        return value
    return keras.ops.convert_to_numpy(value)


def _tuple(batch):
    return batch if isinstance(batch, tuple) else (batch,)


class PreparedBatches(keras.utils.PyDataset):
    """A user's PyDataset whose batches a preprocessor has seen; its workers and epochs are passed
    on."""

    def __init__(self, dataset, prepare):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset = dataset
        self.prepare = prepare

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def __getitem__(self, index):
        return _tuple(self.prepare(*keras.utils.unpack_x_y_sample_weight(self.dataset[index])))

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


class FollowEpoch(keras.callbacks.Callback):
    """Lets the chance of an epoch follow from `seed` and its number: the order of arrays, dropout,
    stochastic depth.

    Keras keeps the states of its random generators in no file; so a run that BackupAndRestore
    resumes would draw other masks than an unbroken one.
    """

    def __init__(self, batches, seed=0):
        super().__init__()
        self.batches = batches
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        if isinstance(self.batches, ArrayBatches):
            self.batches.epoch = epoch
        states = [v for v in self.model.variables if v.path.endswith("seed_generator_state")]
        for i, state in enumerate(states):
            rng = np.random.default_rng((self.seed, epoch, i))
            state.assign(rng.integers(0, 2**31, size=state.shape).astype(state.dtype))


def batches(prepare, x, y=None, sample_weight=None, batch_size=None, shuffle=False, seed=0):
    """Whatever Keras users pass to `fit` as something that yields preprocessed batches.

    Args:
        prepare: function of (x, y, sample_weight) of one batch.
        x: arrays, a list of images, a `tf.data.Dataset`, a `PyDataset` or a generator of batches.
        y, sample_weight: arrays, where x is one.
        batch_size: for arrays; default 32.
        shuffle, seed: for arrays.

    Raises:
        ValueError: x brings its own labels and y is given too; or x is none of these.
    """
    brings_labels = isinstance(x, (keras.utils.PyDataset, types.GeneratorType)) or _is_tf_dataset(x)
    if brings_labels and any(v is not None for v in (y, sample_weight, batch_size)):
        raise ValueError(
            f"A {type(x).__name__} brings labels, weights and batches itself: leave y, "
            "sample_weight and batch_size out."
        )
    if _is_tf_dataset(x):
        import tensorflow as tf

        return x.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    if isinstance(x, keras.utils.PyDataset):
        return PreparedBatches(x, prepare)
    if isinstance(x, types.GeneratorType):
        return (_tuple(prepare(*keras.utils.unpack_x_y_sample_weight(b))) for b in x)
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) == 3 or not (shape or isinstance(x, (list, tuple, dict))):
        raise ValueError(
            "x must be an array (B, H, W, C), a list of images, a tf.data.Dataset, a "
            "keras.utils.PyDataset or a generator of batches; for one image write [image]. "
            f"Received: {type(x).__name__}" + (f" of shape {shape}" if shape else "")
        )
    arrays = tuple(v for v in (x, y, sample_weight) if v is not None)
    if sample_weight is not None and y is None:
        raise ValueError("sample_weight needs y. Received: y=None")
    return ArrayBatches(arrays, batch_size or 32, prepare, shuffle, seed)


def _is_tf_dataset(x):
    return type(x).__module__.startswith("tensorflow") and hasattr(x, "element_spec")


def check_classes(labels, classes):
    """Raises where labels of a sparse loss are not from 0 to `classes` - 1."""
    listed = isinstance(labels, (list, tuple))
    labels = np.asarray(labels) if listed else keras.ops.convert_to_numpy(labels)
    if labels.dtype.kind not in "biuf" or not np.all((labels >= 0) & (labels < classes)):
        raise ValueError(
            f"Labels must be whole numbers from 0 to {classes - 1}, as the model has {classes} "
            f"classes. Received: {np.unique(labels)[:8]}, {labels.dtype} {labels.shape}"
        )


def split(arrays, fraction):
    """The last `fraction` of each array apart, before any shuffling, as Keras does: (training,
    validation)."""
    arrays = tuple(arrays)
    size = len(next(a for a in arrays if a is not None))
    kept = int(size * (1 - fraction))
    if kept in (0, size):
        raise ValueError(f"validation_split={fraction} of {size} images leaves one side empty.")
    cut = [(None, None) if a is None else (a[:kept], a[kept:]) for a in arrays]
    return tuple(zip(*cut, strict=True))

"""The input of `fit`, `evaluate` and `predict`, as preprocessed batches."""

import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import tree
from keras.src.trainers.data_adapters import get_data_adapter

from keras_vit.arrays import ArrayBatches, ModelInput, Preprocess, as_tuple, in_memory
from keras_vit.pixels import raw_pixels
from keras_vit.types import Tensor

DEFAULT_BATCH_SIZE = 32


class DatasetBatches(ModelInput):
    """A user's PyDataset with its batches preprocessed; its workers and epoch hooks still apply."""

    def __init__(self, dataset: keras.utils.PyDataset, preprocess: Callable[[Any], tuple]):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset = dataset
        self.preprocess = preprocess

    @property
    def num_batches(self) -> int | None:
        """As the dataset says; None: unknown."""
        return self.dataset.num_batches

    def __getitem__(self, index):
        return self.preprocess(self.dataset[index])

    def on_epoch_begin(self) -> None:
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.dataset.on_epoch_end()


class FollowEpoch(keras.callbacks.Callback):
    """Derives all randomness of an epoch from `seed` and its number: order, dropout, stochastic
    depth.

    Keras does not save the states of its random generators, so a run that BackupAndRestore resumes
    would otherwise draw other masks than an uninterrupted one.
    """

    def __init__(self, batches: Any, seed: int = 0):
        super().__init__()
        self.batches = batches
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if isinstance(self.batches, ArrayBatches):
            self.batches.epoch = epoch
        states = [v for v in self.model.variables if v.path.endswith("seed_generator_state")]
        for i, state in enumerate(states):
            rng = np.random.default_rng((self.seed, epoch, i))
            state.assign(rng.integers(0, 2**31, size=state.shape).astype(state.dtype))


class Diverged(keras.callbacks.Callback):
    """Raises FloatingPointError if the loss of an epoch is NaN or infinite.

    `fit` puts it before the user's callbacks, so that none of them replaces a good file.
    """

    async_safe = True
    often = 100  # steps between two looks at the loss: to read it waits for the GPU

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if batch % self.often == self.often - 1 and not np.isfinite(
            float((logs or {}).get("loss", 0.0))
        ):
            self.model.stop_training = True  # the mean over the epoch stays what it is

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for name in ("loss", "val_loss"):
            if not np.isfinite(value := float((logs or {}).get(name, 0.0))):
                raise FloatingPointError(
                    f"{name} is {value} in epoch {epoch + 1}: the training diverges. Try a lower "
                    "learning rate, or float32 if the dtype is another."
                )


def batches(
    preprocess: Preprocess | None,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
) -> Any:
    """The input of `fit`, of any kind, as preprocessed batches that Keras takes.

    Args:
        preprocess: function of (x, y, sample_weight) of one batch; None if x is preprocessed.
        x: arrays or array-likes, a list of images; or what contains batches: a `tf.data.Dataset`, a
            `PyDataset`, a torch `DataLoader`, a dataset or DataLoader of grain, a generator.
        y, sample_weight: arrays, where x is one.
        batch_size: for arrays; default 32.
        shuffle, seed: for arrays.

    Raises:
        ValueError: y is given although x contains labels; or x is none of these.
    """
    if isinstance(x, ModelInput):
        return x
    kind = _kind(x)
    if preprocess is None and kind is _of_tf and y is None and sample_weight is None:
        return x
    preprocess = preprocess or keras.utils.pack_x_y_sample_weight
    if kind is not None:
        if y is not None or sample_weight is not None:
            raise ValueError(
                f"A {type(x).__name__} contains labels and weights: leave out y and sample_weight."
            )
        return kind(x, lambda batch: as_tuple(preprocess(*_unpacked(batch))))
    shape = tuple(getattr(x, "shape", ()))
    if len(shape) == 3 or not (shape or isinstance(x, (list, tuple, dict))):
        raise ValueError(
            "x must be an array (B, H, W, C), a list of images, a tf.data.Dataset, a "
            "keras.utils.PyDataset, a torch DataLoader, a grain dataset or a generator of batches; "
            f"for a single image pass [image]. Received: {type(x).__name__}"
            + (f" of shape {shape}" if shape else "")
        )
    if sample_weight is not None and y is None:
        raise ValueError("sample_weight needs y. Received: y=None")
    arrays = (x, *(labels(v) for v in (y, sample_weight) if v is not None))
    return ArrayBatches(arrays, batch_size or DEFAULT_BATCH_SIZE, preprocess, shuffle, seed)


def feed(batches: Any, class_weight: Any = None) -> Any:
    """Batches as Keras' loops are given them: on TensorFlow without tf.data's autotuning.

    Its thread misses, now and then, that the iterator is closed, and sleeps on: for up to as long
    as the loop took, and a minute at most. (`CancellationManager::StartCancel` wakes it before it
    sets `is_cancelled`.)

    Args:
        batches: what `batches` returns.
        class_weight: as in `keras.Model.fit`.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    adapter = get_data_adapter(batches, class_weight=class_weight)
    make = adapter.get_tf_dataset
    adapter.get_tf_dataset = lambda: _not_autotuned(make())
    return adapter


def _not_autotuned(dataset):
    """A `tf.data.Dataset` whose parallelism is not adjusted, unless its user asked for that."""
    import tensorflow as tf

    if not isinstance(dataset, tf.data.Dataset) or dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def labels(value: Any) -> Any:
    """Labels or weights as numpy arrays, read once: they are small."""
    value = in_memory(value)
    return np.asarray(value) if isinstance(value, list) else value


def contains_batches(x: Any) -> bool:
    """Whether x is a dataset, loader or generator that batches itself, not an array or a list."""
    return isinstance(x, ModelInput) or _kind(x) is not None


def _kind(x):
    """The function that preprocesses the batches of a dataset of that kind; None: it is none."""
    if isinstance(x, keras.utils.PyDataset):
        return DatasetBatches
    if isinstance(x, types.GeneratorType):
        return _of_generator
    for parent in type(x).__mro__:
        library = parent.__module__.split(".")[0]
        found = KINDS.get((library, parent.__name__))
        if found is not None:
            return found
    return None


def _unpacked(batch):
    """(x, y, sample_weight) of a batch."""
    return keras.utils.unpack_x_y_sample_weight(batch)


def _of_generator(generator, preprocess):
    return (preprocess(batch) for batch in generator)


def _check_batch_size(images):
    """Several processes share each batch: Keras must know its size, and says it in other words."""
    if keras.backend.backend() != "jax" or images.shape[0] is not None:
        return
    import jax

    if jax.process_count() > 1:
        raise ValueError(
            "With several processes of JAX all batches must have the same known size: "
            "dataset.batch(size, drop_remainder=True)."
        )


def _of_tf(dataset, preprocess):
    import tensorflow as tf

    _check_batch_size(tf.nest.flatten(dataset.element_spec)[0])

    def checked(*batch):
        if dtype.is_floating:  # a graph does not know values
            with tf.control_dependencies(
                [tf.numpy_function(_check, tf.nest.flatten(batch)[:1], [])]
            ):
                batch = tf.nest.map_structure(tf.identity, batch)
        return preprocess(batch)

    dtype = tf.nest.flatten(dataset.element_spec)[0].dtype
    return dataset.map(checked, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _check(x):
    raw_pixels(x)


def _of_torch(loader, preprocess):
    """A DataLoader of torch, whose batches are preprocessed in this process."""
    from torch.utils.data import DataLoader, IterableDataset

    class Preprocessed(IterableDataset):
        def __iter__(self):
            return (preprocess(tree.map_structure(_from_torch, batch)) for batch in loader)

    class Sized(Preprocessed):
        def __len__(self):
            return len(loader)

    sized = hasattr(loader.dataset, "__len__")
    return DataLoader(Sized() if sized else Preprocessed(), batch_size=None)


def _from_torch(leaf):
    return in_memory(leaf) if hasattr(leaf, "shape") else leaf


def _of_grain(dataset, preprocess):
    return dataset.map(preprocess)


def _of_grain_loader(loader, preprocess):
    """A DataLoader of grain, whose batches are preprocessed in this process."""
    import grain

    class Iterator(grain.DatasetIterator):
        def __init__(self):
            super().__init__()
            self.batches = iter(loader)

        def __next__(self):
            return preprocess(next(self.batches))

        def get_state(self):
            return self.batches.get_state()

        def set_state(self, state):
            self.batches.set_state(state)

    class Preprocessed(grain.IterDataset):
        def __iter__(self):
            return Iterator()

    return Preprocessed()


KINDS = {  # by library and class; none of these is imported before somebody uses it
    ("tensorflow", "DatasetV2"): _of_tf,
    ("torch", "DataLoader"): _of_torch,
    ("grain", "MapDataset"): _of_grain,
    ("grain", "IterDataset"): _of_grain,
    ("grain", "DataLoader"): _of_grain_loader,
}


def check_classes(labels: Tensor, classes: int) -> None:
    """Raise a ValueError unless all labels of a sparse loss are from 0 to `classes` - 1."""
    labels = np.asarray(in_memory(labels))
    if labels.dtype.kind not in "biuf" or not np.all((labels >= 0) & (labels < classes)):
        raise ValueError(
            f"Labels must be whole numbers from 0 to {classes - 1}, as the model has {classes} "
            f"classes. Received: {np.unique(labels)[:8]}, {labels.dtype} {labels.shape}"
        )

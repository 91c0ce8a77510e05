"""Training and prediction on raw images: the preprocessor is applied first."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_vit import data
from keras_vit.arrays import split_arrays
from keras_vit.images import is_one
from keras_vit.labels import top_labels
from keras_vit.models.activation import apply
from keras_vit.models.constant_weights import ConstantWeights, in_use, weights_in_graph
from keras_vit.types import Images, Tensor


class ImageTrainer:
    """`fit`, `evaluate`, `predict` and `classify` of a classifier with a preprocessor."""

    num_classes: int
    activation: str | None
    loss: Any  # as given to `compile`
    preprocessor: Any
    preprocess_samples: Callable[..., Any]
    constant_weights: ConstantWeights | None = None  # of the last such `predict`

    @property
    def class_names(self) -> Sequence[str] | None:
        """The names of the classes, or None."""
        raise NotImplementedError

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        validation_batch_size: int | None = None,
        shuffle: bool = True,
        sample_weight: Tensor | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """As `keras.Model.fit`, on raw images: the preprocessor is applied.

        Args:
            x: arrays `(B, H, W, C)` or array-likes (HDF5, memory maps, tensors on a GPU: read by
                batches), a list of images or paths; or what contains batches: a `tf.data.Dataset`,
                a `PyDataset`, a torch `DataLoader`, a grain dataset, a generator.
            y, sample_weight: for arrays and lists.
            batch_size: for arrays and lists, of `validation_data`, too; default 32.
            validation_split: for arrays and lists: the last part is for validation.
            validation_data: (x, y), (x, y, sample_weight) or what contains batches, whatever `x`
                is.
            validation_batch_size: for arrays in `validation_data`; None: `batch_size`.
            shuffle: for arrays: whether each epoch has its own order.
            seed: int; the order, dropout and stochastic depth of an epoch depend only on it and the
                epoch's number, so that a resumed run equals an uninterrupted one.

        Raises:
            FloatingPointError: the loss has become NaN or infinite; your callbacks do not see that
                epoch's end.
        """
        _check_strategy(self)
        self.constant_weights = None  # the weights change
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = _split(x, y, sample_weight, validation_split)
        self._check_labels(y)
        train = data.batches(self._preprocess(), x, y, sample_weight, batch_size, shuffle, seed)
        own = [data.FollowEpoch(train, seed), data.Diverged()]
        if isinstance(callbacks, keras.callbacks.CallbackList):
            for callback in own:
                callbacks.append(callback)
        else:
            one = isinstance(callbacks, keras.callbacks.Callback)
            callbacks = [*own, *([callbacks] if one else callbacks or ())]
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)):
                validation_data = (validation_data,)
            self._check_labels(*validation_data[1:2])
            names = ("x", "y", "sample_weight")
            validation_data = data.feed(
                data.batches(
                    self._preprocess(),
                    batch_size=validation_batch_size or batch_size,
                    **dict(zip(names, validation_data, strict=False)),
                )
            )
        # PipelineModel.fit would preprocess again, and in order.
        return keras.Model.fit(
            self,
            data.feed(train, kwargs.get("class_weight")),
            callbacks=callbacks,
            validation_data=validation_data,
            shuffle=False,
            **kwargs,
        )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        sample_weight: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.evaluate`, on raw images."""
        if not kwargs.get("_use_cached_eval_dataset"):
            self._check_labels(y)
            x = data.feed(data.batches(self._preprocess(), x, y, sample_weight, batch_size))
        return keras.Model.evaluate(self, x, **kwargs)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Any = None,
        *,
        constant_weights: bool = False,
    ) -> np.ndarray:
        """Logits `(B, num_classes)`, float32, of raw images: as `keras.Model.predict`.

        Args:
            x, batch_size: as in `fit`.
            verbose, steps, callbacks: as in `keras.Model.predict`.
            constant_weights: compile the weights into the graph, for thousands of pictures on a
                CPU (TensorFlow). It takes seconds and several times the memory of the weights,
                once; and again after they have changed.
        """
        x = data.feed(data.batches(self._preprocess(), x, batch_size=batch_size))
        with weights_in_graph(self, constant_weights):
            options = {"verbose": verbose, "steps": steps, "callbacks": callbacks}
            return keras.Model.predict(self, x, **options)

    def predict_on_batch(self, x: Any) -> Any:
        with weights_in_graph(self, False):
            return super().predict_on_batch(x)  # type: ignore[misc]

    @property
    def predict_function(self) -> Any:
        """What Keras' `predict` calls with batches."""
        return in_use(self) or self._predict_function

    @predict_function.setter
    def predict_function(self, function: Any) -> None:
        self._predict_function = function
        if function is None:  # `compile` says that the graph is no longer true
            self.constant_weights = None

    def _preprocess(self):
        """The function that preprocesses a batch; None without a preprocessor."""
        return self.preprocess_samples if self.preprocessor is not None else None

    def _check_labels(self, y=None):
        """Raise if labels are no classes of the model, before TensorFlow fails inside the loss."""
        sparse = isinstance(self.loss, keras.losses.SparseCategoricalCrossentropy)
        sparse &= getattr(self.loss, "ignore_class", None) is None
        sparse |= self.loss == "sparse_categorical_crossentropy"
        if sparse and y is not None and self.num_classes:
            data.check_classes(y, self.num_classes)

    def classify(self, images: Images, top: int = 5, batch_size: int = 32) -> Any:
        """Names and probabilities of the most probable classes, by the model's `activation`.

        With `activation="sigmoid"` each probability stands for itself; with None the outputs are
        returned as they are, the largest first.

        Args:
            images: a path, a PIL image, an array `(H, W, C)` or `(B, H, W, C)`, or a list of them.
            top: how many classes.
            batch_size: images per batch.

        Returns:
            `[(name, probability), ...]` for one image, a list of these for several.
        """
        if not self.num_classes:
            raise ValueError(
                "This model has no head (num_classes=0): it returns features, not classes."
            )
        one = is_one(images)
        logits = self.predict([images] if one else images, batch_size=batch_size, verbose=0)
        results = top_labels(apply(logits, self.activation), self.class_names, top)
        return results[0] if one else results


def _check_strategy(model):
    """Raise RuntimeError before Keras fails with "unsupported type PerReplica"."""
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    if isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise RuntimeError(
            "Keras 3 does not train with MultiWorkerMirroredStrategy "
            "(https://github.com/keras-team/keras/issues/20585). Use keras.distribution with "
            "KERAS_BACKEND=jax for several machines, or MirroredStrategy for one."
        )


def _split(x: Any, y: Any, sample_weight: Any, fraction: float) -> tuple[tuple, tuple]:
    """(training, validation) of arrays."""
    if data.contains_batches(x):
        raise ValueError(
            "validation_split takes the last part of arrays or lists. Received: a "
            f"{type(x).__name__}, whose batches are not known beforehand. Split it yourself, and "
            "pass validation_data."
        )
    return split_arrays((x, data.labels(y), data.labels(sample_weight)), fraction)

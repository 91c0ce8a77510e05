"""Training and prediction on raw images: the preprocessor comes first."""

import keras
import numpy as np

from keras_vit import data
from keras_vit.labels import imagenet_labels, top_labels


class OnRawImages:
    """`fit`, `evaluate`, `predict` and `classify` of a classifier with a preprocessor."""

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        sample_weight=None,
        seed=0,
        **kwargs,
    ):
        """As `keras.Model.fit`, on raw images: the preprocessor is applied.

        Args:
            x: arrays `(B, H, W, C)`, a list of images or paths, a `tf.data.Dataset`, a `PyDataset`.
            shuffle: for arrays: each epoch in another order.
            seed: int; order, dropout and stochastic depth of an epoch follow from it and the
                number of the epoch, so that a resumed run equals an unbroken one.
        """
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = data.split(
                (x, y, sample_weight), validation_split
            )
        self._check_labels(y)
        train = data.batches(
            self.preprocess_samples, x, y, sample_weight, batch_size, shuffle, seed
        )
        follow = data.FollowEpoch(train, seed)
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(follow)
        else:
            one = isinstance(callbacks, keras.callbacks.Callback)
            callbacks = [follow, *([callbacks] if one else callbacks or ())]
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)):
                validation_data = (validation_data,)
            self._check_labels(*validation_data[1:2])
            validation_data = data.batches(
                self.preprocess_samples, *validation_data, batch_size=batch_size
            )
        # PipelineModel.fit would preprocess again, and in order.
        return keras.Model.fit(
            self,
            train,
            callbacks=callbacks,
            validation_data=validation_data,
            shuffle=False,
            **kwargs,
        )

    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        """As `keras.Model.evaluate`, on raw images."""
        if not kwargs.get("_use_cached_eval_dataset"):
            self._check_labels(y)
            x = data.batches(self.preprocess_samples, x, y, sample_weight, batch_size)
        return keras.Model.evaluate(self, x, **kwargs)

    def predict(self, x, batch_size=None, **kwargs):
        """Logits `(B, num_classes)`, float32, of raw images: as `keras.Model.predict`."""
        return keras.Model.predict(
            self, data.batches(self.preprocess_samples, x, batch_size=batch_size), **kwargs
        )

    def _check_labels(self, y=None):
        """Raises where arrays of labels name classes that there are not: TensorFlow would fail in
        the graph of the loss."""
        sparse = isinstance(self.loss, keras.losses.SparseCategoricalCrossentropy)
        sparse &= getattr(self.loss, "ignore_class", None) is None
        sparse |= self.loss == "sparse_categorical_crossentropy"
        if sparse and y is not None and self.num_classes:
            data.check_classes(y, self.num_classes)

    def classify(self, images, top=5, batch_size=32):
        """Names and probabilities of the most probable classes.

        Args:
            images: a path, a PIL image, an array `(H, W, C)` or `(B, H, W, C)`, or a list of them.
            top: how many classes.
            batch_size: images at once.

        Returns:
            `[(name, probability), ...]` for one image, a list of these for several.
        """
        if not self.num_classes:
            raise ValueError(
                "This model has no head (num_classes=0): it gives features, no classes."
            )
        one = not isinstance(images, (list, tuple)) and getattr(images, "ndim", 3) < 4
        logits = self.predict([images] if one else images, batch_size=batch_size, verbose=0)
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = exponents / exponents.sum(-1, keepdims=True)
        labels = self.labels or (imagenet_labels() if self.num_classes == 1000 else None)
        results = top_labels(probabilities, labels, top)
        return results[0] if one else results

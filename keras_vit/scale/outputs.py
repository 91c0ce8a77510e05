"""What `embed` takes from a model: pooled features, tokens, or the most probable classes."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.labels import top_labels
from keras_vit.models.activation import apply
from keras_vit.models.classifier import ImageClassifier
from keras_vit.models.head import Tokens
from keras_vit.train import fast

WHAT = ("features", "classes", "tokens")
LEFT_OUT = ("name", "trainable", "build_config", "compile_config", "shared_object_id")


class Output:
    """A function of preprocessed pictures.

    Every batch that the model sees has the same size, so it is compiled once, and the numbers do
    not depend on how many pictures there are.

    Args:
        model: a classifier with a preprocessor.
        what: `"features"`: the pooled features that the head reads, `(D,)`; `"tokens"`: what the
            backbone returns, `(N, D)`, prefix tokens first, a map row by row; `"classes"`: the
            most probable ones.
        batch_size: pictures per step.
        top: how many classes.

    Raises:
        ValueError: another `what`; no preprocessor; classes of a model without a head.
    """

    def __init__(self, model: ImageClassifier, what: str, batch_size: int = 32, top: int = 5):
        if what not in WHAT:
            raise ValueError(f"what must be one of {', '.join(WHAT)}. Received: {what!r}")
        if model.preprocessor is None:
            raise ValueError("The model has no preprocessor. from_preset gives it one.")
        if what == "classes" and not model.num_classes:
            raise ValueError("This model has no head (num_classes=0), so it knows no classes.")
        self.what, self.batch_size = what, batch_size
        self.activation, self.class_names = model.activation, model.class_names
        self.converter = model.preprocessor.image_converter
        self.model = fast(keras.Model(model.inputs, _tensor(model, what)))
        shape = (*self.converter.image_size, len(self.converter.mean))
        made = self.model.compute_output_shape((batch_size, *shape))
        self.top = min(top, model.num_classes)
        self.shape: list[int] = [self.top] if what == "classes" else [int(n) for n in made[1:]]

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Any]:
        """One value for each preprocessed picture `(H, W, C)`, of at most `batch_size` of them:
        float32 arrays, or lists of (class, probability); None where the model gives NaN."""
        x = np.stack(pictures)
        missing = self.batch_size - len(x)
        if missing:
            x = np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])
        y = np.asarray(self.model.predict_on_batch(x), "float32")[: len(pictures)]
        values: Any = y
        if self.what == "classes":
            values = top_labels(np.asarray(apply(y, self.activation)), self.class_names, self.top)
        return [v if np.isfinite(raw).all() else None for v, raw in zip(values, y, strict=True)]


def _tensor(model: ImageClassifier, what: str) -> Any:
    """The model's tensor that holds it, float32."""
    if what == "tokens":
        x = model.backbone.output
        if len(x.shape) == 4:
            x = Tokens(dtype=model.backbone.dtype_policy)(x)
        return ops.cast(x, "float32")
    if what == "classes" or not model.heads:
        return model.output
    read = [ops.cast(head.input, "float32") for head in model.heads]
    return sum(read[1:], read[0]) / len(read) if read[1:] else read[0]


def fingerprint(model: ImageClassifier) -> str:
    """A hash of all that the outputs follow from: preprocessing, structure, dtype, weights."""
    config = keras.saving.serialize_keras_object(model)
    digest = hashlib.sha256()
    digest.update(json.dumps(_unnamed(config), sort_keys=True, default=str).encode())
    for value in model.get_weights():
        value = np.ascontiguousarray(value)
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.view("uint8").data if value.ndim else value.tobytes())
    return digest.hexdigest()


def _unnamed(config: Any) -> Any:
    """A config without the names that Keras numbers within a process, and what only training
    needs."""
    if isinstance(config, dict):
        if config.get("module") == "keras" and "Policy" in config["class_name"]:
            return config  # its name is the dtype
        return {key: _unnamed(value) for key, value in config.items() if key not in LEFT_OUT}
    if isinstance(config, (list, tuple)):
        return [_unnamed(value) for value in config]
    return config

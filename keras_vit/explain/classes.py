"""Which classes a map is for, given by index, name, or as the most probable ones."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_vit.explain.maps import classifier, no_gradient, preprocessed
from keras_vit.images import listed
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Images

Class: TypeAlias = int | str
Classes: TypeAlias = Class | Sequence[Class] | np.ndarray | None
STEP = 4  # images at once: the activations of all blocks are in memory


def top_classes(model: keras.Model, images: Images, top: int = 5) -> np.ndarray:
    """Indices of the most probable classes of each image, the first being the best: `(B, top)`."""
    model = with_head(classifier(model))
    return np.argsort(-logits_of(model, images), axis=1, kind="stable")[:, :top]


def class_indices(
    model: ImageClassifier, images: Images, classes: Classes
) -> tuple[np.ndarray, bool]:
    """The classes of each image as indices, `(B, K)`, and whether one class was asked for."""
    count = len(listed(images))
    if classes is None:
        return top_classes(model, images, 1), True
    if isinstance(classes, np.ndarray) and classes.ndim == 2:
        if len(classes) != count:
            raise ValueError(
                f"classes needs a row for each of the {count} images. Received: {len(classes)} rows"
            )
        rows = [[class_index(model, c) for c in row] for row in classes]
        return np.array(rows, "int64").reshape(count, -1), False
    single = isinstance(classes, (int, str, np.integer))
    several: Any = [classes] if single else classes
    if not len(several):
        raise ValueError("classes must name at least one class. Received: []")
    return np.tile([class_index(model, c) for c in several], (count, 1)), single


def class_index(model: ImageClassifier, value: Any) -> int:
    """The index of a class, given by index or name.

    Raises:
        ValueError: there is no such class, or more than one of that name.
    """
    if not isinstance(value, str):
        if not 0 <= value < model.num_classes:
            raise ValueError(
                f"Classes are numbers from 0 to {model.num_classes - 1}. Received: {value}"
            )
        return int(value)
    names = list(model.class_names or ())
    if names.count(value) != 1:
        near = [name for name in names if value.lower() in name.lower()][:5]
        raise ValueError(
            f"{names.count(value) or 'None'} of the model's classes is named {value!r}."
            + (f" There are: {', '.join(near)}." if near else "")
        )
    return names.index(value)


def with_head(model: ImageClassifier) -> ImageClassifier:
    """The model itself; an error if it has no classes."""
    if not model.num_classes:
        raise ValueError(
            "A map for a class needs a model with a head. Received: num_classes=0, which returns "
            "features. `relevance` needs no classes."
        )
    return model


def logits_of(model: ImageClassifier, images: Images) -> np.ndarray:
    """The logits, `(B, num_classes)`."""
    parts = []
    for x in preprocessed(model, images):
        with no_gradient():
            parts.append(ops.convert_to_numpy(model(x, training=False)))
    return np.concatenate(parts)


def asked(
    model: keras.Model, images: Images, classes: Any
) -> tuple[ImageClassifier, np.ndarray, bool]:
    """The classifier, the classes `(B, K)`, and whether there is one for all."""
    model = with_head(classifier(model))
    return (model, *class_indices(model, images, classes))


def in_steps(ids: Any) -> list[Any]:
    """Slices of a sequence, of `STEP` at most."""
    return [ids[i : i + STEP] for i in range(0, len(ids), STEP)]


def result(maps: list[np.ndarray], single: bool) -> np.ndarray:
    """The maps of all steps, `(B, K, ...)`, or without K; an error if there is NaN."""
    total = np.concatenate(maps).astype("float32")
    if not np.isfinite(total).all():
        raise ValueError(
            "The gradients are NaN or infinite: weights of the model are, or numbers are too large "
            "for its dtype."
        )
    return total[:, 0] if single else total

"""The maps by their names, as figures and the command line ask for them."""

from collections.abc import Callable

import keras
import numpy as np

from keras_vit.explain.class_maps import (
    class_relevance,
    grad_cam,
    gradient_rollout,
    input_x_gradient,
    integrated_gradients,
)
from keras_vit.explain.classes import Classes, class_indices
from keras_vit.explain.maps import classifier
from keras_vit.explain.rollouts import relevance, shown
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Images


def rollout_of_each(model: keras.Model, images: Images, classes: Classes = None) -> np.ndarray:
    """`relevance` in the shape of the maps for classes, all of which are the same."""
    model = classifier(model)
    maps = relevance(model, images)
    if classes is None or not model.num_classes:
        return maps
    ids, single = class_indices(model, images, classes)
    return maps if single else np.repeat(maps[:, None], ids.shape[1], axis=1)


METHODS: dict[str, Callable[..., np.ndarray]] = {
    "rollout": rollout_of_each,
    "relevance": class_relevance,
    "gradient_rollout": gradient_rollout,
    "grad_cam": grad_cam,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
}
CAPTIONS = {
    "relevance": "attention relevance",
    "gradient_rollout": "gradient rollout",
    "grad_cam": "Grad-CAM",
    "input_x_gradient": "input x gradient",
    "integrated_gradients": "integrated gradients",
}


def method_named(name: str) -> Callable[..., np.ndarray]:
    """The function of (model, images, classes) that makes maps of that kind.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}. Received: {name!r}")
    return METHODS[name]


def caption_of(model: ImageClassifier, method: str) -> str:
    """What a method's maps show."""
    return shown(model) if method_named(method) is rollout_of_each else CAPTIONS[method]

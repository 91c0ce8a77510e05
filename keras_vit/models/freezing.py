"""Saves in a model's config which layers are frozen."""

from collections.abc import Iterable
from typing import Any

import keras


class Freezable:
    """Mixin for models: layers that were frozen in the config are frozen again."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        frozen = config.pop("frozen", ())
        trainable = config.pop("trainable", True)
        model = super().from_config(config)  # type: ignore[misc]  # defined by the Keras model
        if frozen or not trainable:
            freeze_layers(model, trainable, frozen)
        return model


def freeze_layers(model: keras.Model, trainable: bool, frozen: Iterable[str]) -> None:
    """Set `trainable` of a model and of all its layers.

    Args:
        model: the model.
        trainable: flag of the model itself.
        frozen: paths of the layers that are not trainable; all others are.
    """
    frozen = set(frozen)
    model.trainable = trainable
    # Setting the flag of a layer also sets it for its sublayers. They come later in the loop.
    for layer in model._flatten_layers(include_self=False):
        layer.trainable = layer.path not in frozen


def frozen_layers(model: keras.Model) -> dict[str, Any]:
    """Config entries: whether the model is trainable, and the paths of its frozen layers."""
    layers = model._flatten_layers(include_self=False)
    built = [layer for layer in layers if layer.path]
    frozen = [layer.path for layer in built if not layer.trainable]
    return {"trainable": model.trainable, **({"frozen": frozen} if frozen else {})}

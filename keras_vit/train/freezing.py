"""Training of parts of a model."""

from typing import Any

import keras

from keras_vit.models.classifier import ImageClassifier
from keras_vit.train.optimizers import levels

NORMS: tuple[Any, ...] = (
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
    keras.layers.BatchNormalization,
)


def freeze(
    model: ImageClassifier,
    up_to: int | None = None,
    backbone: bool = False,
    except_norms: bool = False,
) -> None:
    """Freeze a part of a classifier; it stays frozen in saved files. Call it before `compile`.

    For LoRA, which freezes all but its matrices, there is `model.backbone.enable_lora(rank)`;
    `model.trainable = True` frees everything.

    Args:
        model: what is not named here is left as it is.
        up_to: freeze the patch embedding and this many blocks.
        backbone: freeze all of the backbone: only the head is trained.
        except_norms: train the norms of the frozen part.

    Raises:
        ValueError: neither is chosen, or there are fewer blocks.
    """
    if (up_to is None) == (not backbone):
        raise ValueError("Choose one of them: up_to=6 (blocks), or backbone=True.")
    layers = [layer for layer in model.backbone.layers if layer.weights]
    if up_to is not None:
        of, count = levels(model)
        if not 0 <= up_to <= count:
            raise ValueError(f"The model has {count} blocks. Received: up_to={up_to}")
        layers = [x for x in layers if max(of[id(v)] for v in x.weights) <= up_to]
    for layer in layers:
        _freeze(layer, NORMS if except_norms else ())


def _freeze(layer, but):
    """Freeze a layer, or what it consists of where norms are to be trained. Layers are frozen, not
    single variables, since files say which layers are."""
    if isinstance(layer, but):
        return
    parts = list(layer._flatten_layers(include_self=False, recursive=True))
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    if own or not any(isinstance(part, but) for part in parts):
        layer.trainable = False
    else:
        for part in layer._layers:
            _freeze(part, but)

"""Keras' own layout: a directory that `save_to_preset` of a model of this package wrote."""

import keras_hub

from keras_vit.hub import CONFIG
from keras_vit.images import ImageConverter
from keras_vit.layers.base import arguments
from keras_vit.layouts.spec import Spec, family_of
from keras_vit.models.classifier import ImageClassifier

FILES = ("config.json", "task.json", "preprocessor.json", "image_converter.json", "metadata.json")
WEIGHTS = ("model.weights.h5", "task.weights.h5")


def load(repository, dtype, load_weights):
    """The model as it was saved.

    Raises:
        ValueError: files that are missing or damaged, or a model of another package.
    """
    names = FILES + WEIGHTS if load_weights else FILES
    paths = {name: repository.find(name) for name in names}
    if paths["task.json"] is None:
        raise ValueError(
            f"{repository} is not a complete Keras preset: it has no task.json. "
            "Save the classifier, not its backbone, with save_to_preset."
        )
    saved = repository.json(CONFIG).get("config", {}).get("dtype") or {}
    name = (saved.get("config") or {}).get("name") or ""
    if dtype is None and name.startswith("mixed_"):  # a name that KerasHub takes for no dtype
        dtype = name
    options = {} if dtype is None else {"dtype": dtype}
    try:
        model = keras_hub.models.ImageClassifier.from_preset(
            str(paths[CONFIG].parent), load_weights=load_weights, **options
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{repository} is not a complete Keras preset: {error}") from error
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            f"{repository} holds a {type(model).__name__}, not a model of this package. "
            "Load it with the package that saved it."
        )
    # KerasHub would leave the head with random weights.
    if load_weights and model.has_task_weights() and paths["task.weights.h5"] is None:
        raise ValueError(
            f"{repository} is not a complete Keras preset: it has no task.weights.h5, the weights "
            "of the head. Save it again with save_to_preset."
        )
    model.source = repository.uri if load_weights else None
    return model


def spec_of_model(model, repository):
    """The spec of a model of ours, from which a changed copy is built."""
    own = model.get_config()
    not_of_the_head = ("backbone", "preprocessor", "name", "num_classes", "labels")
    head = {k: own[k] for k in own if k not in not_of_the_head}
    converter = model.preprocessor.image_converter.get_config() if model.preprocessor else {}
    return Spec(
        family_of(model),
        type(model).__name__,
        dict(model.backbone.options),
        head,
        {k: converter[k] for k in arguments(ImageConverter.__init__) if k in converter},
        source=repository,
        num_classes=model.num_classes,
        labels=model.labels,
    )

"""Keras' own layout: directories written by `save_to_preset` of this package's models."""

import contextlib
import dataclasses
from typing import Any

import keras
import keras_hub

from keras_vit import checks, weights
from keras_vit.hub import CONFIG, Repository
from keras_vit.images import ImageConverter
from keras_vit.layers.base import arguments
from keras_vit.layouts import h5
from keras_vit.layouts.spec import BUILDING, Spec, checked, family_of, parameters, spec_of
from keras_vit.models.base import Backbone
from keras_vit.models.classifier import ImageClassifier
from keras_vit.models.freezing import freeze_layers
from keras_vit.text import printable
from keras_vit.weights import Tensor

TASK, CONVERTER = "task.json", "image_converter.json"
FILES = (CONFIG, TASK, "preprocessor.json", CONVERTER, "metadata.json")
WEIGHTS = BACKBONE, HEAD = ("model.weights.h5", "task.weights.h5")


def read_config(config: dict[str, Any], repository: Repository) -> Spec:
    """The spec of a saved model, which can also restore it; nothing is built.

    Raises:
        ValueError: a model of another package, or missing or damaged files.
    """
    if repository.find(TASK) is None:
        raise ValueError(
            f"{repository} is not a complete Keras preset: it has no {TASK}. "
            "Save the classifier, not its backbone, with save_to_preset."
        )
    task = repository.json(TASK)
    cls = keras.saving.get_registered_object(task.get("registered_name"))
    if not isinstance(cls, type) or not issubclass(cls, ImageClassifier):
        raise ValueError(
            f"{repository} holds a {printable(task.get('class_name'))}, which is not a model of "
            "this package. Load it with the package that saved it."
        )
    trunk = checks.kind(config["config"], f"config of {CONFIG}", dict)
    own = checks.kind(task["config"], f"config of {TASK}", dict)
    _check(family_of(cls).name, trunk, own)
    converter = {}
    if own.get("preprocessor") and repository.find(CONVERTER) is not None:
        converter = checks.kind(repository.json(CONVERTER)["config"], CONVERTER, dict)
    spec = _spec(family_of(cls).name, trunk, own, converter)
    spec.source = Saved(repository, cls)
    spec.restore = spec.source.restore
    spec.made = cls
    return spec


def _check(family, trunk, own):
    """Raises where a model cannot be built from the configs of a backbone and a classifier, or
    where the backbone's, which both files have, differ."""
    known = parameters(family)
    checked(family, {k: v for k, v in trunk.items() if k in known})
    checks.count(own["num_classes"], "num_classes", 0, checks.CLASSES)
    if own.get("labels") is not None:
        checks.names(own["labels"], "labels")
    free = ("backbone", "preprocessor", "num_classes")
    checked(family, {k: v for k, v in own.items() if k in known and k not in free})
    inner = checks.kind(own["backbone"]["config"], f"backbone of {TASK}", dict)
    differing = [k for k in trunk if k in known and trunk[k] != inner.get(k)]
    if differing:
        raise checks.WrongValue(
            f"{CONFIG} and {TASK} must describe the same backbone. They differ in: "
            f"{', '.join(differing)}"
        )


def spec_of_model(model: ImageClassifier) -> Spec:
    """The spec of a model of this package, to build a changed copy from; its tensors are those of
    `weights.export`."""
    converter = model.preprocessor.image_converter.get_config() if model.preprocessor else {}
    return _spec(family_of(type(model)).name, model.backbone.options, model.get_config(), converter)


def _spec(family, trunk, own, converter):
    """The spec from the configs of a backbone, a classifier and an image converter."""
    known = parameters(family)
    not_of_the_head = {"backbone", "preprocessor", "num_classes", "labels", "activation"}
    trunk = {k: v for k, v in trunk.items() if k in known}
    spec = spec_of(
        family,
        trunk,
        images={k: v for k, v in converter.items() if k in arguments(ImageConverter.__init__)},
        num_classes=own["num_classes"],
        labels=own.get("labels"),
        activation=own.get("activation", "auto"),
    )
    spec.head = {k: v for k, v in own.items() if k in known and k not in not_of_the_head}
    return spec


@dataclasses.dataclass(frozen=True)
class Saved:
    """The files of a saved model of some class, used like a `hub.Repository`."""

    repository: Repository
    cls: type[ImageClassifier]

    def __str__(self) -> str:
        return str(self.repository)

    @property
    def uri(self) -> str:
        return self.repository.uri

    def tensors(self) -> dict[str, Tensor]:
        """The tensors under timm's keys, in torch's axis order."""
        model = self.restore()
        return weights.export(model, family_of(type(model)).rename)

    def freeze(self, backbone: Backbone) -> None:
        """Freeze the layers that are frozen in the saved backbone."""
        config = checks.kind(self.repository.json(CONFIG)["config"], CONFIG, dict)
        frozen = checks.names(config.get("frozen", []), "frozen")
        freeze_layers(backbone, bool(config.get("trainable", True)), frozen)

    def restore(self, dtype: Any = None, load_weights: bool = True) -> ImageClassifier:
        """The model as it was saved.

        Raises:
            ValueError: files are missing or damaged.
        """
        repository, names = self.repository, FILES + WEIGHTS if load_weights else FILES
        folder = repository.file(CONFIG).parent
        paths = {name: repository.find(name) for name in names}
        if load_weights and paths[BACKBONE] is None:
            raise ValueError(
                f"{repository} is not a complete Keras preset: it has no {BACKBONE}, the weights "
                "of the backbone. Save it again with save_to_preset."
            )
        if dtype is None:
            dtype = _mixed(repository.json(CONFIG))
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        with BUILDING, _naming(repository):
            with weights.deferred():  # no memory before the check
                # Of this class: KerasHub would look for one, and might find another of its kind.
                model = keras_hub.models.Task.from_preset.__func__(
                    self.cls, str(folder), load_weights=False, compile=False, **options
                )
                _check_preprocessor(model.preprocessor)
                if load_weights:
                    _check_size(model, paths, repository)
            model.compile()
            if load_weights:
                if model.has_task_weights():
                    model.load_task_weights(str(paths[HEAD]))
                model.backbone.load_weights(str(paths[BACKBONE]))
        if load_weights:
            weights.check_finite(model, str(repository))
        return model


def _mixed(config):
    """The name of a mixed policy, which KerasHub does not accept by itself, or None."""
    for key in ("config", "dtype", "config", "name"):
        config = config.get(key) if isinstance(config, dict) else None
    return config if isinstance(config, str) and config.startswith("mixed_") else None


def _check_preprocessor(found):
    if found is None:
        return
    converter = found.image_converter if isinstance(found, keras_hub.models.Preprocessor) else None
    if not isinstance(converter, keras.layers.Layer):
        raise ValueError("its preprocessor has no image converter")


def _check_size(model, paths, repository):
    """Refuse a model with more weights than its files hold, and one without those of its head."""
    if model.has_task_weights() and paths[HEAD] is None:
        raise ValueError(f"it has no {HEAD}, the weights of the head. Save it again")
    checks.size(model, repository, None)
    held = sum(h5.count(paths[name]) for name in WEIGHTS if paths[name])
    if model.count_params() > held:
        raise weights.WeightsError(
            f"its config describes {model.count_params():,} weights, its files hold {held:,}"
        )


@contextlib.contextmanager
def _naming(repository):
    """Errors of Keras, of any kind, as a `ValueError` that names the preset."""
    try:
        yield
    except Exception as error:
        kind = weights.WeightsError if isinstance(error, weights.WeightsError) else ValueError
        raise kind(f"{repository} is not a complete Keras preset: {printable(error)}") from error

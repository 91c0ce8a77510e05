"""`Spec`: everything needed to build a model and load its weights, whatever the layout."""

import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import keras_vit_presets as presets
from keras_vit import checks, models
from keras_vit.hub import MissingFile
from keras_vit.keys import spellings, wrapper
from keras_vit.layers.base import arguments
from keras_vit.models.classifier import ImageClassifier
from keras_vit.text import printable
from keras_vit.weights import Tensor

# Keras changes classes and global state while it builds a model: one thread at a time.
BUILDING = threading.RLock()
HALF = [0.5, 0.5, 0.5]
ANCHOR = "patch_embed.proj.weight"  # timm's key of a tensor that each trunk has once
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


class Source(Protocol):
    """Where tensors come from: a `hub.Repository`, a file."""

    @property
    def uri(self) -> str:
        """An address that gives the same tensors again."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by key."""


@dataclasses.dataclass
class Spec:
    """Everything needed to build a model and load its weights.

    Attributes:
        family: the name of its table.
        backbone: all hyper-parameters of the backbone.
        head: arguments of the classifier.
        images: arguments of `ImageConverter`.
        source: where its tensors are; None: there are none.
        names: rows `timm's key = the file's`.
        prefix: prefixes that the file's keys may have.
        ignore: patterns of keys of the file that are not read.
        optional: layers that the file may lack; they then keep their initial values.
        convert: a function of the tensors, for changes that `names` cannot express.
        num_classes, labels, activation: of the head.
        heads: the names, in files of this layout, of all dense layers that may give logits; by
            default timm's.
        note: what the user should know of how the file was read.
        with_tensors: a function of the tensors that returns the spec for them, where these say
            more than the config.
        name: the name of the model.
        otherwise: a function that returns the tensors, or None, where the source has no weights.
        made: the class of the model as it was saved; None: that of the family.
        restore: a function of (dtype, load_weights) that returns the complete model as it was
            saved; None: the model is built from this spec.
    """

    family: str
    backbone: dict[str, Any]
    head: dict[str, Any]
    images: dict[str, Any]
    source: Source | None = None
    names: dict[str, Any] | None = None
    prefix: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    num_classes: int = 0
    labels: list[str] | None = None
    activation: str | None = "auto"
    name: str = ""
    heads: tuple[str, ...] = ()
    note: str = ""
    with_tensors: Callable[[dict[str, Tensor]], "Spec"] | None = None
    otherwise: Callable[[], dict[str, Tensor] | None] | None = None
    made: type[ImageClassifier] | None = None
    restore: Callable[[Any, bool], ImageClassifier] | None = None

    def __post_init__(self) -> None:
        self.name = printable(self.name)
        self.labels = None if self.labels is None else [printable(label) for label in self.labels]

    @property
    def table(self) -> presets.Family:
        return presets.families()[self.family]

    @property
    def cls(self) -> type[ImageClassifier]:
        return self.made or class_of(self.family)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, under the keys of `names`."""
        if self.source is None:
            raise ValueError(f"{self.name} is an architecture without weights.")
        try:
            found = self.source.tensors()
        except MissingFile:
            instead = self.otherwise() if self.otherwise else None
            if instead is None:
                raise
            return instead
        anchors = [k for keys in spellings(ANCHOR, self.names) for k in keys] if self.names else []
        return self.converted(found, (wrapper(found, anchors), *self.prefix))

    def of(self, source: Source) -> "Spec":
        """The same spec, with the tensors of another source."""
        return dataclasses.replace(self, source=source, otherwise=None)

    def converted(self, tensors: dict[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
        """The tensors without those prefixes, after `convert`."""
        for prefix in prefixes:
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        return self.convert(tensors) if self.convert else tensors


def class_of(family: str) -> type[ImageClassifier]:
    """The class of a family's classifier."""
    return getattr(models, presets.families()[family].cls)


def family_of(cls: type[ImageClassifier]) -> presets.Family:
    """The table of a class, or of the class that it is derived from."""
    families = {family.cls: family for family in presets.families().values()}
    for base in cls.__mro__:
        if base.__name__ in families:
            return families[base.__name__]
    raise ValueError(f"{cls.__name__} is not a class of this package.")


def spec_of(family: str, options: dict[str, Any], **fields: Any) -> Spec:
    """A `Spec` with the options divided between backbone and head, and completed by defaults."""
    backbone_cls = class_of(family).backbone_cls
    known = backbone_cls.parameters()
    head = {k: v for k, v in options.items() if k not in known}
    backbone = backbone_cls.complete({k: v for k, v in options.items() if k in known})
    ignore = (*fields.pop("ignore", ()), *presets.families()[family].ignore)
    return Spec(family, backbone, head, ignore=ignore, **fields)


def checked(family: str, options: dict, names: dict | None = None) -> dict[str, Any]:
    """A config's options, after checks of their types and sizes."""
    return checks.options(options, parameters(family), names)


def parameters(family: str) -> dict[str, inspect.Parameter]:
    """All arguments of a family's backbone and classifier, by name."""
    cls = class_of(family)
    found: dict[str, inspect.Parameter] = {}
    for function in (ImageClassifier.__init__, cls.__init__):
        found |= {
            name: inspect.signature(function).parameters[name] for name in arguments(function)
        }
    return {**found, **cls.backbone_cls.parameters()}


def activation(name: Any, field: str) -> str:
    return ACTIVATIONS[checks.word(name, field, ACTIVATIONS)]


def normalization(mean: Any, std: Any, fields: tuple[str, str]) -> dict[str, list[float]]:
    """Mean and standard deviation, one number each per channel."""
    mean = checks.per_channel(mean, fields[0])
    std = checks.per_channel(std, fields[1], checks.positive)
    if len(mean) != len(std):
        raise checks.WrongValue(
            f"{' and '.join(fields)} must have equal lengths. Received: {len(mean)} and {len(std)}"
        )
    return {"mean": mean, "std": std}


def images_of(model: ImageClassifier) -> dict[str, Any]:
    """The arguments of a model's `ImageConverter`.

    Raises:
        ValueError: the model has no preprocessor.
    """
    if model.preprocessor is None:
        raise ValueError("The model has no preprocessor: set model.preprocessor before saving.")
    return model.preprocessor.image_converter.get_config()

"""`Spec`: all that builds a model and finds its weights, whatever layout it was read from."""

import dataclasses
from collections.abc import Callable

from keras_vit import checks, models, presets
from keras_vit.hub import Repository
from keras_vit.layers.base import arguments

HALF = [0.5, 0.5, 0.5]
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
HEAD = ("pooling", "fc_norm", "pool_include_prefix", "distilled_head")


@dataclasses.dataclass
class Spec:
    """All that builds a model and finds its weights.

    `backbone`, `head` and `images` are arguments of the family's backbone, its classifier and of
    `ImageConverter`; `prepare`, tensors -> tensors, does what `names` cannot say.
    """

    family: str
    cls: str
    backbone: dict
    head: dict
    images: dict
    source: Repository | None = None
    names: dict | None = None
    prefix: tuple = ()
    ignore: tuple = ()
    prepare: Callable[[dict], dict] | None = None
    num_classes: int = 0
    labels: list | None = None
    name: str = ""

    @property
    def rename(self):
        return presets.families()[self.family].get("rename", {})


def family_of(model):
    """The name of the table that a model's class belongs to."""
    for name, table in presets.families().items():
        if table["class"] == type(model).__name__:
            return name
    raise ValueError(f"{type(model).__name__} is not a class of this package.")


def spec_of(family, options, **fields):
    """A `Spec` with a family's options dealt out to backbone and head."""
    options = dict(options)
    head = {k: v for k, v in options.items() if k in HEAD}
    backbone = {k: v for k, v in options.items() if k not in HEAD}
    cls = presets.families()[family]["class"]
    return Spec(family, fields.pop("cls", cls), backbone, head, **fields)


def checked(family, options, names=None):
    """Options that a config gave, each of the right kind and of a size that a model may have."""
    cls = getattr(models, presets.families()[family]["class"])
    backbone = cls.backbone_cls
    defaults = backbone.defaults()
    for function in (models.classifier.ImageClassifier.__init__, cls.__init__):
        defaults |= arguments(function)
    return checks.options(options, defaults, names)


def activation(name, field):
    return ACTIVATIONS[checks.word(name, field, ACTIVATIONS)]


def normalization(mean, std, fields):
    """Mean and standard deviation, one number of each per channel."""
    mean = checks.per_channel(mean, fields[0])
    std = checks.per_channel(std, fields[1], checks.positive)
    if len(mean) != len(std):
        raise checks.WrongValue(
            f"{' and '.join(fields)} must be as many. Received: {len(mean)} and {len(std)}"
        )
    return {"mean": mean, "std": std}

"""The interface of a family: keyword-only arguments, their signature, abstract methods."""

import inspect
import pydoc
import re

import keras
import pytest
from tiny_models import OPTIONS

import keras_vit
from keras_vit import models
from keras_vit.models.base import Backbone, PyramidBackbone

NAMES = [name for name in models.__all__ if name.endswith("Backbone")]
TINY = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "stages": ()}
VIT = {  # the constructor of ViTBackbone
    "image_size": 224,
    "in_channels": 3,
    "resample": "bicubic",
    "patch_size": 16,
    "embed_dim": 768,
    "depth": 12,
    "class_token": True,
    "distillation_token": False,
    "reg_tokens": 0,
    "no_embed_class": False,
    "embed_norm": False,
    "pre_norm": False,
    "final_norm": True,
    "grid_size": None,
    "pos_drop_rate": 0.0,
    "patch_drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "positions": "learned",
    "patches": "plain",
    "attention": "full",
    "num_heads": inspect.Parameter.empty,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "proj_bias": True,
    "init_values": None,
    "activation": "gelu",
    "gate": None,
    "norm": "layer",
    "norm_eps": 1e-6,
    "inner_norm": False,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "dtype": None,
    "name": None,
    "trainable": True,
}

STAGED = {cls.backbone_cls: options for cls, options in OPTIONS.items()}  # of tiny models


def parameters(name):
    return inspect.signature(getattr(keras_vit, name)).parameters


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_keyword_only(name):
    message = (
        f"The arguments of {name} are keyword-only, for example {name}(image_size=...). "
        "Received positional arguments: 224, 'a'"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        getattr(keras_vit, name)(224, "a", num_heads=3)


def test_the_signature_has_every_argument_with_its_default():
    assert {name: p.default for name, p in parameters("ViTBackbone").items()} == VIT


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_what_the_constructor_does(name):
    """A model made with a few arguments has the signature's defaults in its config for the rest."""
    signature = parameters(name)
    assert {p.kind for p in signature.values()} == {inspect.Parameter.KEYWORD_ONLY}
    cls = getattr(keras_vit, name)
    given = {k: v for k, v in TINY.items() if k in signature}
    if "depths" in signature:
        given = STAGED.get(cls, {"image_size": 64})
    config = cls(**given).get_config()
    rest = set(signature) - set(given) - {"name", "dtype"}
    own = cls.complete({**{k: signature[k].default for k in rest}, **given})
    assert {k: config[k] for k in rest} == {k: own[k] for k in rest}


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_every_argument_with_its_default(name):
    cls = getattr(keras_vit, name)
    text = pydoc.plain(pydoc.render_doc(cls))
    head = " ".join(text[: text.index(cls.__doc__.splitlines()[0])].split())
    for parameter in parameters(name).values():
        assert re.search(rf", {re.escape(str(parameter))}[,)]", head), parameter


class OnlyGrid(Backbone):
    """A family without a graph."""

    @staticmethod
    def grid(options):
        return 1, 1


class OnlyGraph(Backbone):
    """A family without a grid."""

    @staticmethod
    def graph(*, width=4, dtype=None):
        x = keras.Input((width,))
        return x, x


@pytest.mark.parametrize(
    "cls, missing",
    [
        (Backbone, "graph and grid"),
        (PyramidBackbone, "graph and grid"),
        (OnlyGrid, "graph"),
        (OnlyGraph, "grid"),
    ],
)
def test_an_abstract_family_cannot_be_instantiated(cls, missing):
    message = (
        f"{cls.__name__} is an abstract class and cannot be instantiated: "
        f"it does not implement {missing}."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        cls()
    inspect.signature(cls)  # which `help` shows

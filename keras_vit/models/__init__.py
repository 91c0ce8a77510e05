"""Model families: one module each, with the same name as the family's table in presets/; and the
pyramids that detection and segmentation take."""

import importlib

import keras_vit_presets as presets
from keras_vit.models.pyramid import SegFormerEncoder, SimplePyramid


def _model_classes():
    """{name: class} of every family's classifier and backbone."""
    classes = {}
    for family in presets.families().values():
        module = importlib.import_module(f"keras_vit.models.{family.name}")
        for name in (family.cls, f"{family.cls}Backbone"):
            classes[name] = getattr(module, name)
    return classes


_exported = _model_classes()
globals().update(_exported)
__all__ = sorted([*_exported, "SegFormerEncoder", "SimplePyramid"])

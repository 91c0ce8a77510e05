"""Reads checkpoints of several layouts as a `Spec` to build a model from; writes timm's and
transformers'.

Rows of presets/ (tables.py); config.json of timm (timm.py), of transformers (transformers.py), of
KerasHub (kerashub.py), of models saved by this package (saved.py); files without a config.json
(bare.py): google-research's .npz (flax.py) and torchvision's safetensors (torchvision.py).
"""

from keras_vit.layouts.bare import SUFFIXES, spec_of_file
from keras_vit.layouts.config import from_repository
from keras_vit.layouts.spec import Spec, family_of
from keras_vit.layouts.tables import from_architecture, from_checkpoint

__all__ = [
    "SUFFIXES",
    "Spec",
    "family_of",
    "from_architecture",
    "from_checkpoint",
    "from_repository",
    "spec_of_file",
]

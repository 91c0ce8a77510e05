"""What a checkpoint's place says of it, in the words of its layout, as a `Spec` to build from.

Rows of presets/ (rows.py), config.json of timm (timm.py), of transformers (transformers.py) and of
KerasHub (kerashub.py), models that this package saved (saved.py), and files without a config.json
(foreign.py): google-research's .npz (flax.py) and torchvision's safetensors (torchvision.py).
"""

from keras_vit.layouts.config import from_repository
from keras_vit.layouts.foreign import SUFFIXES, spec_of_file
from keras_vit.layouts.rows import from_architecture, from_row
from keras_vit.layouts.spec import ACTIVATIONS, HEAD, Spec, family_of
from keras_vit.layouts.timm import TIMM_ARGUMENTS

__all__ = [
    "ACTIVATIONS",
    "HEAD",
    "SUFFIXES",
    "Spec",
    "TIMM_ARGUMENTS",
    "family_of",
    "from_architecture",
    "from_repository",
    "from_row",
    "spec_of_file",
]

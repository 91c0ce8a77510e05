"""Vision transformers for Keras 3, with pretrained weights from the Hugging Face Hub."""

from keras_vit import explain, export, layers, models, scale, train
from keras_vit.models import *  # noqa: F403  the classes of all families
from keras_vit.version import __version__
from keras_vit.zoo import from_preset, list_presets, preset_info

__all__ = sorted(
    [
        "explain",
        "export",
        "from_preset",
        "layers",
        "list_presets",
        "models",
        "preset_info",
        "scale",
        "train",
        *models.__all__,
    ]
)

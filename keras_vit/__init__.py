"""Vision transformers for Keras 3: the checkpoints of the Hugging Face Hub, exactly."""

import sys

# The command `keras-vit` imports what it needs itself, so that --help and list come at once.
# Everywhere else import loads Keras and registers our classes with it.
if "keras_vit_command" not in sys.modules:
    from keras_vit import explain, export, layers, models, save, train
    from keras_vit.models import (
        DeiT,
        DeiTBackbone,
        HybridViT,
        HybridViTBackbone,
        MLPMixer,
        MLPMixerBackbone,
        ViT,
        ViTBackbone,
    )
    from keras_vit.zoo import from_preset, list_presets, preset_info

__version__ = "0.1.0"
__all__ = [
    "DeiT",
    "DeiTBackbone",
    "HybridViT",
    "HybridViTBackbone",
    "MLPMixer",
    "MLPMixerBackbone",
    "ViT",
    "ViTBackbone",
    "explain",
    "export",
    "from_preset",
    "layers",
    "list_presets",
    "models",
    "preset_info",
    "train",
]

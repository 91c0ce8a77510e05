"""Model families: one file each."""

from keras_vit.models.deit import DeiT, DeiTBackbone
from keras_vit.models.hybrid import HybridViT, HybridViTBackbone
from keras_vit.models.mixer import MLPMixer, MLPMixerBackbone
from keras_vit.models.vit import ViT, ViTBackbone

__all__ = [
    "DeiT",
    "DeiTBackbone",
    "HybridViT",
    "HybridViTBackbone",
    "MLPMixer",
    "MLPMixerBackbone",
    "ViT",
    "ViTBackbone",
]

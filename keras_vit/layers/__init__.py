"""Building blocks: Keras layers with plain-number arguments, for any backend, channels last."""

from keras_vit.layers.attention import Attention, AttentionPool
from keras_vit.layers.block import DropPath, LayerScale, TransformerBlock
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.patches import PatchEncoder, Patches

__all__ = [
    "Attention",
    "AttentionPool",
    "DropPath",
    "LayerScale",
    "Mlp",
    "PatchEncoder",
    "Patches",
    "TransformerBlock",
]

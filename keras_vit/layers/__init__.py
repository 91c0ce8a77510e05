"""Building blocks of the models: Keras layers for every backend, channels last."""

from keras_vit.layers.attention import Attention, AttentionPool
from keras_vit.layers.block import LayerScale, TransformerBlock
from keras_vit.layers.conv import DepthwiseConv
from keras_vit.layers.drop import DropPath, PatchDropout
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.patches import PatchEncoder, Patches

__all__ = [
    "Attention",
    "AttentionPool",
    "DepthwiseConv",
    "DropPath",
    "LayerScale",
    "Mlp",
    "PatchDropout",
    "PatchEncoder",
    "Patches",
    "TransformerBlock",
]

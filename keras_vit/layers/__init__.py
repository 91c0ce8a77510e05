"""Building blocks of the models: Keras layers for every backend, channels last."""

from keras_vit.layers.attention import Attention, AttentionPool
from keras_vit.layers.block import LayerScale, TransformerBlock
from keras_vit.layers.conv import DepthwiseConv
from keras_vit.layers.drop import DropPath, PatchDropout
from keras_vit.layers.linear import LinearAttention
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.patches import PatchEncoder, Patches
from keras_vit.layers.pool import SequencePool
from keras_vit.layers.sparse import AxialAttention, SparseAttention

__all__ = [
    "Attention",
    "AttentionPool",
    "AxialAttention",
    "DepthwiseConv",
    "DropPath",
    "LayerScale",
    "LinearAttention",
    "Mlp",
    "PatchDropout",
    "PatchEncoder",
    "Patches",
    "SequencePool",
    "SparseAttention",
    "TransformerBlock",
]

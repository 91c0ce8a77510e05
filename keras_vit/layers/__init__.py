"""Building blocks of the models: Keras layers for every backend, channels last."""

from keras_vit.layers.attention import Attention, AttentionPool
from keras_vit.layers.block import LayerScale, TransformerBlock
from keras_vit.layers.conv import DepthwiseConv
from keras_vit.layers.drop import DropPath, PatchDropout
from keras_vit.layers.linear import LinearAttention
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.patches import PatchEncoder, Patches
from keras_vit.layers.pool import SequencePool
from keras_vit.layers.pooling_attention import PoolingAttention
from keras_vit.layers.positional import (
    RelativePositionAttention,
    RotaryPositionAttention,
    ShawAttention,
)
from keras_vit.layers.positions import AxialPositions
from keras_vit.layers.shifted import ShiftedWindowAttention
from keras_vit.layers.sparse import AxialAttention, SparseAttention

__all__ = [
    "Attention",
    "AttentionPool",
    "AxialAttention",
    "AxialPositions",
    "DepthwiseConv",
    "DropPath",
    "LayerScale",
    "LinearAttention",
    "Mlp",
    "PatchDropout",
    "PatchEncoder",
    "Patches",
    "PoolingAttention",
    "RelativePositionAttention",
    "RotaryPositionAttention",
    "SequencePool",
    "ShawAttention",
    "ShiftedWindowAttention",
    "SparseAttention",
    "TransformerBlock",
]

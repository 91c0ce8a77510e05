"""Building blocks of the models: Keras layers for every backend, channels last."""

from keras_vit.layers.adaptive import AdaptivePatches
from keras_vit.layers.attention import Attention, AttentionPool
from keras_vit.layers.block import LayerScale, TransformerBlock
from keras_vit.layers.conv import DepthwiseConv
from keras_vit.layers.drop import DropPath, PatchDropout
from keras_vit.layers.linear import LinearAttention
from keras_vit.layers.merging import PatchMerging
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.patches import PatchEncoder
from keras_vit.layers.pool import SequencePool
from keras_vit.layers.pooling_attention import PoolingAttention
from keras_vit.layers.positional import (
    RelativePositionAttention,
    RotaryPositionAttention,
    ShawAttention,
)
from keras_vit.layers.positions import AxialPositions
from keras_vit.layers.projections import (
    ConditionalPositions,
    HybridPatches,
    OverlappingPatches,
    PositionalPatches,
)
from keras_vit.layers.shifted import ShiftedWindowAttention
from keras_vit.layers.sparse import AxialAttention, SparseAttention
from keras_vit.layers.split import Patches

__all__ = [
    "AdaptivePatches",
    "Attention",
    "AttentionPool",
    "AxialAttention",
    "AxialPositions",
    "ConditionalPositions",
    "DepthwiseConv",
    "DropPath",
    "HybridPatches",
    "LayerScale",
    "LinearAttention",
    "Mlp",
    "OverlappingPatches",
    "PatchDropout",
    "PatchEncoder",
    "PatchMerging",
    "Patches",
    "PoolingAttention",
    "PositionalPatches",
    "RelativePositionAttention",
    "RotaryPositionAttention",
    "SequencePool",
    "ShawAttention",
    "ShiftedWindowAttention",
    "SparseAttention",
    "TransformerBlock",
]

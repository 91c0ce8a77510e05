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
from keras_vit.layers.projections import (
    ConditionalPositions,
    HybridPatches,
    OverlappingPatches,
    PositionalPatches,
)
from keras_vit.layers.sparse import AxialAttention, SparseAttention
from keras_vit.layers.split import Patches

__all__ = [
    "AdaptivePatches",
    "Attention",
    "AttentionPool",
    "AxialAttention",
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
    "PositionalPatches",
    "SparseAttention",
    "TransformerBlock",
]

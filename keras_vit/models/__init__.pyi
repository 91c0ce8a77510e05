"""Every family's classes, for editors and type checkers; scripts/stubs.py writes it."""

import collections.abc
import typing
from typing import Any

from keras_vit.models import beit as _beit
from keras_vit.models import coatnet as _coatnet
from keras_vit.models import convnext as _convnext
from keras_vit.models import deit as _deit
from keras_vit.models import eva as _eva
from keras_vit.models import gmlp as _gmlp
from keras_vit.models import hybrid as _hybrid
from keras_vit.models import maxvit as _maxvit
from keras_vit.models import mixer as _mixer
from keras_vit.models import pvt as _pvt
from keras_vit.models import pvt_v1 as _pvt_v1
from keras_vit.models import relpos as _relpos
from keras_vit.models import resmlp as _resmlp
from keras_vit.models import swin as _swin
from keras_vit.models import swin_v2 as _swin_v2
from keras_vit.models import vit as _vit
from keras_vit.models.pyramid import SegFormerEncoder, SimplePyramid

BEiT = _beit.BEiT

class BEiTBackbone(_beit.BEiTBackbone):
    """BEiT backbone, images to tokens: `(B, H, W, C) -> (B, 1 + N, D)`, N = (H / P) * (W / P).

    Args:
        image_size: int or (height, width), in pixels.
        in_channels: C.
        use_abs_pos_emb: whether to add a learned position embedding.
        use_rel_pos_bias: whether each block has a relative position bias.
        use_shared_rel_pos_bias: whether there is one for all blocks.
        patch_size: P, in pixels; must divide height and width.
        embed_dim: D.
        depth: number of blocks.
        init_values: initial value of LayerScale; None for no LayerScale.
        final_norm: whether to add a norm after the blocks.
        pos_drop_rate, drop_path_rate, resample, dtype: as in `ViTBackbone`.
        num_heads, mlp_ratio and the others: as in `TransformerBlock`; keys have no bias.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the image.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        use_abs_pos_emb: bool = False,
        use_rel_pos_bias: bool = True,
        use_shared_rel_pos_bias: bool = False,
        init_values: float | None = 1e-05,
        resample: str = "bicubic",
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        final_norm: bool = True,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        activation: str = "gelu",
        gate: str | None = None,
        norm: str = "layer",
        norm_eps: float = 1e-06,
        inner_norm: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

CoAtNet = _coatnet.CoAtNet

class CoAtNetBackbone(_coatnet.CoAtNetBackbone):
    """CoAtNet backbone, images to a map of features: `(B, H, W, C) -> (B, H / 32, W / 32, D)`.

    Args:
        image_size: int or (height, width), in pixels; multiples of 32.
        in_channels: C.
        embed_dim: channels of the four stages; the last is D.
        depths: number of blocks of the four stages.
        stem_width: channels of the two convolutions of the stem.
        stem_bias: whether these have biases.
        conv_block: `"mbconv"` or `"convnext"`, the blocks of the first two stages.
        final_norm: whether a norm follows the last stage.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        dtype: Keras dtype policy.
        expand_output, conv_activation and the others: as in `MBConv`, `StridedConvNeXt` and
            `CoAtNetBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the image size no multiple of 32.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        embed_dim: collections.abc.Sequence[int] = (96, 192, 384, 768),
        depths: collections.abc.Sequence[int] = (2, 3, 5, 2),
        stem_width: collections.abc.Sequence[int] = (64, 64),
        stem_bias: bool = False,
        conv_block: str = "mbconv",
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        expand_output: bool = True,
        pre_norm_act: bool = False,
        output_bias: bool = True,
        stride_mode: str = "dw",
        pool_type: str = "avg2",
        padding: str = "symmetric",
        se_early: bool = False,
        se_ratio: float = 0.25,
        se_activation: str = "silu",
        conv_activation: str = "gelu",
        conv_norm_eps: float = 1e-05,
        conv_init_values: float = 1e-06,
        expand_first: bool = True,
        dim_head: int = 32,
        rel_pos: str = "bias",
        rel_pos_dim: int = 512,
        shortcut_bias: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        norm: str = "layer",
        norm_eps: float = 1e-06,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

ConvNeXt = _convnext.ConvNeXt

class ConvNeXtBackbone(_convnext.ConvNeXtBackbone):
    """ConvNeXt backbone, images to a feature map: `(B, H, W, C) -> (B, H / 32, W / 32, dims[3])`.

    Where 32 does not divide the image, the last rows and columns are not read, as in the authors'
    code. `pyramid_outputs` has the outputs of the four stages, P2 to P5.

    Args:
        image_size: int or (height, width), in pixels; None for images of any size.
        in_channels: C.
        depths: number of blocks in each of the four stages.
        dims: number of channels in each stage.
        kernel_sizes: of the depthwise convolutions of each stage, in pixels.
        stem_type: `"patch"`: a 4x4 convolution with stride 4; `"overlap"`: two 3x3 convolutions
            with stride 2; `"overlap_tiered"`: the first of these has half the channels.
        final_norm: whether a LayerNorm ends the backbone. By default the classifier has it, after
            the pooling.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        dtype: Keras dtype policy.
        init_values, use_grn, activation, norm_eps: as in `ConvNeXtBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the image is smaller than 32 pixels.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        depths: collections.abc.Sequence[int] = (3, 3, 9, 3),
        dims: collections.abc.Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: collections.abc.Sequence[int] = (7, 7, 7, 7),
        stem_type: str = "patch",
        final_norm: bool = False,
        drop_path_rate: float = 0.0,
        init_values: float = 1e-06,
        use_grn: bool = False,
        activation: str = "gelu",
        norm_eps: float = 1e-06,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

DeiT = _deit.DeiT

class DeiTBackbone(_deit.DeiTBackbone):
    """ViT backbone, images to tokens: `(B, H, W, C) -> (B, prefix + N, D)`, N = (H / P) * (W / P).

    Prefix tokens are the class, distillation and register tokens, in this order.

    Args:
        image_size: int or (height, width), in pixels. None for images of any size that the patch
            size divides: the position embedding is resampled inside the model, and `grid_size` is
            required.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D.
        depth: number of transformer blocks.
        class_token: whether to prepend a class token.
        distillation_token: whether to prepend a distillation token (DeiT).
        reg_tokens: number of register tokens.
        no_embed_class: if True, only patch tokens have a position embedding.
        embed_norm: whether to add a norm after the patch projection (AIMv2).
        pre_norm: whether to add a norm before the blocks; the patch projection then has no bias
            (CLIP).
        final_norm: whether to add a norm after the blocks.
        grid_size: (rows, columns) of the position embedding; None for the grid of the image.
        pos_drop_rate: dropout rate of the tokens after the position embedding.
        patch_drop_rate: the part of the patches that training leaves out, as in `PatchDropout`.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        resample: how `from_preset` adapts the position embedding and the patch kernel to another
            size, as timm does for the checkpoint: `"bicubic"` (antialiased), `"bilinear"` (not
            antialiased; FlexiViT, C-RADIO) or `"bilinear_corners"` (the same, and the position
            embedding has aligned corners; C-RADIOv3-B and H).
        positions: `"learned"`, `"learned2d"`, `"sincos2d"`, `"conditional"` or `"none"`, as in
            `PatchEncoder`; with full attention also `"relative"` (`RelativePositionAttention`) or
            `"rotary"` (`RotaryPositionAttention`) instead of these.
        patches: `"plain"`, `"overlapping"`, `"hybrid"`, `"positional"` or `"adaptive"`, as in
            `PatchEncoder`.
        attention: `"full"`, `"linear"` or `"performer"` (`LinearAttention`), or one for images of
            one size: `"axial"` (`AxialAttention`), `"sparse"` (`SparseAttention`), `"window"`
            (`ShiftedWindowAttention`, shifted in every other block), `"pooling"`
            (`PoolingAttention`), `"relative"`, `"shaw"` (`ShawAttention`), `"rotary"`.
        dtype: Keras dtype policy.
        num_heads, mlp_ratio and the others: as in `TransformerBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument or its value is unknown, or the patch size does not divide the
            image.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        resample: str = "bicubic",
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        class_token: bool = True,
        distillation_token: bool = False,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        embed_norm: bool = False,
        pre_norm: bool = False,
        final_norm: bool = True,
        grid_size: int | tuple[int, int] | None = None,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        positions: str = "learned",
        patches: str | collections.abc.Mapping[str, typing.Any] = "plain",
        attention: str = "full",
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        gate: str | None = None,
        norm: str = "layer",
        norm_eps: float = 1e-06,
        inner_norm: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

EVA = _eva.EVA

class EVABackbone(_eva.EVABackbone):
    """EVA backbone, images to tokens: `(B, H, W, C) -> (B, prefix + N, D)`, N = (H / P) * (W / P).

    Prefix tokens are the class token and the register tokens, in this order.

    Args:
        image_size: int or (height, width), in pixels. None for images of any size that the patch
            size divides: rotations are computed, and a position embedding is resampled, inside the
            model.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D.
        depth: number of blocks.
        class_token: whether to prepend a class token.
        reg_tokens: number of register tokens.
        use_abs_pos_emb: whether to add a learned position embedding.
        no_embed_class: if True, only patch tokens have a position embedding.
        pre_norm: whether to add a norm before the blocks; the patch projection then has no bias.
        final_norm: whether to add a norm after the blocks.
        rope_type: `"cat"`, `"dinov3"` or `"mixed"`, see `RotaryEmbedding`; `"none"`: no rotations.
        rope_temperature, rope_grid_offset, rope_grid_indexing, ref_feat_shape: as in
            `RotaryEmbedding`.
        attn_pool_num_heads, attn_pool_mlp_ratio: of a classifier with `pooling="map"`; None: those
            of the blocks.
        grid_size: (rows, columns) of the position embedding; None for the grid of the image.
        pos_drop_rate, drop_path_rate, resample, dtype: as in `ViTBackbone`.
        num_heads, mlp_ratio and the others: as in `EVABlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, the patch size does not divide the image, or the
            heads are no multiple of 4 channels wide.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        rope_type: str = "cat",
        rope_temperature: float = 10000.0,
        rope_grid_offset: float | None = None,
        rope_grid_indexing: str = "ij",
        ref_feat_shape: int | tuple[int, int] | None = None,
        attn_pool_num_heads: int | None = None,
        attn_pool_mlp_ratio: float | None = None,
        resample: str = "bicubic",
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        class_token: bool = True,
        reg_tokens: int = 0,
        use_abs_pos_emb: bool = True,
        no_embed_class: bool = False,
        pre_norm: bool = False,
        final_norm: bool = True,
        grid_size: int | tuple[int, int] | None = None,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        gate: str | None = None,
        norm: str = "layer",
        norm_eps: float = 1e-06,
        inner_norm: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        key_bias: bool = True,
        qkv_fused: bool = True,
        rope_rotate_half: bool = False,
        scale_attn_inner: bool = False,
        use_post_norm: bool = False,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

GMLP = _gmlp.GMLP

class GMLPBackbone(_gmlp.GMLPBackbone):
    """gMLP backbone, images to tokens: `(B, H, W, C) -> (B, N, D)`, N = (H / P) * (W / P).

    The weights depend on N, so a model accepts images of one size only.

    Args:
        image_size: int or (height, width), in pixels.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D.
        depth: number of blocks.
        drop_path_rate: stochastic depth rate of every block.
        dtype: Keras dtype policy.
        mlp_ratio, activation: as in `GatingBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the image.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 512,
        depth: int = 8,
        drop_path_rate: float = 0.0,
        mlp_ratio: float = 6.0,
        activation: str = "gelu",
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

HybridViT = _hybrid.HybridViT

class HybridViTBackbone(_hybrid.HybridViTBackbone):
    """Hybrid ViT backbone, images to tokens: `(B, H, W, C) -> (B, prefix + N, D)`.

    The arguments are those of `ViTBackbone`, except:

    Args:
        stages: number of bottlenecks in each stage of the ResNet; empty for the stem only. The stem
            divides the resolution by 4, each stage after the first by 2.
        patch_size: P, in pixels of the ResNet's feature map.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the ResNet's
            feature map.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        stages: collections.abc.Sequence[int] = (3, 4, 9),
        resample: str = "bicubic",
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        class_token: bool = True,
        distillation_token: bool = False,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        embed_norm: bool = False,
        pre_norm: bool = False,
        final_norm: bool = True,
        grid_size: int | tuple[int, int] | None = None,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        positions: str = "learned",
        patches: str | collections.abc.Mapping[str, typing.Any] = "plain",
        attention: str = "full",
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        gate: str | None = None,
        norm: str = "layer",
        norm_eps: float = 1e-06,
        inner_norm: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

MaxViT = _maxvit.MaxViT

class MaxViTBackbone(_maxvit.MaxViTBackbone):
    """MaxViT backbone, images to a map of features: `(B, H, W, C) -> (B, H / 32, W / 32, D)`.

    The windows and grids of all stages have H / 32 x W / 32 tokens. The arguments are those of
    `CoAtNetBackbone`, except:

    Args:
        conv_block: `"mbconv"` or `"convnext"`, the convolutional part of all blocks.
        block_attn: whether the blocks have block attention; grid attention they all have.
        expand_output, conv_activation and the others: as in `MBConv`, `StridedConvNeXt` and
            `PartitionAttention`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the image size no multiple of 32.
    """

    def __init__(
        self,
        *,
        block_attn: bool = True,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        embed_dim: collections.abc.Sequence[int] = (96, 192, 384, 768),
        depths: collections.abc.Sequence[int] = (2, 3, 5, 2),
        stem_width: collections.abc.Sequence[int] = (64, 64),
        stem_bias: bool = False,
        conv_block: str = "mbconv",
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        expand_output: bool = True,
        pre_norm_act: bool = False,
        output_bias: bool = True,
        stride_mode: str = "dw",
        pool_type: str = "avg2",
        padding: str = "symmetric",
        se_early: bool = False,
        se_ratio: float = 0.25,
        se_activation: str = "silu",
        conv_activation: str = "gelu",
        conv_norm_eps: float = 1e-05,
        conv_init_values: float = 1e-06,
        dim_head: int = 32,
        rel_pos: str = "bias",
        rel_pos_dim: int = 512,
        head_first: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-06,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

MLPMixer = _mixer.MLPMixer

class MLPMixerBackbone(_mixer.MLPMixerBackbone):
    """MLP-Mixer backbone, images to tokens: `(B, H, W, C) -> (B, N, D)`, N = (H / P) * (W / P).

    The weights depend on N, so a model accepts images of one size only.

    Args:
        image_size: int or (height, width), in pixels.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D.
        depth: number of blocks.
        drop_path_rate: stochastic depth rate of every block.
        dtype: Keras dtype policy.
        mlp_ratio, token_ratio and the others: as in `MixerBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the image.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 512,
        depth: int = 8,
        drop_path_rate: float = 0.0,
        mlp_ratio: float = 4.0,
        token_ratio: float = 0.5,
        activation: str = "gelu",
        gate: str | None = None,
        drop_rate: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

PVT = _pvt.PVT

class PVTBackbone(_pvt.PVTBackbone):
    """PVT v2 backbone, images to a feature map: `(B, H, W, C) -> (B, ceil(H/32), ceil(W/32), D)`.

    `pyramid_outputs` has the normalized outputs of the four stages, P2 to P5.

    Args:
        image_size: int or (height, width), in pixels; None for images of any size.
        in_channels: C.
        embed_dims: channels of each stage; D is the last.
        depths: number of blocks of each stage.
        num_heads, sr_ratios, mlp_ratios: of the blocks of each stage.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        dtype: Keras dtype policy.
        linear, qkv_bias and the others: as in `PVTBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the image is too small for the reduction of its
            keys.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        embed_dims: collections.abc.Sequence[int] = (64, 128, 320, 512),
        depths: collections.abc.Sequence[int] = (3, 4, 6, 3),
        num_heads: collections.abc.Sequence[int] = (1, 2, 5, 8),
        sr_ratios: collections.abc.Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: collections.abc.Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        drop_path_rate: float = 0.0,
        linear: bool = False,
        qkv_bias: bool = True,
        activation: str = "gelu",
        norm_eps: float = 1e-06,
        conv_norm_eps: float = 1e-05,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

PVTv1 = _pvt_v1.PVTv1

class PVTv1Backbone(_pvt_v1.PVTv1Backbone):
    """PVT backbone, images to tokens: `(B, H, W, C) -> (B, 1 + N, D)`, N = (H / 32) * (W / 32).

    The first token is the class token. `pyramid_outputs` has the outputs of the four stages, P2 to
    P5, without the last norm and the class token.

    Args:
        image_size: int or (height, width), in pixels; 32 must divide both.
        in_channels: C.
        embed_dims: channels of each stage; D is the last.
        depths: number of blocks of each stage.
        num_heads, sr_ratios, mlp_ratios: of the blocks of each stage; the last does not reduce.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        norm_eps: epsilon of all norms.
        dtype: Keras dtype policy.
        qkv_bias, activation: as in `PVTBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or 32 does not divide the image.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        embed_dims: collections.abc.Sequence[int] = (64, 128, 320, 512),
        depths: collections.abc.Sequence[int] = (3, 4, 6, 3),
        num_heads: collections.abc.Sequence[int] = (1, 2, 5, 8),
        sr_ratios: collections.abc.Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: collections.abc.Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-06,
        qkv_bias: bool = True,
        activation: str = "gelu",
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

RelPosViT = _relpos.RelPosViT

class RelPosViTBackbone(_relpos.RelPosViTBackbone):
    """Backbone of a ViT with relative positions: `(B, H, W, C) -> (B, prefix + N, D)`, N = (H / P)
    * (W / P).

    Args:
        image_size: int or (height, width), in pixels.
        in_channels: C.
        shared_rel_pos: whether all blocks share one bias.
        rel_pos_dim: hidden width of the MLP that computes the bias.
        patch_size: P, in pixels; must divide height and width.
        embed_dim: D.
        depth: number of blocks.
        class_token: whether to prepend a class token, which has no bias.
        final_norm: whether to add a norm after the blocks.
        pos_drop_rate, drop_path_rate, resample, dtype: as in `ViTBackbone`.
        use_post_norm: norms at the end of the residual branches instead of at their beginning.
        num_heads, mlp_ratio and the others: as in `TransformerBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the image.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        class_token: bool = False,
        shared_rel_pos: bool = False,
        rel_pos_dim: int = 128,
        use_post_norm: bool = False,
        resample: str = "bicubic",
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        final_norm: bool = True,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        gate: str | None = None,
        norm: str = "layer",
        norm_eps: float = 1e-06,
        inner_norm: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

ResMLP = _resmlp.ResMLP

class ResMLPBackbone(_resmlp.ResMLPBackbone):
    """ResMLP backbone, images to tokens: `(B, H, W, C) -> (B, N, D)`, N = (H / P) * (W / P).

    The weights depend on N, so a model accepts images of one size only.

    Args:
        image_size: int or (height, width), in pixels.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D.
        depth: number of blocks.
        drop_path_rate: stochastic depth rate of every block.
        dtype: Keras dtype policy.
        mlp_ratio, activation and the others: as in `ResMLPBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the image.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 512,
        depth: int = 8,
        drop_path_rate: float = 0.0,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        init_values: float = 0.0001,
        drop_rate: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

Swin = _swin.Swin

class SwinBackbone(_swin.SwinBackbone):
    """Swin backbone, images to a feature map: `(B, H, W, C) -> (B, H / (8 * P), W / (8 * P), 8 *
    D)` for four stages.

    Args:
        image_size: int or (height, width), in pixels.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D, the width of the first stage; it doubles from stage to stage.
        depths: number of blocks in each stage.
        num_heads: number of attention heads in each stage.
        window_size: edge of the windows, in tokens: an int, (h, w), or one of these for each stage.
            A window is no larger than the map. Every other block moves the map by half a window,
            unless the window covers it.
        pad_first: where the windows do not divide the map, zeros are added and take part in the
            attention. False: after the map moved (Microsoft, timm). True: before (transformers,
            torchvision); and where the window covers one axis of the map, the other does not move.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        dtype: Keras dtype policy.
        mlp_ratio and the others: as in `SwinBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, the patch size does not divide the image, or there is
            not one window, depth and number of heads for each stage.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        embed_dim: int = 96,
        depths: collections.abc.Sequence[int] = (2, 2, 6, 2),
        num_heads: collections.abc.Sequence[int] = (3, 6, 12, 24),
        window_size: Any = 7,
        drop_path_rate: float = 0.0,
        pad_first: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        activation: str = "gelu",
        norm_eps: float = 1e-05,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

SwinV2 = _swin_v2.SwinV2

class SwinV2Backbone(_swin_v2.SwinV2Backbone):
    """Swin V2 backbone, images to a feature map: `(B, H, W, C) -> (B, H / (8 * P), W / (8 * P), 8 *
    D)` for four stages.

    Args:
        pretrained_window_sizes: for each stage the edge of the windows that it was first trained
            with; 0: that of its own. The bias of positions is a function of distances in relation
            to it.
        mask_penalty: subtracted from the logits of tokens that share a window, but are not
            neighbours. transformers subtracts 100 twice.
        image_size and the others: as in `SwinBackbone`.

    Raises:
        TypeError, ValueError: as in `SwinBackbone`.
    """

    def __init__(
        self,
        *,
        pretrained_window_sizes: collections.abc.Sequence[int] = (0, 0, 0, 0),
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        embed_dim: int = 96,
        depths: collections.abc.Sequence[int] = (2, 2, 6, 2),
        num_heads: collections.abc.Sequence[int] = (3, 6, 12, 24),
        window_size: Any = 7,
        drop_path_rate: float = 0.0,
        mask_penalty: float = 100.0,
        pad_first: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        activation: str = "gelu",
        norm_eps: float = 1e-05,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

ViT = _vit.ViT

class ViTBackbone(_vit.ViTBackbone):
    """ViT backbone, images to tokens: `(B, H, W, C) -> (B, prefix + N, D)`, N = (H / P) * (W / P).

    Prefix tokens are the class, distillation and register tokens, in this order.

    Args:
        image_size: int or (height, width), in pixels. None for images of any size that the patch
            size divides: the position embedding is resampled inside the model, and `grid_size` is
            required.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D.
        depth: number of transformer blocks.
        class_token: whether to prepend a class token.
        distillation_token: whether to prepend a distillation token (DeiT).
        reg_tokens: number of register tokens.
        no_embed_class: if True, only patch tokens have a position embedding.
        embed_norm: whether to add a norm after the patch projection (AIMv2).
        pre_norm: whether to add a norm before the blocks; the patch projection then has no bias
            (CLIP).
        final_norm: whether to add a norm after the blocks.
        grid_size: (rows, columns) of the position embedding; None for the grid of the image.
        pos_drop_rate: dropout rate of the tokens after the position embedding.
        patch_drop_rate: the part of the patches that training leaves out, as in `PatchDropout`.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        resample: how `from_preset` adapts the position embedding and the patch kernel to another
            size, as timm does for the checkpoint: `"bicubic"` (antialiased), `"bilinear"` (not
            antialiased; FlexiViT, C-RADIO) or `"bilinear_corners"` (the same, and the position
            embedding has aligned corners; C-RADIOv3-B and H).
        positions: `"learned"`, `"learned2d"`, `"sincos2d"`, `"conditional"` or `"none"`, as in
            `PatchEncoder`; with full attention also `"relative"` (`RelativePositionAttention`) or
            `"rotary"` (`RotaryPositionAttention`) instead of these.
        patches: `"plain"`, `"overlapping"`, `"hybrid"`, `"positional"` or `"adaptive"`, as in
            `PatchEncoder`.
        attention: `"full"`, `"linear"` or `"performer"` (`LinearAttention`), or one for images of
            one size: `"axial"` (`AxialAttention`), `"sparse"` (`SparseAttention`), `"window"`
            (`ShiftedWindowAttention`, shifted in every other block), `"pooling"`
            (`PoolingAttention`), `"relative"`, `"shaw"` (`ShawAttention`), `"rotary"`.
        dtype: Keras dtype policy.
        num_heads, mlp_ratio and the others: as in `TransformerBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument or its value is unknown, or the patch size does not divide the
            image.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = 224,
        in_channels: int = 3,
        resample: str = "bicubic",
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        class_token: bool = True,
        distillation_token: bool = False,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        embed_norm: bool = False,
        pre_norm: bool = False,
        final_norm: bool = True,
        grid_size: int | tuple[int, int] | None = None,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        positions: str = "learned",
        patches: str | collections.abc.Mapping[str, typing.Any] = "plain",
        attention: str = "full",
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        gate: str | None = None,
        norm: str = "layer",
        norm_eps: float = 1e-06,
        inner_norm: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None: ...

__all__ = [
    "BEiT",
    "BEiTBackbone",
    "CoAtNet",
    "CoAtNetBackbone",
    "ConvNeXt",
    "ConvNeXtBackbone",
    "DeiT",
    "DeiTBackbone",
    "EVA",
    "EVABackbone",
    "GMLP",
    "GMLPBackbone",
    "HybridViT",
    "HybridViTBackbone",
    "MLPMixer",
    "MLPMixerBackbone",
    "MaxViT",
    "MaxViTBackbone",
    "PVT",
    "PVTBackbone",
    "PVTv1",
    "PVTv1Backbone",
    "RelPosViT",
    "RelPosViTBackbone",
    "ResMLP",
    "ResMLPBackbone",
    "SegFormerEncoder",
    "SimplePyramid",
    "Swin",
    "SwinBackbone",
    "SwinV2",
    "SwinV2Backbone",
    "ViT",
    "ViTBackbone",
]

"""EVA: vision transformers with rotary position embeddings, as in timm's eva.py.

EVA-02 (https://arxiv.org/abs/2303.11331), DINOv3 (https://arxiv.org/abs/2508.10104), the Perception
Encoder (https://arxiv.org/abs/2504.13181), RoPE-ViT (https://arxiv.org/abs/2403.13298); and EVA
(https://arxiv.org/abs/2211.07636), which has none.

`EVABackbone.trunk` follows a ViT's, from bottom to top. `EVABlock` has the options of these papers'
blocks; `RotaryEmbedding` in layers/rotary.py gives the rotations to all of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras

from keras_vit import checks
from keras_vit.layers.base import Layer, Norm, Scale, Stream, arguments, register
from keras_vit.layers.block import TransformerBlock
from keras_vit.layers.drop import drop_path_rates
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import PatchEncoder, pair
from keras_vit.layers.resample import RESAMPLE
from keras_vit.layers.rotary import INDEXING, ROPE_TYPES, RotaryAttention, RotaryEmbedding
from keras_vit.layers.watch import watched
from keras_vit.models.classifier import ImageClassifier
from keras_vit.models.vit import ViTBackbone
from keras_vit.types import Shape, Size, Tensor


@register
class EVABlock(TransformerBlock):
    """Transformer block with rotary position embeddings: `(B, N, D) -> (B, N, D)`.

    With SwiGLU and norms inside it is the block of EVA-02 (https://arxiv.org/abs/2303.11331).

    Args:
        key_bias, qkv_fused, rope_rotate_half: as in `RotaryAttention`.
        scale_attn_inner: LayerNorm before the output projection of attention.
        use_post_norm: norms at the end of the residual branches instead of at their beginning
            (res-post-norm, https://arxiv.org/abs/2111.09883).
        mlp_ratio: hidden width of the MLP over D; of a gated one, that of gate and value each.
        inner_norm: LayerNorm in the MLP, before its last layer.
        num_heads and the others: as in `TransformerBlock`.

    Call arguments:
        positions: the block's table of `RotaryEmbedding`, or None.
        x and queries: as in `TransformerBlock`.
    """

    def __init__(
        self,
        num_heads: int,
        key_bias: bool = True,
        qkv_fused: bool = True,
        rope_rotate_half: bool = False,
        scale_attn_inner: bool = False,
        use_post_norm: bool = False,
        **kwargs: Any,
    ):
        super().__init__(num_heads, **kwargs)
        self.key_bias = key_bias
        self.qkv_fused = qkv_fused
        self.rope_rotate_half = rope_rotate_half
        self.scale_attn_inner = scale_attn_inner
        self.use_post_norm = use_post_norm

    def get_config(self) -> dict[str, Any]:
        own = arguments(TransformerBlock.__init__)
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def attention(self, input_shape: Shape, **inner: Any) -> Layer:
        names = ("num_heads", "qkv_bias", "proj_bias", "key_bias", "qkv_fused", "rope_rotate_half")
        options = {name: getattr(self, name) for name in names}
        options |= {**inner, "inner_norm": self.scale_attn_inner, "drop_rate": self.attn_drop_rate}
        return self.child(RotaryAttention, input_shape, name="attn", **options)

    def feed_forward(self, input_shape: Shape, **inner: Any) -> Mlp:
        ratio, width = self.mlp_ratio, input_shape[-1]
        if self.gate == "packed":  # `Mlp` counts gate and value
            ratio = checks.ratio(2 * int(width * ratio), width)
        return super().feed_forward(input_shape, ratio=ratio, **inner)

    def links(self) -> Iterable[Norm | Scale]:
        return () if self.use_post_norm else super().links()

    def compute_output_spec(
        self,
        x: Tensor,
        queries: int | None = None,
        training: bool | None = None,
        positions: Tensor = None,
    ) -> keras.KerasTensor:
        return super().compute_output_spec(x, queries)

    def leading(self, count: int) -> Tensor:
        """The first `count` output tokens, in the graph of the model."""
        x, positions = self.input if isinstance(self.input, list) else (self.input, None)
        return self(x, queries=count, positions=positions)

    def at(self, positions: Tensor) -> dict[str, Tensor]:
        """The argument of the attention layer that takes `positions`."""
        return {"rope": positions}

    def scores(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """The attention map for the block's input, x or (x, positions): `(B, heads, N, N)`,
        float32."""
        x, positions = (*x, None)[:2] if isinstance(x, (list, tuple)) else (x, None)
        return self.attn.scores(x if self.use_post_norm else self.norm1(x), **self.at(positions))

    def call(
        self,
        x: Tensor,
        queries: int | None = None,
        training: bool | None = None,
        positions: Tensor = None,
    ) -> Tensor:
        def attention(x):
            return self.attn(x, queries=queries, training=training, **self.at(positions))

        def mlp(x):
            return self.mlp(x, training=training)

        residual = x if queries is None else x[:, :queries]
        if self.use_post_norm:
            x = residual + self.skip(self.norm1(attention(x)), training=training)
            return x + self.skip(self.norm2(mlp(x)), training=training)
        read = watched("norm1", self.norm1(x))
        x = residual + self.skip(self.ls1(attention(read)), training=training)
        return x + self.skip(self.ls2(mlp(self.norm2(x))), training=training)


@register
class EVABackbone(ViTBackbone):
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

    @staticmethod
    def graph(
        *,
        image_size: Size | None = 224,
        in_channels: int = 3,
        rope_type: str = "cat",
        rope_temperature: float = 10000.0,
        rope_grid_offset: float | None = None,
        rope_grid_indexing: str = "ij",
        ref_feat_shape: Size | None = None,
        attn_pool_num_heads: int | None = None,
        attn_pool_mlp_ratio: float | None = None,
        resample: str = "bicubic",
        dtype: Any = None,
        **trunk: Any,
    ) -> tuple[Tensor, Tensor]:
        checks.word(resample, "resample", RESAMPLE)  # used by `resizers` only
        checks.word(rope_grid_indexing, "rope_grid_indexing", INDEXING)
        size = pair(image_size) if image_size else (None, None)
        inputs = keras.Input((*size, in_channels), name="images")
        checks.word(rope_type, "rope_type", ("none", *ROPE_TYPES))
        tables = [None] * trunk["depth"]
        if rope_type != "none":
            tables = RotaryEmbedding(
                depth=trunk["depth"],
                num_heads=trunk["num_heads"],
                head_width=trunk["embed_dim"] // trunk["num_heads"],
                patch_size=trunk["patch_size"],
                prefix=int(trunk["class_token"]) + trunk["reg_tokens"],
                rope_type=rope_type,
                rope_temperature=rope_temperature,
                rope_grid_offset=rope_grid_offset,
                rope_grid_indexing=rope_grid_indexing,
                ref_feat_shape=ref_feat_shape,
                dtype=dtype,
                name="rope",
            )(inputs)
        return inputs, EVABackbone.trunk(inputs, tables, dtype=dtype, **trunk)

    @staticmethod
    def trunk(  # type: ignore[override]  # it takes the rotations
        x: Tensor,
        tables: Sequence[Tensor],
        *,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        class_token: bool = True,
        reg_tokens: int = 0,
        use_abs_pos_emb: bool = True,
        no_embed_class: bool = False,
        pre_norm: bool = False,
        final_norm: bool = True,
        grid_size: Size | None = None,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        **block: Any,
    ) -> Tensor:
        """Everything after the input, `(B, H, W, C) -> (B, prefix + N, D)`, with the rotations of
        each block."""
        norm = {"norm": block["norm"], "epsilon": block["norm_eps"], "dtype": dtype}
        x = PatchEncoder(
            embed_dim=embed_dim,
            patch_size=patch_size,
            class_token=class_token,
            register_tokens=reg_tokens,
            no_embed_class=no_embed_class,
            use_bias=not pre_norm,
            grid_size=grid_size,
            drop_rate=pos_drop_rate,
            positions="learned" if use_abs_pos_emb else "none",
            dtype=dtype,
            name="patch_embed",
        )(x)
        if pre_norm:
            x = normalization(**norm, name="norm_pre")(x)
        rates = drop_path_rates(drop_path_rate, depth)
        for i, (rope, rate) in enumerate(zip(tables, rates, strict=True)):
            x = EVABlock(**block, drop_path=rate, dtype=dtype, name=f"blocks_{i}")(
                x, positions=rope
            )
        return normalization(**norm, name="norm")(x) if final_norm else x

    passes_on: ClassVar[tuple[Callable, ...]] = (
        trunk,
        TransformerBlock.__init__,
        EVABlock.__init__,
    )
    given = ("x", "tables", "drop_path", "attention_options")

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super(ViTBackbone, cls).from_shapes(shapes)  # the rotations do not show

    def streams(self) -> list[Stream]:
        return [] if self.options["use_post_norm"] else super().streams()

    def leading_tokens(self, count: int) -> Tensor:
        x = self.blocks[-1].leading(count)
        return x if self.final_norm is None else self.final_norm(x)

    def default_lora_layer_names(self) -> list[str]:
        return ["qkv"] if self.options["qkv_fused"] else ["q_proj", "v_proj"]


@register
class EVA(ImageClassifier):
    __doc__ = ImageClassifier.__doc__
    backbone_cls = EVABackbone

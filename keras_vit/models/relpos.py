"""ViT with relative positions: a bias of the attention logits for each distance of two patches.

The bias is an MLP of the distance (section 3.3 of Swin V2, https://arxiv.org/abs/2111.09883, in
timm's variant), of each block or shared by all. `RelPosViTBackbone.trunk` is figure 1 of
https://arxiv.org/abs/2010.11929 without the position embedding.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import keras
import numpy as np

from keras_vit import checks
from keras_vit.layers.base import Layer, Stream, arguments, register
from keras_vit.layers.biased import BiasedAttention, SharedBias
from keras_vit.layers.block import TransformerBlock
from keras_vit.layers.drop import drop_path_rates
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import PatchEncoder, pair
from keras_vit.layers.resample import RESAMPLE
from keras_vit.models.base import Resizer
from keras_vit.models.classifier import AverageClassifier
from keras_vit.models.eva import EVABlock
from keras_vit.models.vit import ViTBackbone
from keras_vit.resize import resize_bias_table
from keras_vit.types import Shape, Size, Tensor


@register
class RelPosBlock(EVABlock):
    """Transformer block with a relative position bias: `(B, N, D) -> (B, N, D)`.

    Args:
        window, class_token, rel_pos, rel_pos_dim: as in `BiasedAttention`.
        key_bias, use_post_norm: as in `EVABlock`.
        num_heads and the others: as in `TransformerBlock`.

    Call arguments:
        x: tokens, `(B, N, D)`.
        positions: a bias that all blocks share, the output of `SharedBias`, or None.
        queries: as in `TransformerBlock`.
    """

    def __init__(
        self,
        num_heads: int,
        window: tuple[int, int],
        class_token: bool = False,
        rel_pos: str | None = "mlp",
        rel_pos_dim: int = 128,
        **kwargs: Any,
    ):
        super().__init__(num_heads, **kwargs)
        self.window = tuple(window)
        self.class_token = class_token
        self.rel_pos = rel_pos
        self.rel_pos_dim = rel_pos_dim

    def get_config(self) -> dict[str, Any]:
        own = arguments(EVABlock.__init__)
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def at(self, positions: Tensor) -> dict[str, Tensor]:
        return {"bias": positions}

    def attention(self, input_shape: Shape, **inner: Any) -> Layer:
        names = ("num_heads", "qkv_bias", "proj_bias", "key_bias", "window", "class_token")
        options = {name: getattr(self, name) for name in (*names, "rel_pos", "rel_pos_dim")}
        options |= {**inner, "drop_rate": self.attn_drop_rate}
        return self.child(BiasedAttention, input_shape, name="attn", **options)


@register
class RelPosViTBackbone(ViTBackbone):
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

    @staticmethod
    def graph(
        *,
        image_size: Size | None = 224,
        in_channels: int = 3,
        class_token: bool = False,
        shared_rel_pos: bool = False,
        rel_pos_dim: int = 128,
        use_post_norm: bool = False,
        resample: str = "bicubic",
        dtype: Any = None,
        **trunk: Any,
    ) -> tuple[Tensor, Tensor]:
        inputs = images(image_size, in_channels, resample, "RelPosViT")
        kinds = (None, "mlp") if shared_rel_pos else ("mlp", None)
        options = {"rel_pos_dim": rel_pos_dim, "use_post_norm": use_post_norm, "dtype": dtype}
        own = {"class_token": class_token, "use_abs_pos_emb": False, **options}
        return inputs, RelPosViTBackbone.trunk(inputs, kinds, **own, **trunk)

    @staticmethod
    def trunk(  # type: ignore[override]  # it takes the kinds of bias
        x: Tensor,
        kinds: tuple[str | None, str | None],
        *,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        class_token: bool = True,
        use_abs_pos_emb: bool = True,
        rel_pos_dim: int = 128,
        final_norm: bool = True,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        **block: Any,
    ) -> Tensor:
        """Everything after the input, with a bias of each block and a shared one of these kinds:
        `(B, H, W, C) -> (B, prefix + N, D)`."""
        tokens = PatchEncoder(
            embed_dim=embed_dim,
            patch_size=patch_size,
            class_token=class_token,
            positions="learned" if use_abs_pos_emb else "none",
            drop_rate=pos_drop_rate,
            dtype=dtype,
            name="patch_embed",
        )(x)
        own, shared = kinds
        window = (x.shape[1] // patch_size, x.shape[2] // patch_size)
        grid = {"window": window, "class_token": class_token, "rel_pos_dim": rel_pos_dim}
        bias = None
        if shared is not None:
            options = {**grid, "num_heads": block["num_heads"], "dtype": dtype}
            bias = SharedBias(shared, **options, name="shared")(x)
        block = {**block, **grid, "rel_pos": own, "dtype": dtype}
        for i, rate in enumerate(drop_path_rates(drop_path_rate, depth)):
            tokens = RelPosBlock(**block, drop_path=rate, name=f"blocks_{i}")(
                tokens, positions=bias
            )
        if not final_norm:
            return tokens
        norm = {"norm": block["norm"], "epsilon": block["norm_eps"], "dtype": dtype}
        return normalization(**norm, name="norm")(tokens)

    passes_on: ClassVar[tuple[Callable, ...]] = (trunk, TransformerBlock.__init__)
    given: ClassVar[tuple[str, ...]] = (
        "x",
        "kinds",
        "use_abs_pos_emb",
        "drop_path",
        "attention_options",
    )

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        """Adapt the tables of positions to another grid, and the patch kernel to another patch size
        or number of channels."""
        grids = (self.grid(old), self.grid_size)
        extra = 0 if self.option("class_token") is False else 3  # a BEiT always has one

        def bias(x, shape):
            rows = len(x) - extra
            return np.concatenate([resize_bias_table(x[:rows], *grids), x[rows:]])

        return {
            **super().resizers(old),
            "*/rel_pos/relative_position_bias_table": bias,
        }

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super(ViTBackbone, cls).from_shapes(shapes)

    def streams(self) -> list[Stream]:
        return [] if self.option("use_post_norm") else super().streams()

    def leading_tokens(self, count: int) -> Tensor:
        x = self.blocks[-1].leading(count)
        return x if self.final_norm is None else self.final_norm(x)


def images(image_size: Size | None, channels: int, resample: str, name: str) -> Tensor:
    """The input of a model for images of one size.

    Raises:
        ValueError: if the size is None, or `resample` is unknown.
    """
    checks.word(resample, "resample", RESAMPLE)  # used by `resizers` only
    if image_size is None:
        raise ValueError(f"{name} takes images of one size only. Received: image_size=None")
    return keras.Input((*pair(image_size), channels), name="images")


@register
class RelPosViT(AverageClassifier):
    """ViT with relative positions. The arguments are those of `ViT`; `pooling` defaults to
    `"avg"`."""

    backbone_cls = RelPosViTBackbone

"""ViT: "An Image is Worth 16x16 Words" (https://arxiv.org/abs/2010.11929).

`ViTBackbone.trunk` is figure 1 (left) from bottom to top, up to the MLP head, which `ViT` adds.
`TransformerBlock` in layers/block.py is figure 1 (right).
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import keras

from keras_vit import checks
from keras_vit.layers.base import Stream, register
from keras_vit.layers.block import TransformerBlock
from keras_vit.layers.drop import drop_path_rates
from keras_vit.layers.kinds import options_of, window_of
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import PatchEncoder, check_divides, pair
from keras_vit.layers.positions import sincos
from keras_vit.layers.resample import RESAMPLE
from keras_vit.models.base import Backbone, Resizer
from keras_vit.models.classifier import ImageClassifier
from keras_vit.resize import (
    clip_distances,
    resize_biases,
    resize_line,
    resize_patches,
    resize_positions,
)
from keras_vit.types import Size, Tensor


@register
class ViTBackbone(Backbone):
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

    @staticmethod
    def graph(
        *,
        image_size: Size | None = 224,
        in_channels: int = 3,
        resample: str = "bicubic",
        dtype: Any = None,
        **trunk: Any,
    ) -> tuple[Tensor, Tensor]:
        checks.word(resample, "resample", RESAMPLE)  # used by `resizers` only
        size = pair(image_size) if image_size else (None, None)
        inputs = keras.Input((*size, in_channels), name="images")
        return inputs, ViTBackbone.trunk(inputs, dtype=dtype, **trunk)

    @staticmethod
    def trunk(
        x: Tensor,
        *,
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
        grid_size: Size | None = None,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        positions: str = "learned",
        patches: str | Mapping[str, Any] = "plain",
        attention: str = "full",
        dtype: Any = None,
        **block: Any,
    ) -> Tensor:
        """Everything after the input: an image, or a feature map, to tokens, `(B, H, W, C) -> (B,
        prefix + N, D)`."""
        norm = {"norm": block["norm"], "epsilon": block["norm_eps"], "dtype": dtype}
        # Linear projection of patches, class token and position embedding (equation 1).
        embed = PatchEncoder(
            embed_dim=embed_dim,
            patch_size=patch_size,
            class_token=class_token,
            distillation_token=distillation_token,
            register_tokens=reg_tokens,
            no_embed_class=no_embed_class,
            use_bias=not pre_norm,
            embed_norm=block["norm"] if embed_norm else None,
            norm_eps=block["norm_eps"],
            grid_size=grid_size,
            drop_rate=pos_drop_rate,
            patch_drop_rate=patch_drop_rate,
            positions=positions,
            patches=patches,
            dtype=dtype,
            name="patch_embed",
        )
        grid = embed.static_grid(x.shape)
        kinds = options_of(attention, positions, grid, embed.num_prefix_tokens, depth)
        x = embed(x)
        if pre_norm:
            x = normalization(**norm, name="norm_pre")(x)
        # Transformer encoder (equations 2 and 3), and its final norm (equation 4).
        rates = drop_path_rates(drop_path_rate, depth)
        for i, (kind, rate) in enumerate(zip(kinds, rates, strict=True)):
            own = {"attention_options": kind, "drop_path": rate, "dtype": dtype}
            x = TransformerBlock(**block, **own, name=f"blocks_{i}")(x)
        return normalization(**norm, name="norm")(x) if final_norm else x

    passes_on: ClassVar[tuple[Callable, ...]] = (trunk, TransformerBlock.__init__)
    given: ClassVar[tuple[str, ...]] = ("x", "drop_path", "attention_options")

    @staticmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        if options["image_size"] is None:
            return pair(options["grid_size"])
        patch, (height, width) = options["patch_size"], pair(options["image_size"])
        check_divides(patch, height, width)
        return height // patch, width // patch

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        """Adapt the tables of positions to another grid, and the patch kernel to another patch size
        or number of channels."""
        grids, patch = (self.grid(old), self.grid_size), pair(old["patch_size"])
        prefix = 0 if self.option("no_embed_class") else self.num_prefix_tokens
        resample = self.options["resample"]

        def table(x, shape):
            if self.option("positions") == "sincos2d":
                return sincos(grids[1], shape[-1], prefix)[None]
            return resize_positions(x, *grids, prefix, resample)

        def bias(x, shape):  # of attention="relative" or "window"
            windows = grids
            if self.option("attention") == "window":
                windows = tuple(map(window_of, grids))
            return resize_biases(x, shape, *windows)

        return {
            "patch_embed/pos_embed": table,
            "patch_embed/axes/*": lambda x, shape: resize_line(x, shape[0], resample),
            "*/rel_pos/relative_position_bias_table": bias,
            "*/attn/relative_*": lambda x, shape: clip_distances(x, shape[0]),
            "patch_embed/proj/kernel": lambda x, shape: resize_patches(x, shape, patch, resample),
        }

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        width, channels, patch, _ = checks.shape(shapes, "patch_embed.proj.weight", 4)
        hidden = checks.shape(shapes, "blocks.0.mlp.fc1.weight", 2)[0]
        side = checks.square(checks.shape(shapes, "pos_embed", 3)[1] - 1, "Positions")
        return {
            "image_size": side * patch,
            "patch_size": patch,
            "in_channels": channels,
            "embed_dim": width,
            "depth": checks.repeated(shapes, "blocks.*."),
            "mlp_ratio": checks.ratio(hidden, width),
        }

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens before the patch tokens."""
        return self.get_layer("patch_embed").num_prefix_tokens

    @property
    def blocks(self) -> list[TransformerBlock]:
        """The transformer blocks, in order."""
        return [self.get_layer(f"blocks_{i}") for i in range(self.options["depth"])]

    @property
    def final_norm(self) -> keras.layers.Layer | None:
        return self.get_layer("norm") if self.options["final_norm"] else None

    @property
    def first_projection(self) -> keras.layers.Conv2D | None:
        embed = self.get_layer("patch_embed")
        return embed.proj if embed.kind == "plain" else None

    def streams(self) -> list[Stream]:
        """The one residual stream; none with RMSNorm, or if the patch embedding is no sum."""
        source = self.get_layer("norm_pre") if self.option("pre_norm") else None
        summands = [] if source else self.get_layer("patch_embed").summands
        if self.options["norm"] != "layer" or not (source or summands):
            return []
        summands += [variable for block in self.blocks for variable in block.summands]
        readers = [norm for block in self.blocks for norm in (block.norm1, block.norm2)]
        readers += [self.final_norm] if self.options["final_norm"] else []
        leaves = not self.options["final_norm"]
        return [Stream(tuple(summands), tuple(readers), source, leaves)]

    def leading_tokens(self, count: int) -> Tensor:
        """The first `count` output tokens, `(B, count, D)`.

        The last block skips queries, output projection and MLP of all other tokens. This saves
        about 7 % of the computation of a 12-block model and gives equal results.
        """
        last = self.blocks[-1]
        x = last(last.input, queries=count)
        return x if self.final_norm is None else self.final_norm(x)


@register
class ViT(ImageClassifier):
    __doc__ = ImageClassifier.__doc__
    backbone_cls = ViTBackbone

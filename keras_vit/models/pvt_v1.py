"""PVT: "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction without Convolutions"
(https://arxiv.org/abs/2102.12122).

`PVTv1Backbone.graph` is figure 3: four stages, each a patch embedding and blocks. The attention is
that of `keras_vit.models.pvt`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_vit.layers.base import Layer, initial, register
from keras_vit.layers.conv import Conv
from keras_vit.layers.drop import drop_path_rates
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import check_divides, pair
from keras_vit.layers.tokens import as_tokens
from keras_vit.models.base import PyramidBackbone, Resizer
from keras_vit.models.classifier import ImageClassifier
from keras_vit.models.pvt import PVTBlock, block_names, check_reduction, check_stages
from keras_vit.resize import adapt_channels, resize_positions
from keras_vit.types import Shape, Size, Tensor


@register
class PVTv1PatchEmbed(Layer):
    """Patch projection, norm, class token and positions: `(B, H, W, C) -> (B, H/P, W/P, D)`, or
    tokens `(B, 1 + N, D)` with a class token.

    Section 3.2 of https://arxiv.org/abs/2102.12122.

    Args:
        embed_dim: D.
        patch_size: P, in pixels of the map.
        class_token: whether to prepend a class token.
        norm_eps: epsilon of the norm.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int = 4,
        class_token: bool = False,
        norm_eps: float = 1e-6,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.class_token = class_token
        self.norm_eps = norm_eps

    def build(self, input_shape: Shape) -> None:
        p, width = self.patch_size, self.embed_dim
        conv = {"filters": width, "kernel_size": p, "strides": p}
        self.proj = self.child(Conv, input_shape, name="proj", **conv)
        shape = (None, None, None, width)
        self.norm = self.child(normalization, shape, epsilon=self.norm_eps, name="norm")
        self.cls_token = None
        if self.class_token:
            self.cls_token = self.add_weight(
                shape=(1, 1, width), initializer=initial(), name="cls_token"
            )
        self.grid = (input_shape[1] // p, input_shape[2] // p)
        self.pos_embed = self.add_weight(
            shape=(1, int(self.class_token) + self.grid[0] * self.grid[1], width),
            initializer=initial(),
            name="pos_embed",
        )

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        rows, columns = (n // self.patch_size for n in x.shape[1:3])
        size = (1 + rows * columns,) if self.class_token else (rows, columns)
        return keras.KerasTensor((x.shape[0], *size, self.embed_dim), self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        x = self.norm(self.proj(x))
        if not self.class_token:
            return x + ops.reshape(self.pos_embed, (1, *self.grid, self.embed_dim))
        x, pos = as_tokens(x), self.pos_embed
        token = self.cls_token + pos[:, :1]
        token = ops.broadcast_to(token, (ops.shape(x)[0], 1, self.embed_dim))
        return ops.concatenate([token, x + pos[:, 1:]], axis=1)


@register
class PVTv1Block(PVTBlock):
    """Pre-norm block of PVT: `(B, H, W, C) -> (B, H, W, C)`, or tokens `(B, N, C)`.

    Figure 3 of https://arxiv.org/abs/2102.12122 (right). The arguments are those of `PVTBlock`.
    """

    def feed_forward(self, input_shape: Shape, **options: Any) -> Layer:
        """Make the MLP."""
        return self.child(Mlp, input_shape, **options)


@register
class PVTv1Backbone(PyramidBackbone):
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

    @staticmethod
    def graph(
        *,
        image_size: Size | None = 224,
        in_channels: int = 3,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        dtype: Any = None,
        **block: Any,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        check_stages(embed_dims, depths, num_heads, sr_ratios, mlp_ratios)
        sizes = stage_sizes({"image_size": image_size, "sr_ratios": sr_ratios})
        x = inputs = keras.Input((*one_size(image_size), in_channels), name="images")
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        eps = {"norm_eps": norm_eps, "dtype": dtype}
        last, pyramid = len(depths) - 1, {}
        stages = zip(embed_dims, depths, num_heads, sr_ratios, mlp_ratios, strict=True)
        for i, (width, depth, heads, sr_ratio, mlp_ratio) in enumerate(stages):
            embed = {"patch_size": 4 if i == 0 else 2, "class_token": i == last, **eps}
            x = PVTv1PatchEmbed(width, **embed, name=f"stages_{i}_patch_embed")(x)
            own = {"num_heads": heads, "sr_ratio": sr_ratio, "mlp_ratio": mlp_ratio, **eps}
            for j in range(depth):
                options = {**own, **block, "conv_norm_eps": norm_eps, "drop_path": next(rates)}
                x = PVTv1Block(**options, name=f"stages_{i}_blocks_{j}")(x)
            patches = ops.reshape(x[:, 1:], (-1, *sizes[i], width)) if i == last else x
            pyramid[f"P{i + 2}"] = patches
        return inputs, normalization(epsilon=norm_eps, dtype=dtype, name="norm")(x), pyramid

    passes_on: ClassVar[tuple[Callable, ...]] = (PVTBlock.__init__,)
    given = ("num_heads", "sr_ratio", "mlp_ratio", "linear", "conv_norm_eps", "drop_path")

    @staticmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        return stage_sizes(options)[-1]

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        """Adapt the position embeddings to other grids, and the first projection to another number
        of channels."""
        grids = list(zip(stage_sizes(old), stage_sizes(self.options), strict=True))
        last = len(grids) - 1

        def positions(stage):  # bilinear, as in the paper's own code
            prefix = int(stage == last)
            return lambda x, shape: resize_positions(x, *grids[stage], prefix, "bilinear")

        tables = {f"stages_{i}_patch_embed/pos_embed": positions(i) for i in range(len(grids))}
        first = "stages_0_patch_embed/proj/kernel"
        return {**tables, first: lambda x, shape: adapt_channels(x, shape[-2])}

    @property
    def num_prefix_tokens(self) -> int:
        """The class token."""
        return 1

    @property
    def blocks(self) -> list[PVTv1Block]:
        """The blocks of all stages, in order."""
        return [self.get_layer(name) for name in block_names(self.options["depths"])]

    @property
    def final_norm(self) -> keras.layers.Layer:
        return self.get_layer("norm")

    @property
    def first_projection(self) -> keras.layers.Conv2D:
        return self.get_layer("stages_0_patch_embed").proj

    def default_lora_layer_names(self) -> list[str]:
        return ["q", "kv"]


def one_size(image_size: Size | None) -> tuple[int, int]:
    """(height, width) of the images.

    Raises:
        ValueError: if it is None.
    """
    if image_size is None:
        raise ValueError("PVTv1 takes images of one size only. Received: image_size=None")
    return pair(image_size)


def stage_sizes(options: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The (rows, columns) of each stage's map: 1/4 of the image, 1/8 ...

    Raises:
        ValueError: if they are not whole numbers, or smaller than the reduction of their keys; if
            the last stage has one.
    """
    ratios, (height, width) = options["sr_ratios"], one_size(options["image_size"])
    if ratios[-1] != 1:
        raise ValueError(f"The last stage of PVTv1 has no reduction. Received: {tuple(ratios)}")
    check_divides(2 ** (len(ratios) + 1), height, width, "the stride of the last stage,")
    sizes = [(height // 2**i, width // 2**i) for i in range(2, len(ratios) + 2)]
    check_reduction(sizes, ratios)
    return sizes


@register
class PVTv1(ImageClassifier):
    """PVT classifier. The arguments are those of `ViT`."""

    backbone_cls = PVTv1Backbone

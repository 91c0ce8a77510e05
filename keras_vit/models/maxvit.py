"""MaxViT: "Multi-Axis Vision Transformer" (https://arxiv.org/abs/2204.01697).

Each block is figure 2 of the paper from left to right: MBConv, attention within windows (block
attention), attention within sparse grids. timm's MaxxViT has ConvNeXt blocks in place of MBConv;
MaxxViT v2 has grid attention only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_vit import checks
from keras_vit.layers.base import Layer, register
from keras_vit.layers.block import Block, TransformerBlock
from keras_vit.layers.mbconv import MBConv, StridedConvNeXt
from keras_vit.layers.relative import RelativeAttention
from keras_vit.layers.windows import from_grids, from_windows, grids, on_the_map, windows
from keras_vit.models.classifier import AverageClassifier
from keras_vit.models.coatnet import BlockMaker, CoAtNetBackbone
from keras_vit.types import Shape, Tensor

PARTITIONS = {"block": (windows, from_windows), "grid": (grids, from_grids)}


@register
class PartitionAttention(TransformerBlock):
    """Transformer block with relative attention in parts of the map: `(B, H, W, C) -> (B, H, W,
    C)`.

    Section 3.2 of https://arxiv.org/abs/2204.01697.

    Args:
        partition: `"block"` (adjacent windows) or `"grid"` (sparse grids over the whole map).
        window: (h, w), the size of a window, or of a grid; divides H and W.
        num_heads: number of heads.
        dim_head, rel_pos, rel_pos_dim, head_first: as in `RelativeAttention`.
        init_values: initial value of LayerScale; None for no LayerScale.
        activation: of the MLP.
        norm_eps: epsilon of the norms.
        drop_path: stochastic depth rate of both residual branches.
    """

    def __init__(
        self,
        partition: str,
        window: Sequence[int],
        num_heads: int,
        dim_head: int = 32,
        rel_pos: str = "bias",
        rel_pos_dim: int = 512,
        head_first: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        block: dict[str, Any] = {"activation": activation, "norm_eps": norm_eps}
        super().__init__(num_heads, init_values=init_values, drop_path=drop_path, **block, **kwargs)
        self.partition = checks.word(partition, "partition", PARTITIONS)
        self.window = tuple(window)
        self.dim_head = dim_head
        self.rel_pos = rel_pos
        self.rel_pos_dim = rel_pos_dim
        self.head_first = head_first

    def build(self, input_shape: Shape) -> None:
        self.size = tuple(input_shape[1:3])
        tokens = self.window[0] * self.window[1]
        super().build((None, tokens, input_shape[-1]))

    def attention(self, input_shape: Shape, **inner: Any) -> Layer:
        return self.child(
            RelativeAttention,
            input_shape,
            num_heads=self.num_heads,
            units=input_shape[-1],
            window=self.window,
            dim_head=self.dim_head,
            rel_pos=self.rel_pos,
            rel_pos_dim=self.rel_pos_dim,
            head_first=self.head_first,
            name="attn",
        )

    def compute_output_spec(
        self, x: Tensor, queries: int | None = None, training: bool | None = None
    ) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def cut(self, x: Tensor) -> Tensor:
        """The parts of the map, `(B * n, h * w, C)`."""
        return PARTITIONS[self.partition][0](x, self.window)

    def scores(self, x: Tensor) -> Tensor:
        """The attention map for the block's input, 0 between different parts: `(B, H, W, C) -> (B,
        heads, N, N)`, N = H * W, float32."""
        scores = self.attn.scores(self.norm1(self.cut(x)))
        places = self.cut(ops.reshape(ops.arange(x.shape[1] * x.shape[2]), (1, *x.shape[1:3], 1)))
        return on_the_map(scores, ops.convert_to_numpy(places)[..., 0])

    def call(self, x: Tensor, queries: int | None = None, training: bool | None = None) -> Tensor:
        x = self.cut(x)
        attended = self.ls1(self.attn(self.norm1(x), training=training))
        x = x + self.dropped(attended, training)
        x = x + self.dropped(self.ls2(self.mlp(self.norm2(x), training=training)), training)
        return PARTITIONS[self.partition][1](x, self.window, self.size)

    def dropped(self, x: Tensor, training: bool | None) -> Tensor:
        """Stochastic depth: all parts of an image are dropped, or none."""
        if not training or not self.drop_path:
            return x
        images = ops.reshape(x, (-1, self.size[0] * self.size[1], x.shape[-1]))
        return ops.reshape(self.skip(images, training=training), (-1, *x.shape[1:]))


@register
class MaxViTBackbone(CoAtNetBackbone):
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

    passes_on: ClassVar[tuple[Callable, ...]] = (
        CoAtNetBackbone.graph,
        MBConv.__init__,
        StridedConvNeXt.__init__,
        PartitionAttention.__init__,
    )
    given = ("filters", "strides", "partition", "window", "num_heads", "drop_path")

    @classmethod
    def graph(
        cls, *, block_attn: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return super().graph(block_attn=block_attn, **options)

    @staticmethod
    def block(x: Tensor, make: BlockMaker, stage: int, index: int, **own: Any) -> Tensor:
        name, strides = f"stages_{stage}_blocks_{index}", 1 if index else 2
        x = make.conv(name=f"{name}_conv", strides=strides, **own)(x)
        heads = own.pop("filters") // make.options["dim_head"]
        for part in parts(make.options):
            options = {"partition": part, "window": make.grid, "num_heads": heads}
            x = make(PartitionAttention, name=f"{name}_attn_{part}", **options, **own)(x)
        return x

    @staticmethod
    def tokens_per_cell(stage: int) -> int:
        return 1

    @property
    def blocks(self) -> list[Block]:
        """The parts of the blocks, in order; the convolutional ones have no attention."""
        names = ["conv", *(f"attn_{part}" for part in parts(self.options))]
        depths = enumerate(self.options["depths"])
        blocks = [f"stages_{s}_blocks_{i}" for s, n in depths for i in range(n)]
        return [self.get_layer(f"{block}_{name}") for block in blocks for name in names]


def parts(options: Mapping[str, Any]) -> list[str]:
    """The kinds of attention in a block, in order."""
    return ["block", "grid"] if options["block_attn"] else ["grid"]


@register
class MaxViT(AverageClassifier):
    """MaxViT classifier. The arguments are those of `ViT`; `pooling` defaults to `"avg"`."""

    backbone_cls = MaxViTBackbone
    keeps_pre_logits = True

"""A toy of two stages that CONTRIBUTING.md and tests/test_toy.py add to the package: convolutions,
then attention with a relative position bias, a feature map out."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.layers.attention import Attention
from keras_vit.layers.base import Layer, Norm, Scale, initial, register
from keras_vit.layers.block import Block, TransformerBlock
from keras_vit.layers.conv import DepthwiseConv
from keras_vit.layers.drop import DropPath, drop_path_rates
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import check_divides, pair
from keras_vit.models.base import PyramidBackbone, Resizer
from keras_vit.models.classifier import AverageClassifier
from keras_vit.resize import matrices, resize_patches
from keras_vit.types import Shape, Size, Tensor


@register
class ToyConvBlock(Block):
    """A depthwise convolution, a norm, an MLP: `(B, H, W, C) -> (B, H, W, C)`."""

    def __init__(self, mlp_ratio: float = 2.0, drop_path: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.mlp_ratio = mlp_ratio
        self.drop_path = drop_path

    def build(self, input_shape: Shape) -> None:
        self.conv_dw = self.child(DepthwiseConv, input_shape, kernel_size=3, name="conv_dw")
        self.norm = self.child(normalization, input_shape, epsilon=1e-6, name="norm")
        self.mlp = self.child(Mlp, input_shape, ratio=self.mlp_ratio, name="mlp")
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def links(self) -> list[Norm | Scale]:
        return [self.norm.read_by(*self.mlp.readers)]

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        return x + self.skip(self.mlp(self.norm(self.conv_dw(x))), training=training)


@register
class ToyAttention(Attention):
    """Attention on a grid, with a learned bias for each distance of two tokens."""

    def __init__(self, grid: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.grid = tuple(grid)

    def get_config(self) -> dict[str, Any]:
        own = ("num_heads", "qkv_bias", "proj_bias", "inner_norm", "norm_eps", "drop_rate")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        rows, columns = self.grid
        shape = ((2 * rows - 1) * (2 * columns - 1), self.num_heads)
        self.table = self.add_weight(
            shape=shape, initializer=initial(), name="relative_position_bias_table"
        )
        y, x = (i.ravel() for i in np.indices(self.grid))
        down, across = (i[:, None] - i[None] for i in (y, x))
        self.index = (down + rows - 1) * (2 * columns - 1) + across + columns - 1

    def bias(self) -> Tensor:
        """(1, heads, N, N)"""
        return ops.transpose(ops.take(self.table, self.index, axis=0), (2, 0, 1))[None]

    def scores(self, x: Tensor) -> Tensor:
        return super().scores(x, bias=self.bias())

    def call(self, x: Tensor, queries: int | None = None, training: bool | None = None) -> Tensor:
        return super().call(x, queries=queries, bias=self.bias(), training=training)

    def compute_output_spec(
        self, x: Tensor, queries: int | None = None, training: bool | None = None
    ) -> keras.KerasTensor:
        return super().compute_output_spec(x, queries)


@register
class ToyBlock(TransformerBlock):
    """A transformer block whose attention knows the grid."""

    def __init__(self, num_heads: int, grid: Sequence[int], **kwargs: Any):
        super().__init__(num_heads, **kwargs)
        self.grid = tuple(grid)

    def get_config(self) -> dict[str, Any]:
        own = ("mlp_ratio", "drop_path")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def attention(self, input_shape: Shape, **inner: Any) -> Layer:
        options = {"num_heads": self.num_heads, "grid": self.grid}
        return self.child(ToyAttention, input_shape, name="attn", **options, **inner)


@register
class ToyBackbone(PyramidBackbone):
    """Images to a map of features: `(B, H, W, C) -> (B, H / 4, W / 4, 2 * embed_dim)`.

    Args:
        image_size: int or (height, width), in pixels.
        in_channels: C.
        embed_dim: channels of the first stage.
        depths: blocks in each of the two stages.
        num_heads: of the second.
        mlp_ratio: hidden width of the MLPs over their channels.
        drop_path_rate: stochastic depth of the last block.
    """

    @staticmethod
    def graph(
        *,
        image_size: Size = 16,
        in_channels: int = 3,
        embed_dim: int = 8,
        depths: Sequence[int] = (1, 1),
        num_heads: int = 2,
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        grid = ToyBackbone.grid({"image_size": image_size})
        rates = drop_path_rates(drop_path_rate, sum(depths))
        options = {"mlp_ratio": mlp_ratio, "dtype": dtype}
        conv = {"kernel_size": 2, "strides": 2, "data_format": "channels_last", "dtype": dtype}
        inputs = keras.Input((*pair(image_size), in_channels), name="images")
        x = fine = keras.layers.Conv2D(embed_dim, name="stem", **conv)(inputs)
        for i in range(depths[0]):
            name = f"stages_0_blocks_{i}"
            x = fine = ToyConvBlock(drop_path=rates[i], name=name, **options)(x)
        x = keras.layers.Conv2D(2 * embed_dim, name="stages_1_downsample", **conv)(x)
        x = ops.reshape(x, (-1, grid[0] * grid[1], 2 * embed_dim))
        for i in range(depths[1]):
            name, rate = f"stages_1_blocks_{i}", rates[depths[0] + i]
            x = ToyBlock(num_heads, grid, drop_path=rate, name=name, **options)(x)
        x = ops.reshape(x, (-1, *grid, 2 * embed_dim))
        return inputs, x, {"P1": fine, "P2": x}

    @staticmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        height, width = pair(options["image_size"])
        check_divides(4, height, width, "the stride")
        return height // 4, width // 4

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        def table(x, shape):
            return resize_table(x, self.grid(old), self.grid_size)

        return {
            "stem/kernel": lambda x, shape: resize_patches(x, shape, (2, 2)),
            "*/attn/relative_position_bias_table": table,
        }

    @property
    def blocks(self) -> list[Block]:
        """The blocks of both stages; only those of the second have attention."""
        count = enumerate(self.options["depths"])
        return [self.get_layer(f"stages_{s}_blocks_{i}") for s, n in count for i in range(n)]


def resize_table(table: np.ndarray, old: Shape, new: Shape) -> np.ndarray:
    """A bias table for another grid: `((2h-1) * (2w-1), heads) -> ((2h'-1) * (2w'-1), heads)`."""
    sizes = [[2 * n - 1 for n in grid] for grid in (old, new)]
    down, across = matrices(*sizes, "bicubic")
    grid = table.reshape(*sizes[0], -1)
    return np.einsum("hy,wx,yxd->hwd", down, across, grid).reshape(-1, table.shape[-1])


@register
class Toy(AverageClassifier):
    """A classifier on the mean of a toy's map."""

    backbone_cls = ToyBackbone

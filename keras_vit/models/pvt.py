"""PVT v2: "PVT v2: Improved Baselines with Pyramid Vision Transformer"
(https://arxiv.org/abs/2106.13797).

`PVTBackbone.graph` is figure 1 and table 1 of the paper: four stages, each an overlapping patch
embedding and blocks. The structure is that of PVT (https://arxiv.org/abs/2102.12122, figure 3);
`keras_vit.models.pvt_v1` has that model itself.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_vit.layers.base import Layer, Norm, Scale, Stream, initial, register
from keras_vit.layers.block import Block
from keras_vit.layers.conv import Conv, DepthwiseConv
from keras_vit.layers.drop import DropPath, drop_path_rates
from keras_vit.layers.lora import Dense
from keras_vit.layers.mlp import activation, as_matrix
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import pair
from keras_vit.layers.reduction import SpatialReductionAttention
from keras_vit.models.base import PyramidBackbone, Resizer
from keras_vit.models.classifier import AverageClassifier
from keras_vit.resize import adapt_channels
from keras_vit.types import Shape, Size, Tensor


@register
class OverlapPatchEmbed(Layer):
    """Overlapping patch embedding: `(B, H, W, C) -> (B, ceil(H/s), ceil(W/s), embed_dim)`.

    A convolution with zero padding, and a norm. Section 3.2 of https://arxiv.org/abs/2106.13797.

    Args:
        embed_dim: number of output channels.
        patch_size: size of the kernel, an odd number of pixels.
        stride: s, in pixels.
        conv_norm_eps: epsilon of the norm.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int = 7,
        stride: int = 4,
        conv_norm_eps: float = 1e-5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.stride = stride
        self.conv_norm_eps = conv_norm_eps

    def build(self, input_shape: Shape) -> None:
        conv = {"filters": self.embed_dim, "kernel_size": self.patch_size, "strides": self.stride}
        conv["pad"] = self.patch_size // 2
        shape = (None, None, None, input_shape[-1])
        self.proj = self.child(Conv, shape, name="proj", **conv)
        shape = (None, None, None, self.embed_dim)
        self.norm = self.child(normalization, shape, epsilon=self.conv_norm_eps, name="norm")

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        size = (None if n is None else -(-n // self.stride) for n in x.shape[1:3])
        return keras.KerasTensor((x.shape[0], *size, self.embed_dim), self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


@register
class ConvMlp(Layer):
    """MLP with a 3x3 depthwise convolution inside: `(B, H, W, C) -> (B, H, W, C)`.

    Convolutional feed-forward, section 3.3 of https://arxiv.org/abs/2106.13797. There is no
    position embedding: positions are known from the zero padding.

    Args:
        ratio: hidden width divided by C.
        activation: as in `Mlp`; it follows the convolution.
        extra_relu: whether a ReLU precedes the convolution (linear variant).
    """

    def __init__(
        self,
        ratio: float = 4.0,
        activation: str = "gelu",
        extra_relu: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.ratio = ratio
        self.activation = activation
        self.extra_relu = extra_relu

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        hidden = int(width * self.ratio)
        inside = (*input_shape[:-1], hidden)
        self.act = activation(self.activation)
        dense = {"layer": Dense, "kernel_initializer": initial()}
        self.fc1 = self.child(shape=input_shape, units=hidden, name="fc1", **dense)
        self.dwconv = self.child(DepthwiseConv, inside, kernel_size=3, name="dwconv")
        self.fc2 = self.child(shape=inside, units=width, name="fc2", **dense)

    @property
    def readers(self) -> list[keras.layers.Dense]:
        """The dense layers that read the input; nothing else does."""
        return [self.fc1]

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        x = as_matrix(self.fc1, x)
        x = self.dwconv(ops.relu(x) if self.extra_relu else x)
        return as_matrix(self.fc2, self.act(x))


@register
class PVTBlock(Block):
    """Pre-norm block of PVT v2: `(B, H, W, C) -> (B, H, W, C)`.

    Figure 3 of https://arxiv.org/abs/2102.12122 (right), with the MLP of PVT v2.

    Args:
        num_heads, sr_ratio, linear, qkv_bias, conv_norm_eps: as in `SpatialReductionAttention`.
        mlp_ratio: hidden width of the MLP, divided by C.
        activation: of the MLP, as in `Mlp`.
        norm_eps: epsilon of the norms before attention and MLP.
        drop_path: stochastic depth rate of both residual branches.
    """

    def __init__(
        self,
        num_heads: int,
        sr_ratio: int = 1,
        mlp_ratio: float = 4.0,
        linear: bool = False,
        qkv_bias: bool = True,
        activation: str = "gelu",
        norm_eps: float = 1e-6,
        conv_norm_eps: float = 1e-5,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.mlp_ratio = mlp_ratio
        self.linear = linear
        self.qkv_bias = qkv_bias
        self.activation = activation
        self.norm_eps = norm_eps
        self.conv_norm_eps = conv_norm_eps
        self.drop_path = drop_path

    def build(self, input_shape: Shape) -> None:
        norm: dict[str, Any] = {"shape": input_shape, "epsilon": self.norm_eps}
        attention = ("num_heads", "sr_ratio", "linear", "qkv_bias", "conv_norm_eps")
        options = {name: getattr(self, name) for name in attention}
        self.norm1 = self.child(normalization, name="norm1", **norm)
        self.attn = self.child(SpatialReductionAttention, input_shape, name="attn", **options)
        self.norm2 = self.child(normalization, name="norm2", **norm)
        options = {"ratio": self.mlp_ratio, "activation": self.activation}
        self.mlp = self.feed_forward(input_shape, name="mlp", **options)
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def feed_forward(self, input_shape: Shape, **options: Any) -> Layer:
        """Make the MLP."""
        return self.child(ConvMlp, input_shape, extra_relu=self.linear, **options)

    def links(self) -> Iterable[Norm | Scale]:
        yield self.norm1.read_by(*self.attn.readers)
        yield self.norm2.read_by(*self.mlp.readers)

    @property
    def summands(self) -> list[Any]:
        """The weights that write to the residual stream."""
        return [v for dense in (self.attn.proj, self.mlp.fc2) for v in (dense.kernel, dense.bias)]

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def scores(self, x: Tensor) -> Tensor:
        """The attention map for the block's input: `(B, H, W, C) -> (B, heads, N, M)`, float32."""
        return self.attn.scores(self.norm1(x))

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        x = x + self.skip(self.attn(self.norm1(x)), training=training)
        return x + self.skip(self.mlp(self.norm2(x)), training=training)


@register
class PVTBackbone(PyramidBackbone):
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
        dtype: Any = None,
        **block: Any,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        check_stages(embed_dims, depths, num_heads, sr_ratios, mlp_ratios)
        if image_size is not None and not block["linear"]:
            check_reduction(stage_sizes(image_size, len(depths)), sr_ratios)
        size = (None, None) if image_size is None else pair(image_size)
        x = inputs = keras.Input((*size, in_channels), name="images")
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        eps, pyramid = block["conv_norm_eps"], {}
        stages = zip(embed_dims, depths, num_heads, sr_ratios, mlp_ratios, strict=True)
        for i, (width, depth, heads, sr_ratio, mlp_ratio) in enumerate(stages):
            name, kernel, stride = (f"stages_{i}_downsample", 3, 2) if i else ("patch_embed", 7, 4)
            embed = {"conv_norm_eps": eps, "dtype": dtype, "name": name}
            x = OverlapPatchEmbed(width, kernel, stride, **embed)(x)
            own = {"num_heads": heads, "sr_ratio": sr_ratio, "mlp_ratio": mlp_ratio}
            for j in range(depth):
                options = {**own, **block, "drop_path": next(rates), "dtype": dtype}
                x = PVTBlock(**options, name=f"stages_{i}_blocks_{j}")(x)
            x = normalization(epsilon=block["norm_eps"], dtype=dtype, name=f"stages_{i}_norm")(x)
            pyramid[f"P{i + 2}"] = x
        return inputs, x, pyramid

    passes_on: ClassVar[tuple[Callable, ...]] = (PVTBlock.__init__,)
    given = ("num_heads", "sr_ratio", "mlp_ratio", "drop_path")

    @staticmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        if options["image_size"] is None:
            raise ValueError("A backbone for images of any size has no grid of its own.")
        sizes = stage_sizes(options["image_size"], len(options["depths"]))
        if not options["linear"]:
            check_reduction(sizes, options["sr_ratios"])
        return sizes[-1]

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        """Adapt the first convolution to another number of channels; nothing depends on the image
        size."""
        return {"patch_embed/proj/kernel": lambda x, shape: adapt_channels(x, shape[-2])}

    @property
    def blocks(self) -> list[PVTBlock]:
        """The blocks of all stages, in order."""
        return [self.get_layer(name) for name in block_names(self.options["depths"])]

    @property
    def final_norm(self) -> keras.layers.Layer:
        return self.get_layer(f"stages_{len(self.options['depths']) - 1}_norm")

    def streams(self) -> list[Stream]:
        """A residual stream for each stage, from the norm of its patch embedding to its last."""
        found, blocks = [], iter(self.blocks)
        for i, depth in enumerate(self.options["depths"]):
            own = [next(blocks) for _ in range(depth)]
            embed = self.get_layer(f"stages_{i}_downsample" if i else "patch_embed")
            readers = [norm for block in own for norm in (block.norm1, block.norm2)]
            readers.append(self.get_layer(f"stages_{i}_norm"))
            summands = [variable for block in own for variable in block.summands]
            found.append(Stream(tuple(summands), tuple(readers), embed.norm))
        return found

    def default_lora_layer_names(self) -> list[str]:
        return ["q", "kv"]


def block_names(depths: Sequence[int]) -> list[str]:
    """The names of the blocks of all stages, in order."""
    return [f"stages_{i}_blocks_{j}" for i, depth in enumerate(depths) for j in range(depth)]


def check_stages(*options: Sequence) -> None:
    """Check that there is one value for each stage.

    Raises:
        ValueError: if the numbers of values differ.
    """
    if len({len(values) for values in options}) != 1:
        raise ValueError(
            "embed_dims, depths, num_heads, sr_ratios and mlp_ratios must have one value for each "
            f"stage. Received: {', '.join(str(tuple(values)) for values in options)}"
        )


def stage_sizes(image_size: Size, count: int) -> list[tuple[int, int]]:
    """The (rows, columns) of each stage's map: 1/4 of the image, 1/8 ..., rounded up."""
    height, width = pair(image_size)
    return [(-(-height // 2**i), -(-width // 2**i)) for i in range(2, count + 2)]


def check_reduction(sizes: Sequence[tuple[int, int]], ratios: Sequence[int]) -> None:
    """Check that every map has a cell of its reduced grid.

    Raises:
        ValueError: if a map is smaller than its reduction.
    """
    small = [(size, r) for size, r in zip(sizes, ratios, strict=True) if min(size) < r]
    if small:
        (rows, columns), ratio = small[0]
        least = max((r - 1) * 2**i + 1 for i, r in enumerate(ratios, 2))
        raise ValueError(
            f"The image is too small: a map of {rows} x {columns} cannot be reduced by {ratio}. "
            f"Height and width must be {least} pixels or more."
        )


@register
class PVT(AverageClassifier):
    """PVT v2 classifier. The arguments are those of `ViT`; `pooling` defaults to `"avg"`."""

    backbone_cls = PVTBackbone

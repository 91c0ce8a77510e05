"""Convolutional blocks of CoAtNet and MaxViT: MBConv, ConvNeXt with a stride, and the stem."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import Layer, Norm, Scale, one_of, register
from keras_vit.layers.block import Block, LayerScale
from keras_vit.layers.drop import DropPath
from keras_vit.layers.mlp import Mlp, activation
from keras_vit.layers.norm import normalization
from keras_vit.layers.padded import PaddedConv, affine, is_fixed, normed
from keras_vit.types import Shape, Tensor

POOLS = ("avg2", "max")
STRIDE_MODES = ("dw", "pool")


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple of `by`, at least `by`, that loses at most a tenth (MobileNet's
    rule)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def halved(shape: Shape, filters: int, strides: int = 2) -> Shape:
    """The shape of a map after a block with strides."""
    size = (None if n is None else -(-n // strides) for n in shape[1:3])
    return (shape[0], *size, filters)


@register
class Downsample(Layer):
    """Pooling, and a 1x1 convolution where the width changes: `(B, H, W, C) -> (B, H/2, W/2,
    filters)`.

    Args:
        filters: number of output channels; None for C.
        pool_type: `"avg2"` (2x2 means) or `"max"` (3x3 maxima, padded by 1 pixel as in PyTorch).
        use_bias: whether the convolution has a bias.

    Raises:
        ValueError: unknown pool_type, or H or W is odd.
    """

    def __init__(
        self,
        filters: int | None = None,
        pool_type: str = "avg2",
        use_bias: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.pool_type = one_of(pool_type, "pool_type", POOLS)
        self.use_bias = use_bias

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        if any(n is not None and n % 2 for n in input_shape[1:3]):
            raise ValueError(f"Downsample halves even edges only. Received: {input_shape[1:3]}")
        self.expand = None
        if self.filters not in (None, width):
            conv = {"filters": self.filters, "use_bias": self.use_bias, "name": "expand"}
            self.expand = self.child(PaddedConv, halved(input_shape, width), **conv)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        shape = halved(x.shape, self.filters or x.shape[-1])
        return keras.KerasTensor(shape, self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        if self.pool_type == "avg2":
            x = ops.average_pool(x, 2, 2, "valid", "channels_last")
        else:
            # The first row and column again, in place of -inf: they are in these windows anyway.
            x = ops.concatenate([x[:, :1], x], axis=1)
            x = ops.concatenate([x[:, :, :1], x], axis=2)
            x = ops.max_pool(x, 3, 2, "valid", "channels_last")
        return x if self.expand is None else self.expand(x)


@register
class SqueezeExcite(Layer):
    """Squeeze-and-excitation (https://arxiv.org/abs/1709.01507, section 3): `(B, H, W, C) -> (B,
    H, W, C)`.

    Scales each channel by the sigmoid of an MLP on the means of all channels.

    Args:
        filters: hidden width of the MLP.
        activation: as in `Mlp`.
    """

    def __init__(self, filters: int, activation: str = "silu", **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.activation = activation

    def build(self, input_shape: Shape) -> None:
        self.act = activation(self.activation)
        shape = (input_shape[0], 1, 1, input_shape[-1])
        self.fc1 = self.child(PaddedConv, shape, filters=self.filters, name="fc1")
        shape = (*shape[:3], self.filters)
        self.fc2 = self.child(PaddedConv, shape, filters=input_shape[-1], name="fc2")

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def gates(self, x: Tensor) -> Tensor:
        """The factors, `(B, 1, 1, C)`."""
        means = ops.mean(x, axis=(1, 2), keepdims=True)
        return ops.sigmoid(self.fc2(self.act(self.fc1(means))))

    def call(self, x: Tensor) -> Tensor:
        return x * self.gates(x)


@register
class ConvStem(Layer):
    """Two 3x3 convolutions, the first with stride 2: `(B, H, W, C) -> (B, H/2, W/2, filters[1])`.

    Stage S0 of CoAtNet (https://arxiv.org/abs/2106.04803, table 3).

    Args:
        filters: number of output channels of both.
        use_bias: whether they have biases.
        padding: as in `PaddedConv`.
        activation: as in `Mlp`; it stands between the convolutions, after the norm.
        norm, norm_eps: kind and epsilon of the norm.
    """

    def __init__(
        self,
        filters: Sequence[int],
        use_bias: bool = False,
        padding: str = "symmetric",
        activation: str = "gelu",
        norm: str = "batch",
        norm_eps: float = 1e-5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = tuple(filters)
        self.use_bias = use_bias
        self.padding = padding
        self.activation = activation
        self.norm = norm
        self.norm_eps = norm_eps

    def build(self, input_shape: Shape) -> None:
        first, second = self.filters
        conv: dict[str, Any] = {
            "kernel_size": 3, "padding": self.padding, "use_bias": self.use_bias
        }  # fmt: skip
        self.act = activation(self.activation)
        self.conv1 = self.child(
            PaddedConv, input_shape, filters=first, strides=2, name="conv1", **conv
        )
        shape = halved(input_shape, first)
        norm = {"norm": self.norm, "epsilon": self.norm_eps, "name": "norm1"}
        self.norm1 = self.child(normalization, shape, **norm)
        self.conv2 = self.child(PaddedConv, shape, filters=second, name="conv2", **conv)

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(halved(x.shape, self.filters[1]), self.compute_dtype)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        return self.conv2(self.act(normed(x, self.conv1, self.norm1, training)))


@register
class MBConv(Block):
    """Inverted bottleneck with squeeze-and-excitation: `(B, H, W, C) -> (B, H/s, W/s, filters)`.

    A norm, a 1x1 convolution that widens by 4, a depthwise 3x3 one, squeeze-and-excitation, a 1x1
    convolution that narrows; a norm and an activation follow the first two. Equation 5 and appendix
    A.1 of CoAtNet (https://arxiv.org/abs/2106.04803), figure 2 of MaxViT
    (https://arxiv.org/abs/2204.01697); the options are timm's.

    Args:
        filters: number of output channels.
        strides: s, 1 or 2. With 2 the shortcut is a `Downsample`.
        expand_output: whether the inner width is 4 * filters, instead of 4 * C.
        pre_norm_act: whether an activation follows the first norm.
        output_bias: whether the last convolution and the shortcut have biases.
        stride_mode: where the stride is: `"dw"` (in the depthwise convolution) or `"pool"` (2x2
            means before the first convolution).
        pool_type: as in `Downsample`, of the shortcut.
        padding: as in `PaddedConv`, of the depthwise convolution.
        se_early: whether squeeze-and-excitation precedes the second norm.
        se_ratio: its hidden width, divided by `filters`, or by the inner width if `expand_output`
            is False.
        se_activation, conv_activation: activations, as in `Mlp`.
        conv_norm_eps: epsilon of the norms.
        drop_path: stochastic depth rate.
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
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
        conv_norm_eps: float = 1e-5,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.expand_output = expand_output
        self.pre_norm_act = pre_norm_act
        self.output_bias = output_bias
        self.stride_mode = one_of(stride_mode, "stride_mode", STRIDE_MODES)
        self.pool_type = pool_type
        self.padding = padding
        self.se_early = se_early
        self.se_ratio = se_ratio
        self.se_activation = se_activation
        self.conv_activation = conv_activation
        self.conv_norm_eps = conv_norm_eps
        self.drop_path = drop_path

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        inner = divisible(4 * (self.filters if self.expand_output else width))
        self.act = activation(self.conv_activation)
        self.shortcut = self.down = None
        if self.strides == 2:
            down = {"use_bias": self.output_bias, "pool_type": self.pool_type, "name": "shortcut"}
            self.shortcut = self.child(Downsample, input_shape, filters=self.filters, **down)
        self.pre_norm = self.batch_norm("pre_norm", input_shape)
        strides = self.strides
        if strides == 2 and self.stride_mode == "pool":
            self.down = self.child(Downsample, input_shape, name="down")
            input_shape, strides = halved(input_shape, width), 1
        self.conv1_1x1 = self.conv("conv1_1x1", input_shape, filters=inner, use_bias=False)
        shape = (*input_shape[:3], inner)
        self.norm1 = self.batch_norm("norm1", shape)
        depthwise = {"kernel_size": 3, "strides": strides, "depthwise": True, "use_bias": False}
        self.conv2_kxk = self.conv(
            "conv2_kxk", shape, filters=inner, padding=self.padding, **depthwise
        )
        shape = halved(shape, inner, strides)
        self.norm2 = self.batch_norm("norm2", shape)
        hidden = int(self.se_ratio * (self.filters if self.expand_output else inner))
        squeeze = {"filters": hidden, "activation": self.se_activation}
        name = "se_early" if self.se_early else "se"
        self.se = self.child(SqueezeExcite, shape, name=name, **squeeze)
        self.conv3_1x1 = self.conv(
            "conv3_1x1", shape, filters=self.filters, use_bias=self.output_bias
        )
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def batch_norm(self, name: str, shape: Shape) -> keras.layers.Layer:
        """Make a BatchNorm."""
        norm = {"norm": "batch", "epsilon": self.conv_norm_eps, "name": name}
        return self.child(normalization, shape, **norm)

    def conv(self, name: str, shape: Shape, **options: Any) -> PaddedConv:
        """Make a convolution."""
        return self.child(PaddedConv, shape, name=name, **options)

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(halved(x.shape, self.filters, self.strides), self.compute_dtype)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        before = None
        if self.pre_norm_act or not is_fixed(self.pre_norm, training):
            x = self.pre_norm(x, training=training)
            x = self.act(x) if self.pre_norm_act else x
        else:  # the means below leave it as it is
            before = self.pre_norm.affine()
        if self.down is not None:
            x = self.down(x)
        x = self.act(normed(x, self.conv1_1x1, self.norm1, training, before))
        if not self.se_early:
            x = self.se(self.act(normed(x, self.conv2_kxk, self.norm2, training)))
        elif is_fixed(self.norm2, training):
            x = self.conv2_kxk(x)
            gain, shift = self.norm2.affine()
            x = self.act(affine(x, (self.se.gates(x) * gain, shift)))
        else:
            x = self.act(self.norm2(self.se(self.conv2_kxk(x)), training=training))
        return self.skip(self.conv3_1x1(x), training=training) + shortcut


@register
class StridedConvNeXt(Block):
    """ConvNeXt block that may halve the resolution: `(B, H, W, C) -> (B, H/s, W/s, filters)`.

    A depthwise 7x7 convolution, LayerNorm and an MLP (https://arxiv.org/abs/2201.03545, figure 4),
    as timm has it in place of MBConv in CoAtNeXt and MaxxViT: the depthwise convolution has the
    stride, the shortcut is a `Downsample`.

    Args:
        filters: number of output channels, a multiple of C.
        strides: s, 1 or 2.
        conv_activation: activation of the MLP.
        conv_norm_eps: epsilon of the norm.
        conv_init_values: initial value of LayerScale.
        drop_path: stochastic depth rate.
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        conv_activation: str = "gelu",
        conv_norm_eps: float = 1e-5,
        conv_init_values: float = 1e-6,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.conv_activation = conv_activation
        self.conv_norm_eps = conv_norm_eps
        self.conv_init_values = conv_init_values
        self.drop_path = drop_path

    def build(self, input_shape: Shape) -> None:
        self.shortcut = None
        if self.strides == 2:
            self.shortcut = self.child(
                Downsample, input_shape, filters=self.filters, name="shortcut"
            )
        conv = {"kernel_size": 7, "strides": self.strides, "depthwise": True, "stddev": 0.02}
        self.conv_dw = self.child(
            PaddedConv, input_shape, filters=self.filters, name="conv_dw", **conv
        )
        shape = halved(input_shape, self.filters, self.strides)
        self.norm = self.child(normalization, shape, epsilon=self.conv_norm_eps, name="norm")
        self.mlp = self.child(Mlp, shape, activation=self.conv_activation, name="mlp")
        self.ls = self.child(LayerScale, shape, init_values=self.conv_init_values, name="ls")
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def links(self) -> Iterable[Norm | Scale]:
        yield self.norm.read_by(*self.mlp.readers)
        yield self.ls.after(self.mlp.fc2)

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(halved(x.shape, self.filters, self.strides), self.compute_dtype)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = self.ls(self.mlp(self.norm(self.conv_dw(x)), training=training))
        return self.skip(x, training=training) + shortcut

"""Convolutions padded as in PyTorch or as in TensorFlow, and BatchNorm after them."""

from typing import Any, TypeAlias

import keras
from keras import ops

from keras_vit.layers.base import Layer, initial, one_of, register
from keras_vit.layers.conv import pad
from keras_vit.layers.norm import BatchNormalization
from keras_vit.types import Shape, Tensor

Affine: TypeAlias = tuple[Tensor, Tensor] | None
PADDINGS = ("symmetric", "same")


@register
class PaddedConv(Layer):
    """Convolution with the padding of PyTorch or of TensorFlow: `(B, H, W, C) -> (B, H/s, W/s,
    filters)`, sizes rounded up.

    Args:
        filters: number of output channels.
        kernel_size: in pixels.
        strides: s, in pixels.
        depthwise: whether each output channel reads one input channel; with `filters = m * C`,
            output channel i reads input channel `i // m`.
        padding: `"symmetric"` (as many zeros before as after, as in PyTorch) or `"same"`
            (TensorFlow's: with a stride of 2 the zeros of an even edge come after it).
        use_bias: whether to add a bias.
        stddev: standard deviation of the initial kernel; None for sqrt(2 / fan_out), as in
            EfficientNet.

    Raises:
        ValueError: unknown padding.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        depthwise: bool = False,
        padding: str = "symmetric",
        use_bias: bool = True,
        stddev: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.depthwise = depthwise
        self.padding = one_of(padding, "padding", PADDINGS)
        self.use_bias = use_bias
        self.stddev = stddev

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        channels = (self.filters, 1) if self.depthwise else (width, self.filters)
        fan_out = self.kernel_size**2 * channels[1]
        self.kernel = self.add_weight(
            shape=(self.kernel_size, self.kernel_size, *channels),
            initializer=initial(self.stddev or (2 / fan_out) ** 0.5),
            autocast=False,
            name="depthwise_kernel" if self.depthwise else "kernel",
        )
        self.bias = None
        if self.use_bias:
            zeros = {"initializer": "zeros", "autocast": False, "name": "bias"}
            self.bias = self.add_weight(shape=(self.filters,), **zeros)

    def compute_output_spec(
        self, x: Tensor, after: Affine = None, before: Affine = None
    ) -> keras.KerasTensor:
        size = (None if n is None else -(-n // self.strides) for n in x.shape[1:3])
        return keras.KerasTensor((x.shape[0], *size, self.filters), self.compute_dtype)

    def call(self, x: Tensor, after: Affine = None, before: Affine = None) -> Tensor:
        """Convolve, between two affine functions of the channels: (factors, summands), float32.

        Their factors go into the kernel where it is smaller than the maps.
        """
        size, kernel, bias = x.shape[1] * x.shape[2], self.kernel, self.bias
        before, after = (_in_float32(function) for function in (before, after))  # Keras casts them
        if before is not None and (self.kernel_size > 1 or size < self.filters):
            x, before = affine(x, before), None
        if before is not None:
            moved = ops.sum(kernel * before[1][:, None], axis=(0, 1, 2))
            bias = moved if bias is None else bias + moved
            kernel = kernel * before[0][:, None]
        if after is not None and (self.depthwise or size >= self.kernel_size**2 * x.shape[3]):
            gain, shift = after
            kernel = kernel * (gain[:, None] if self.depthwise else gain)
            bias = shift if bias is None else shift + gain * bias
            after = None
        x = self.convolve(x, ops.cast(kernel, self.compute_dtype))
        x = x if bias is None else x + ops.cast(bias, self.compute_dtype)
        return x if after is None else affine(x, after)

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """The convolution with a kernel of `(k, k, C, filters)`, or `(k, k, filters, 1)`."""
        padding = "same"
        if self.strides > 1 and self.padding == "symmetric" and self.kernel_size > 1:
            x, padding = pad(x, self.kernel_size, self.strides, self.kernel_size // 2), "valid"
        if not self.depthwise:
            return ops.conv(x, kernel, self.strides, padding, "channels_last")
        kernel = ops.reshape(kernel, (*kernel.shape[:2], x.shape[-1], -1))
        return ops.depthwise_conv(x, kernel, self.strides, padding, "channels_last")


def normed(
    x: Tensor,
    conv: PaddedConv,
    norm: keras.layers.Layer,
    training: bool | None = None,
    before: Affine = None,
) -> Tensor:
    """`norm(conv(x))`, and in inference the convolution with BatchNorm's factors in its kernel.

    Args:
        before: what precedes the convolution, as in `PaddedConv.call`.
    """
    if not isinstance(norm, BatchNormalization):
        return norm(conv(x, before=before))
    if is_fixed(norm, training):
        return conv(x, after=norm.affine(), before=before)
    return norm(conv(x, before=before), training=True)


def is_fixed(norm: BatchNormalization, training: bool | None) -> bool:
    """Whether a BatchNorm uses its moving averages."""
    return not (training and norm.trainable)


def _in_float32(function: Affine) -> Affine:
    return function and (ops.cast(function[0], "float32"), ops.cast(function[1], "float32"))


def affine(x: Tensor, function: tuple[Tensor, Tensor]) -> Tensor:
    """`x * factors + summands`, for each channel."""
    factors, summands = (ops.cast(part, x.dtype) for part in function)
    return x * factors + summands

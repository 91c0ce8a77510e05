"""Convolutions, and padding as in PyTorch."""

from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import KeepsFrozen, Layer, initial, register
from keras_vit.types import Shape, Tensor


@register
class DepthwiseConv(Layer):
    """Depthwise convolution: `(B, H, W, C) -> (B, H/s, W/s, C)`.

    Like `keras.layers.DepthwiseConv2D`, except that the kernel, `(k, k, C, 1)`, has a name of its
    own, `depthwise_kernel`, so that `keras_vit.weights` knows its shape in PyTorch, `(C, 1, k, k)`.

    Args:
        kernel_size: k, in pixels.
        strides: s, in pixels.
        padding: `"same"` or `"valid"`.
        use_bias: whether to add a bias.
    """

    def __init__(
        self,
        kernel_size: int,
        strides: int = 1,
        padding: str = "same",
        use_bias: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.use_bias = use_bias

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        shape = (self.kernel_size, self.kernel_size, channels, 1)
        self.depthwise_kernel = self.add_weight(
            shape=shape, initializer=initial(), name="depthwise_kernel"
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(shape=(channels,), initializer="zeros", name="bias")

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        kernel = 1 if self.padding == "same" else self.kernel_size
        size = (None if s is None else (s - kernel) // self.strides + 1 for s in x.shape[1:3])
        return keras.KerasTensor((x.shape[0], *size, x.shape[3]), self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        x = ops.depthwise_conv(
            x, self.depthwise_kernel, self.strides, self.padding, data_format="channels_last"
        )
        return x if self.bias is None else x + self.bias


def pad(x: Tensor, kernel_size: int, strides: int, width: int) -> Tensor:
    """Pad a map with zeros, as PyTorch's `padding` does: before a convolution without padding.

    PyTorch pads both sides alike, `padding="same"` of Keras less before than after, where a stride
    is 2. Zeros that no window reaches are left out.

    Args:
        x: the map, `(B, H, W, C)`; H and W may be unknown.
        kernel_size, strides: of the convolution, in pixels.
        width: rows and columns of zeros on each side.
    """

    def after(size):
        if size is None:
            return width
        last = (size + 2 * width - kernel_size) // strides * strides  # where the last window begins
        return max(last + kernel_size - width - size, 0)

    return ops.pad(x, ((0, 0), *((width, after(size)) for size in x.shape[1:3]), (0, 0)))


@register
class Conv(KeepsFrozen, keras.layers.Conv2D):
    """Convolution with PyTorch's padding: `(B, H, W, C) -> (B, H', W', D)`.

    H' is (H + 2 * pad - k) // s + 1.

    Args:
        filters: D.
        kernel_size: k, in pixels.
        strides: s, in pixels.
        pad: rows and columns of zeros on each side.
    """

    def __init__(
        self, filters: int, kernel_size: int, strides: int = 1, pad: int = 0, **kwargs: Any
    ):
        fixed = {"padding": "valid", "data_format": "channels_last"}
        kwargs.setdefault("kernel_initializer", initial())
        super().__init__(filters, kernel_size, strides, **{**kwargs, **fixed})
        self.pad = pad

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pad": self.pad}

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *size, channels = input_shape
        size = [None if s is None else s + 2 * self.pad for s in size]
        return super().compute_output_shape((batch, *size, channels))

    def call(self, x: Tensor) -> Tensor:
        if self.pad:
            x = pad(x, self.kernel_size[0], self.strides[0], self.pad)
        return super().call(x)

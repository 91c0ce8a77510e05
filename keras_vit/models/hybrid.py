"""R+ViT: a ResNet before the patches (section 3.1 of https://arxiv.org/abs/2010.11929)."""

import keras
from keras import ops

from keras_vit import checks
from keras_vit.layers.base import Layer, arguments, register
from keras_vit.layers.patches import check_divides, pair
from keras_vit.layers.resample import RESAMPLE
from keras_vit.models.vit import ViT, ViTBackbone


@register
class StdConv(keras.layers.Conv2D):
    """A convolution with standardised kernels, `(B, H, W, C) -> (B, H', W', C')`, no bias.

    Each output channel's kernel has mean 0 and variance 1 (https://arxiv.org/abs/1903.10520),
    epsilon 1e-8; padding as TensorFlow's "same".
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        fixed = {"padding": "same", "use_bias": False, "data_format": "channels_last"}
        super().__init__(filters, kernel_size, strides, **{**kwargs, **fixed})

    def call(self, x):
        kernel = ops.cast(self.kernel, "float32")
        mean, variance = ops.moments(kernel, axes=(0, 1, 2), keepdims=True)
        kernel = ops.cast((kernel - mean) * ops.rsqrt(variance + 1e-8), x.dtype)
        return ops.conv(x, kernel, self.strides, "same", "channels_last")


class ConvNorms(Layer):
    """Convolutions, each with a GroupNorm of 32 groups: what stem and bottleneck are made of."""

    def add(self, name, shape, filters, size, strides=1):
        """Build `self.conv<name>` and `self.norm<name>`; returns the shape of their output."""
        conv = self.child(
            StdConv, filters=filters, kernel_size=size, strides=strides, name=f"conv{name}"
        )
        norm = self.child(
            keras.layers.GroupNormalization, groups=32, epsilon=1e-5, name=f"norm{name}"
        )
        conv.build(shape)
        shape = conv.compute_output_shape(shape)
        norm.build(shape)
        setattr(self, f"conv{name}", conv)
        setattr(self, f"norm{name}", norm)
        return shape


@register
class Stem(ConvNorms):
    """7x7 convolution, norm, ReLU, 3x3 pooling: `(B, H, W, C) -> (B, H/4, W/4, 64)`."""

    def build(self, input_shape):
        self.add("", input_shape, 64, 7, 2)
        self.pool = self.child(
            keras.layers.MaxPooling2D, pool_size=3, strides=2, padding="same", name="pool"
        )

    def compute_output_spec(self, x):
        size = (None if s is None else -(-s // 4) for s in x.shape[1:3])
        return keras.KerasTensor((x.shape[0], *size, 64), self.compute_dtype)

    def call(self, x):
        return self.pool(ops.relu(self.norm(self.conv(x))))


@register
class Bottleneck(ConvNorms):
    """A bottleneck of ResNetV2 that normalises after each convolution: `(B, H, W, C) -> (B, H/s,
    W/s, filters)`.

    Args:
        filters: channels of the output; the 3x3 convolution has a quarter of them.
        strides: s, of the 3x3 convolution.
        project: whether the shortcut is a convolution, too.
    """

    def __init__(self, filters, strides=1, project=False, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.project = project

    def build(self, input_shape):
        shape = self.add("1", input_shape, self.filters // 4, 1)
        shape = self.add("2", shape, self.filters // 4, 3, self.strides)
        self.add("3", shape, self.filters, 1)
        self.downsample = None
        if self.project:
            self.downsample = self.child(
                Shortcut, filters=self.filters, strides=self.strides, name="downsample"
            )
            self.downsample.build(input_shape)

    def compute_output_spec(self, x):
        size = (None if s is None else -(-s // self.strides) for s in x.shape[1:3])
        return keras.KerasTensor((x.shape[0], *size, self.filters), self.compute_dtype)

    def call(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = ops.relu(self.norm1(self.conv1(x)))
        x = ops.relu(self.norm2(self.conv2(x)))
        return ops.relu(self.norm3(self.conv3(x)) + shortcut)


@register
class Shortcut(ConvNorms):
    """A bottleneck's shortcut where the shape changes: 1x1 convolution and norm.

    Args:
        filters, strides: as in `Bottleneck`.
    """

    def __init__(self, filters, strides, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides

    def build(self, input_shape):
        self.add("", input_shape, self.filters, 1, self.strides)

    def call(self, x):
        return self.norm(self.conv(x))


@register
class HybridViTBackbone(ViTBackbone):
    """A ResNet's features to tokens: `(B, H, W, C) -> (B, prefix + N, D)`, arguments as in
    `ViTBackbone`, and:

    Args:
        stages: bottlenecks in each stage of the ResNet, as a list; empty for the stem alone. Each
            stage after the first halves the resolution, the stem quarters it.
        patch_size: in cells of the ResNet's feature map.
    """

    @staticmethod
    def graph(
        image_size=224, in_channels=3, stages=(3, 4, 9), resample="bicubic", dtype=None, **trunk
    ):
        checks.word(resample, "resample", RESAMPLE)
        size = pair(image_size) if image_size else (None, None)
        inputs = keras.Input((*size, in_channels), name="images")
        x = Stem(dtype=dtype, name="stem" if stages else "backbone")(inputs)
        for stage, depth in enumerate(stages):
            for block in range(depth):
                first = block == 0
                x = Bottleneck(
                    256 * 2**stage,
                    strides=2 if first and stage else 1,
                    project=first,
                    dtype=dtype,
                    name=f"stages_{stage}_blocks_{block}",
                )(x)
        patch = trunk.get("patch_size", arguments(ViTBackbone.trunk)["patch_size"])
        if any(cells is not None and cells % patch for cells in x.shape[1:3]):
            stride = HybridViTBackbone.stride({"patch_size": patch, "stages": stages})
            check_divides(stride, *size, what="the stride of ResNet and patches,")
        return inputs, ViTBackbone.trunk(x, dtype=dtype, **trunk)

    @staticmethod
    def stride(options):
        """Pixels from one token to the next."""
        return options["patch_size"] * 4 * 2 ** max(len(options["stages"]) - 1, 0)


@register
class HybridViT(ViT):
    """A ViT on the features of a ResNet; arguments as in `ViT`."""

    backbone_cls = HybridViTBackbone

"""Hybrid ViT (R+ViT): a ViT on the feature map of a ResNet (section 3.1 of
https://arxiv.org/abs/2010.11929)."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_vit import checks
from keras_vit.layers.base import KeepsFrozen, Layer, register
from keras_vit.layers.patches import check_divides, pair
from keras_vit.layers.resample import RESAMPLE
from keras_vit.models.base import Resizer
from keras_vit.models.vit import ViT, ViTBackbone
from keras_vit.resize import adapt_channels
from keras_vit.types import Shape, Size, Tensor


@register
class StdConv(KeepsFrozen, keras.layers.Conv2D):
    """Convolution with weight standardization: `(B, H, W, C) -> (B, H/s, W/s, filters)`.

    The kernel of each output channel is normalized to mean 0 and variance 1, with epsilon 1e-8
    (https://arxiv.org/abs/1903.10520). No bias; `"same"` padding as in TensorFlow.

    Args:
        filters: number of output channels.
        kernel_size: in pixels.
        strides: s, in pixels.
    """

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, **kwargs: Any):
        fixed = {"padding": "same", "use_bias": False, "data_format": "channels_last"}
        super().__init__(filters, kernel_size, strides, **{**kwargs, **fixed})

    def call(self, x: Tensor) -> Tensor:
        kernel = ops.cast(self.kernel, "float32")
        mean, variance = ops.moments(kernel, axes=(0, 1, 2), keepdims=True)
        kernel = ops.cast((kernel - mean) * ops.rsqrt(variance + 1e-8), x.dtype)
        return ops.conv(x, kernel, self.strides, "same", "channels_last")


class ConvNorms(Layer):
    """Base class of layers that consist of convolutions, each followed by a GroupNorm."""

    def conv_norm(
        self, name: str, shape: Shape, filters: int, size: int, strides: int = 1
    ) -> Shape:
        """Make `self.conv<name>` and `self.norm<name>`, a GroupNorm of 32 groups.

        Returns:
            The shape of their output.
        """
        conv = {"filters": filters, "kernel_size": size, "strides": strides}
        norm = {"groups": 32, "epsilon": 1e-5, "name": f"norm{name}"}
        layer = self.child(StdConv, shape, name=f"conv{name}", **conv)
        setattr(self, f"conv{name}", layer)
        shape = layer.compute_output_shape(shape)
        setattr(self, f"norm{name}", self.child(keras.layers.GroupNormalization, shape, **norm))
        return shape


@register
class Stem(ConvNorms):
    """ResNet stem: 7x7 convolution, norm, ReLU, 3x3 max pooling; `(B, H, W, C) -> (B, H/4, W/4,
    64)`."""

    def build(self, input_shape: Shape) -> None:
        self.conv_norm("", input_shape, 64, 7, 2)
        self.pool = self.child(
            keras.layers.MaxPooling2D, pool_size=3, strides=2, padding="same", name="pool"
        )

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        size = (None if s is None else -(-s // 4) for s in x.shape[1:3])
        return keras.KerasTensor((x.shape[0], *size, 64), self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        return self.pool(ops.relu(self.norm(self.conv(x))))


@register
class Bottleneck(ConvNorms):
    """ResNet bottleneck block with a norm after each convolution: `(B, H, W, C) -> (B, H/s, W/s,
    filters)`.

    Args:
        filters: number of output channels; the 3x3 convolution has a quarter of them.
        strides: s, the stride of the 3x3 convolution.
        project: whether the shortcut has a convolution, too.
    """

    def __init__(self, filters: int, strides: int = 1, project: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.project = project

    def build(self, input_shape: Shape) -> None:
        shape = self.conv_norm("1", input_shape, self.filters // 4, 1)
        shape = self.conv_norm("2", shape, self.filters // 4, 3, self.strides)
        self.conv_norm("3", shape, self.filters, 1)
        self.downsample = None
        if self.project:
            shortcut = {"filters": self.filters, "strides": self.strides, "name": "downsample"}
            self.downsample = self.child(Shortcut, input_shape, **shortcut)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        size = (None if s is None else -(-s // self.strides) for s in x.shape[1:3])
        return keras.KerasTensor((x.shape[0], *size, self.filters), self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = ops.relu(self.norm1(self.conv1(x)))
        x = ops.relu(self.norm2(self.conv2(x)))
        return ops.relu(self.norm3(self.conv3(x)) + shortcut)


@register
class Shortcut(ConvNorms):
    """Shortcut of a bottleneck that changes the shape: 1x1 convolution and norm, `(B, H, W, C) ->
    (B, H/s, W/s, filters)`.

    Args:
        filters, strides: as in `Bottleneck`.
    """

    def __init__(self, filters: int, strides: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides

    def build(self, input_shape: Shape) -> None:
        self.conv_norm("", input_shape, self.filters, 1, self.strides)

    def call(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@register
class HybridViTBackbone(ViTBackbone):
    """Hybrid ViT backbone, images to tokens: `(B, H, W, C) -> (B, prefix + N, D)`.

    The arguments are those of `ViTBackbone`, except:

    Args:
        stages: number of bottlenecks in each stage of the ResNet; empty for the stem only. The stem
            divides the resolution by 4, each stage after the first by 2.
        patch_size: P, in pixels of the ResNet's feature map.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the ResNet's
            feature map.
    """

    @staticmethod
    def graph(
        *,
        image_size: Size | None = 224,
        in_channels: int = 3,
        stages: Sequence[int] = (3, 4, 9),
        resample: str = "bicubic",
        dtype: Any = None,
        **trunk: Any,
    ) -> tuple[Tensor, Tensor]:
        checks.word(resample, "resample", RESAMPLE)
        size = pair(image_size) if image_size else (None, None)
        if image_size:
            HybridViTBackbone.grid({"image_size": size, "stages": stages, **trunk})  # checks it
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
        return inputs, ViTBackbone.trunk(x, dtype=dtype, **trunk)

    @staticmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        if options["image_size"] is None:
            return pair(options["grid_size"])
        image_size, patch = pair(options["image_size"]), options["patch_size"]
        stride = 2 ** (2 + max(len(options["stages"]) - 1, 0))  # of the ResNet
        height, width = (-(-size // stride) for size in image_size)  # of its feature map
        if height % patch or width % patch:
            total = "the total stride of ResNet and patches,"
            check_divides(patch * stride, *image_size, what=total)
        return height // patch, width // patch

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        stem = "stem" if self.options["stages"] else "backbone"
        channels = {f"{stem}/conv/kernel": lambda x, shape: adapt_channels(x, shape[-2])}
        return {**super().resizers(old), **channels}

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        options = super().from_shapes(shapes)
        resnet = "patch_embed.backbone."
        count = checks.repeated(shapes, f"{resnet}stages.*.")
        stages = [checks.repeated(shapes, f"{resnet}stages.{i}.blocks.*.") for i in range(count)]
        stem = f"{resnet}stem.conv.weight" if count else f"{resnet}conv.weight"
        return {
            **options,
            "image_size": options["image_size"] * 2 ** (2 + max(count - 1, 0)),
            "in_channels": checks.shape(shapes, stem, 4)[1],
            "stages": tuple(stages),
        }

    @property
    def first_projection(self) -> None:
        """None, because the stem pads the images."""


@register
class HybridViT(ViT):
    """Hybrid ViT classifier. The arguments are those of `ViT`."""

    backbone_cls = HybridViTBackbone

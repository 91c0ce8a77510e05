"""ConvNeXt: "A ConvNet for the 2020s" (https://arxiv.org/abs/2201.03545), and ConvNeXt V2
(https://arxiv.org/abs/2301.00808).

`ConvNeXtBlock` is figure 4 (right) of the first paper and figure 5 of the second.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_vit import checks
from keras_vit.layers.base import Layer, Norm, Scale, register
from keras_vit.layers.block import Block, LayerScale
from keras_vit.layers.conv import Conv, DepthwiseConv
from keras_vit.layers.drop import DropPath, drop_path_rates
from keras_vit.layers.mlp import Mlp, as_matrix
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import pair
from keras_vit.models.base import Backbone, PyramidBackbone, Resizer
from keras_vit.models.classifier import ImageClassifier
from keras_vit.resize import adapt_channels
from keras_vit.types import Shape, Size, Tensor

STEMS = ("patch", "overlap", "overlap_tiered")


@register
class GlobalResponseNorm(Layer):
    """Global response normalization: `(B, H, W, C) -> (B, H, W, C)`.

    Section 3.3 and algorithm 1 of https://arxiv.org/abs/2301.00808: each channel is scaled by its
    Frobenius norm over the whole map, divided by the mean of these norms over the channels.

    Args:
        epsilon: added to that mean.
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1:]
        self.gamma = self.add_weight(shape=width, initializer="zeros", name="gamma")
        self.beta = self.add_weight(shape=width, initializer="zeros", name="beta")

    def read_by(self, *readers: keras.layers.Layer) -> Norm:
        """This layer's bias, to be folded into the dense layers, its only readers."""
        return Norm(None, self.beta, readers)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        squares = ops.sum(ops.square(ops.cast(x, "float32")), axis=(1, 2), keepdims=True)
        norms = ops.sqrt(ops.maximum(squares, 1e-30))  # sqrt has no gradient at 0
        norms = norms / (ops.mean(norms, axis=-1, keepdims=True) + self.epsilon)
        scale = 1.0 + ops.cast(self.gamma, "float32") * norms
        return x * ops.cast(scale, x.dtype) + self.beta


@register
class ResponseMlp(Mlp):
    """MLP with global response normalization before `fc2`: `(B, H, W, C) -> (B, H, W, C)`."""

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        hidden = (*input_shape[:-1], int(input_shape[-1] * self.ratio))
        self.grn = self.child(GlobalResponseNorm, hidden, name="grn")

    def links(self) -> Iterable[Norm]:
        yield self.grn.read_by(self.fc2)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        x = self.drop(as_matrix(self.hidden, x), training=training)
        return self.drop(as_matrix(self.fc2, self.grn(x)), training=training)


@register
class ConvNeXtBlock(Block):
    """ConvNeXt block: `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        kernel_size: of the depthwise convolution, in pixels.
        init_values: initial value of LayerScale.
        use_grn: global response normalization in the MLP, in place of LayerScale (V2).
        activation: as in `Mlp`.
        norm_eps: epsilon of the LayerNorm.
        drop_path: stochastic depth rate.
    """

    def __init__(
        self,
        kernel_size: int = 7,
        init_values: float = 1e-6,
        use_grn: bool = False,
        activation: str = "gelu",
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.init_values = init_values
        self.use_grn = use_grn
        self.activation = activation
        self.norm_eps = norm_eps
        self.drop_path = drop_path

    def build(self, input_shape: Shape) -> None:
        mlp, kernel = ResponseMlp if self.use_grn else Mlp, self.kernel_size
        self.conv_dw = self.child(DepthwiseConv, input_shape, kernel_size=kernel, name="conv_dw")
        self.norm = self.child(normalization, input_shape, epsilon=self.norm_eps, name="norm")
        self.mlp = self.child(mlp, input_shape, activation=self.activation, name="mlp")
        self.ls = None
        if not self.use_grn:
            scale = {"init_values": self.init_values, "name": "ls"}
            self.ls = self.child(LayerScale, input_shape, **scale)
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def links(self) -> Iterable[Norm | Scale]:
        yield self.norm.read_by(*self.mlp.readers)
        if self.ls is not None:
            yield self.ls.after(self.mlp.fc2)

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        residual = x
        x = self.mlp(self.norm(self.conv_dw(x)), training=training)
        x = x if self.ls is None else self.ls(x)
        return residual + self.skip(x, training=training)


@register
class ConvNeXtBackbone(PyramidBackbone):
    """ConvNeXt backbone, images to a feature map: `(B, H, W, C) -> (B, H / 32, W / 32, dims[3])`.

    Where 32 does not divide the image, the last rows and columns are not read, as in the authors'
    code. `pyramid_outputs` has the outputs of the four stages, P2 to P5.

    Args:
        image_size: int or (height, width), in pixels; None for images of any size.
        in_channels: C.
        depths: number of blocks in each of the four stages.
        dims: number of channels in each stage.
        kernel_sizes: of the depthwise convolutions of each stage, in pixels.
        stem_type: `"patch"`: a 4x4 convolution with stride 4; `"overlap"`: two 3x3 convolutions
            with stride 2; `"overlap_tiered"`: the first of these has half the channels.
        final_norm: whether a LayerNorm ends the backbone. By default the classifier has it, after
            the pooling.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        dtype: Keras dtype policy.
        init_values, use_grn, activation, norm_eps: as in `ConvNeXtBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the image is smaller than 32 pixels.
    """

    passes_on: ClassVar[tuple[Callable, ...]] = (ConvNeXtBlock.__init__,)
    given = ("kernel_size", "drop_path")

    @staticmethod
    def graph(
        *,
        image_size: Size | None = 224,
        in_channels: int = 3,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: Sequence[int] = (7, 7, 7, 7),
        stem_type: str = "patch",
        final_norm: bool = False,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        **block: Any,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        _check_stages(depths=depths, dims=dims, kernel_sizes=kernel_sizes)
        ConvNeXtBackbone.grid({"image_size": image_size})  # checks it
        norm = {"epsilon": block["norm_eps"], "dtype": dtype}
        size = pair(image_size) if image_size else (None, None)
        inputs = keras.Input((*size, in_channels), name="images")
        x, count = stem(inputs, stem_type, dims[0], dtype)
        x = normalization(**norm, name=f"stem_{count}")(x)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        pyramid = {}
        for stage, (depth, width, kernel) in enumerate(
            zip(depths, dims, kernel_sizes, strict=True)
        ):
            name = f"stages_{stage}"
            if stage:
                x = normalization(**norm, name=f"{name}_downsample_0")(x)
                x = Conv(width, 2, 2, dtype=dtype, name=f"{name}_downsample_1")(x)
            for i in range(depth):
                options = {"kernel_size": kernel, "drop_path": next(rates), "dtype": dtype}
                x = ConvNeXtBlock(**options, **block, name=f"{name}_blocks_{i}")(x)
            pyramid[f"P{stage + 2}"] = x
        if final_norm:
            x = normalization(**norm, name="norm_pre")(x)
        return inputs, x, pyramid

    @staticmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        """Rows and columns of the output; for images of any size, those of 224 x 224 pixels."""
        height, width = pair(options["image_size"] or 224)
        if min(height, width) < 32:
            raise ValueError(
                f"image_size must be at least 32 pixels. Received: {height} x {width} pixels"
            )
        return height // 32, width // 32

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        """Adapt the first kernel to another number of channels; no other weight depends on the
        image."""
        return {"stem_0/kernel": lambda x, shape: adapt_channels(x, shape[-2])}

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        block = "stages.{}.blocks.0.conv_dw.weight"
        kernels = [checks.shape(shapes, block.format(i), 4) for i in range(4)]
        return {
            "image_size": 224,
            "in_channels": checks.shape(shapes, "stem.0.weight", 4)[1],
            "depths": tuple(checks.repeated(shapes, f"stages.{i}.blocks.*.") for i in range(4)),
            "dims": tuple(kernel[0] for kernel in kernels),
            "kernel_sizes": tuple(kernel[2] for kernel in kernels),
            "use_grn": "stages.0.blocks.0.mlp.grn.weight" in shapes,
        }

    @property
    def blocks(self) -> list[ConvNeXtBlock]:
        """The blocks of all stages, in order."""
        counts = enumerate(self.options["depths"])
        return [self.get_layer(f"stages_{s}_blocks_{i}") for s, n in counts for i in range(n)]

    @property
    def final_norm(self) -> keras.layers.Layer | None:
        return self.get_layer("norm_pre") if self.options["final_norm"] else None

    @property
    def first_projection(self) -> keras.layers.Conv2D | None:
        return self.get_layer("stem_0") if self.options["stem_type"] == "patch" else None

    def links(self) -> Iterable[Norm]:
        """The norms between the stages, each read by one convolution."""
        for stage in range(1, 4):
            norm, conv = (self.get_layer(f"stages_{stage}_downsample_{i}") for i in range(2))
            yield norm.read_by(conv)

    def default_lora_layer_names(self) -> list[str]:
        return ["fc1", "fc2"]


def stem(x: Tensor, kind: str, width: int, dtype: Any) -> tuple[Tensor, int]:
    """The convolutions of the stem: `(B, H, W, C) -> (B, H / 4, W / 4, width)`, and their number.

    Args:
        x: images.
        kind: one of `STEMS`.
        width: number of output channels.
        dtype: Keras dtype policy.
    """
    checks.word(kind, "stem_type", STEMS)
    if kind == "patch":
        return Conv(width, 4, 4, dtype=dtype, name="stem_0")(x), 1
    middle = _multiple_of_8(width // 2) if kind == "overlap_tiered" else width
    x = Conv(middle, 3, 2, pad=1, dtype=dtype, name="stem_0")(x)
    return Conv(width, 3, 2, pad=1, dtype=dtype, name="stem_1")(x), 2


def _multiple_of_8(width):
    """The nearest multiple of 8 that is not more than a tenth smaller."""
    near = max(8, (width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near


def _check_stages(**options):
    for name, values in options.items():
        if len(values) != 4:
            raise ValueError(f"{name} must have 4 numbers, one per stage. Received: {values}")


@register
class ConvNeXt(ImageClassifier):
    """ConvNeXt classifier. The arguments are those of `ViT`; `pooling` defaults to `"avg"`, and
    `fc_norm` to True: the LayerNorm stands after the pooling, unless `final_norm` ends the
    backbone with it."""

    backbone_cls = ConvNeXtBackbone

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        preprocessor: Any = None,
        pooling: str = "avg",
        pool_include_prefix: bool = False,
        fc_norm: bool | None = None,
        **kwargs: Any,
    ):
        if fc_norm is None:
            fc_norm = not backbone.options["final_norm"]
        head = (pooling, pool_include_prefix, fc_norm)
        super().__init__(backbone, num_classes, preprocessor, *head, **kwargs)

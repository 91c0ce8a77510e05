"""Patch projections of other kinds than ViT's, and positions from a convolution."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.layers.base import Layer, register
from keras_vit.layers.conv import Conv, DepthwiseConv
from keras_vit.layers.norm import BatchNormalization, normalization
from keras_vit.layers.split import check_divides
from keras_vit.layers.tokens import map_size
from keras_vit.types import Shape, Tensor


class PatchProjection(Layer):
    """Base class of the patch projections: `(B, H, W, C) -> (B, H / P, W / P, D)`.

    Args:
        embed_dim: D, the width of a token.
        patch_size: P, the distance of neighbouring patches, in pixels; must divide height and
            width.
        use_bias: whether the projection has a bias.
    """

    proj: keras.layers.Conv2D

    def __init__(self, embed_dim: int, patch_size: int = 16, use_bias: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.use_bias = use_bias

    def projection(self, shape: Shape, kernel_size: int, strides: int, pad: int = 0) -> Conv:
        """Make the last convolution, `self.proj`."""
        conv = {"kernel_size": kernel_size, "strides": strides, "pad": pad, "name": "proj"}
        use_bias = self.use_bias
        return self.child(Conv, shape, filters=self.embed_dim, use_bias=use_bias, **conv)

    @property
    def summands(self) -> list[Tensor]:
        """The variables that add up to a token, channels last; none if a norm comes last."""
        return [v for v in (self.proj.kernel, self.proj.bias) if v is not None]

    def compute_output_spec(self, images: Tensor) -> keras.KerasTensor:
        check_divides(self.patch_size, *images.shape[1:3])
        grid = (None if size is None else size // self.patch_size for size in images.shape[1:3])
        return keras.KerasTensor((images.shape[0], *grid, self.embed_dim), self.compute_dtype)


@register
class OverlappingPatches(PatchProjection):
    """Projection of patches that overlap: `(B, H, W, C) -> (B, H / P, W / P, D)`.

    One convolution whose kernel is larger than its stride, zeros around the image: the soft split
    of T2T-ViT (https://arxiv.org/abs/2101.11986, section 3.1) together with the projection after
    it, the convolutional token embedding of CvT (https://arxiv.org/abs/2103.15808, section 3.1)
    and the overlapping patch embedding of PVT v2 (https://arxiv.org/abs/2106.13797, section 3.2).

    Args:
        embed_dim, use_bias: as in `PatchEncoder`.
        patch_size: P, the stride, in pixels; must divide height and width.
        kernel_size: side of a patch, in pixels, odd; None for 2 * P - 1, as in PVT v2.
        norm: norm after the projection, `"layer"` (CvT, PVT v2) or `"rms"`; None for no norm.
        norm_eps: epsilon of that norm.

    Raises:
        ValueError: if the kernel is even or smaller than P, or P does not divide the image.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int = 16,
        use_bias: bool = True,
        kernel_size: int | None = None,
        norm: str | None = None,
        norm_eps: float = 1e-5,
        **kwargs: Any,
    ):
        super().__init__(embed_dim, patch_size, use_bias, **kwargs)
        self.kernel_size = kernel_size
        self.norm = norm
        self.norm_eps = norm_eps
        if kernel_size is not None and (kernel_size % 2 == 0 or kernel_size < patch_size):
            raise ValueError(
                f"kernel_size must be odd and at least the patch size {patch_size}. "
                f"Received: {kernel_size}"
            )

    def build(self, input_shape: Shape) -> None:
        check_divides(self.patch_size, *input_shape[1:3])
        size = self.kernel_size or 2 * self.patch_size - 1
        self.proj = self.projection(input_shape, size, self.patch_size, size // 2)
        self.last = None
        if self.norm:
            options = {"norm": self.norm, "epsilon": self.norm_eps, "name": "norm"}
            self.last = self.child(normalization, (None, None, None, self.embed_dim), **options)

    @property
    def summands(self) -> list[Tensor]:
        return super().summands if self.last is None else []

    def call(self, images: Tensor) -> Tensor:
        x = self.proj(images)
        return x if self.last is None else self.last(x)


@register
class HybridPatches(PatchProjection):
    """A small convolutional network in place of the patch projection: `(B, H, W, C) -> (B, H / P,
    W / P, D)`.

    The stem of https://arxiv.org/abs/2106.14881, section 4: 3x3 convolutions of stride 2, each
    followed by BatchNorm and ReLU, and a 1x1 convolution. Their widths double and end with D.

    Args:
        embed_dim, use_bias: as in `PatchEncoder`.
        patch_size: P, in pixels, a power of 2; must divide height and width.
        backbone: a Keras layer or model in place of the 3x3 convolutions, `(B, H, W, C) -> (B,
            H / P, W / P, C')`, for instance of `keras.applications`.

    Raises:
        ValueError: if P is no power of 2 and there is no backbone, P does not divide the image, or
            the backbone has another stride than P.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int = 16,
        use_bias: bool = True,
        backbone: keras.layers.Layer | None = None,
        **kwargs: Any,
    ):
        super().__init__(embed_dim, patch_size, use_bias, **kwargs)
        self.backbone = backbone
        if backbone is None and patch_size & (patch_size - 1):
            raise ValueError(
                "The patch size of HybridPatches must be a power of 2, because each convolution "
                f"halves the image. Received: {patch_size}"
            )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self.backbone is not None:
            config["backbone"] = keras.saving.serialize_keras_object(self.backbone)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "HybridPatches":
        if isinstance(config.get("backbone"), dict):
            backbone = keras.saving.deserialize_keras_object(config["backbone"])
            config = {**config, "backbone": backbone}
        return cls(**config)

    def build(self, input_shape: Shape) -> None:
        check_divides(self.patch_size, *input_shape[1:3])
        self.convs: list[Conv] = []
        self.norms: list[BatchNormalization] = []
        shape = input_shape if self.backbone is None else self.reduced(input_shape)
        count = self.patch_size.bit_length() - 1 if self.backbone is None else 0
        for i in range(count):
            width = max(self.embed_dim >> (count - 1 - i), 1)
            conv = {"kernel_size": 3, "strides": 2, "pad": 1, "use_bias": False}
            layer = self.child(Conv, shape, filters=width, name=f"convs_{i}", **conv)
            shape = (*layer.compute_output_shape(shape)[:-1], width)
            self.convs.append(layer)
            self.norms.append(self.child(BatchNormalization, shape, name=f"norms_{i}"))
        self.proj = self.projection(shape, 1, 1)

    def reduced(self, shape: Shape) -> Shape:
        """Build the backbone: the shape of its output.

        Raises:
            ValueError: if its stride is not the patch size.
        """
        backbone: Any = self.backbone
        if not backbone.built:
            backbone.build(shape)
        found = backbone.compute_output_shape(shape)
        wanted = [size and size // self.patch_size for size in shape[1:3]]
        if len(found) != 4 or any(
            None not in pair and pair[0] != pair[1] for pair in zip(found[1:3], wanted, strict=True)
        ):
            raise ValueError(
                f"The backbone must turn images {tuple(shape[1:])} into a feature map of "
                f"{wanted[0]} x {wanted[1]}, for patch_size={self.patch_size}. "
                f"Received: {tuple(found[1:])}"
            )
        return found

    def call(self, images: Tensor) -> Tensor:
        x = images if self.backbone is None else self.backbone(images)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = ops.relu(norm(conv(x)))
        return self.proj(x)


@register
class PositionalPatches(PatchProjection):
    """Projection of patches that know where they lie: `(B, H, W, C) -> (B, H / P, W / P, D)`.

    Two channels precede the projection: column and row of each pixel, from -1 to 1 (CoordConv,
    https://arxiv.org/abs/1807.03247, section 3).

    Args:
        embed_dim, use_bias: as in `PatchEncoder`.
        patch_size: P, in pixels; must divide height and width.

    Raises:
        ValueError: if P does not divide the image.
    """

    def build(self, input_shape: Shape) -> None:
        check_divides(self.patch_size, *input_shape[1:3])
        shape = (*input_shape[:-1], input_shape[-1] + 2)
        self.proj = self.projection(shape, self.patch_size, self.patch_size)

    def call(self, images: Tensor) -> Tensor:
        rows, columns = map_size(images)
        y, x = (coordinates(size) for size in (rows, columns))
        shape = (ops.shape(images)[0], rows, columns, 1)
        places = [
            ops.broadcast_to(ops.cast(axis, images.dtype), shape)
            for axis in (x[None, None, :, None], y[None, :, None, None])
        ]
        return self.proj(ops.concatenate([images, *places], axis=-1))


def coordinates(size: Any) -> Tensor:
    """Coordinates of so many pixels, an int or a scalar tensor: `(size,)` float32, -1 to 1."""
    if isinstance(size, int):
        return ops.convert_to_tensor(np.linspace(-1, 1, size, dtype="float32"))
    last = ops.cast(ops.maximum(size - 1, 1), "float32")
    return ops.cast(ops.arange(size), "float32") * 2 / last - 1


@register
class ConditionalPositions(Layer):
    """Positions that the neighbours of a token tell: `(B, H, W, D) -> (B, H, W, D)`.

    A depthwise convolution of the tokens on their grid, added to them. The zeros around the grid
    tell where its edges are. The positional encoding generator (PEG) of
    https://arxiv.org/abs/2102.10882, section 3.3. Prefix tokens do not take part.

    Args:
        kernel_size: of the convolution, in tokens.
    """

    def __init__(self, kernel_size: int = 3, **kwargs: Any):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size

    def build(self, input_shape: Shape) -> None:
        options = {"kernel_size": self.kernel_size, "name": "proj"}
        self.proj = self.child(DepthwiseConv, input_shape, **options)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        return x + self.proj(x)

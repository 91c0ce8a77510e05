"""Feature pyramids that KerasHub's detection and segmentation models take as image encoders."""

from typing import Any, Self

import keras
import keras_hub
from keras import ops

from keras_vit.layers.base import initial, register
from keras_vit.layers.norm import normalization
from keras_vit.models.base import Backbone, PyramidBackbone
from keras_vit.types import Tensor

STRIDE = 16  # of the plain backbone's map, in pixels


class PyramidEncoder(keras_hub.models.FeaturePyramidBackbone):
    """Base of the models that make a pyramid of a backbone.

    Args:
        backbone: a backbone of this package. Its layers become this model's: both train the same
            weights.
        pyramid: the feature maps, in the graph of the backbone.

    Attributes:
        pyramid_outputs: the feature maps by level.
    """

    def __init__(self, backbone: Backbone, pyramid: dict[str, Tensor], **kwargs: Any):
        super().__init__(inputs=backbone.input, outputs=pyramid[max(pyramid)], **kwargs)
        self.backbone = backbone
        self.pyramid_outputs = pyramid

    def get_config(self) -> dict[str, Any]:
        backbone = keras.saving.serialize_keras_object(self.backbone)
        return {"backbone": backbone, "name": self.name, "trainable": self.trainable}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**{**config, "backbone": backbone})


@register
class SimplePyramid(PyramidEncoder):
    """Simple feature pyramid on a plain ViT: the last map at scales 1/4, 1/8, 1/16 and 1/32.

    Section 3 and appendix A.2 of ViTDet (https://arxiv.org/abs/2203.16527): two, one or no 2x2
    deconvolutions, or 2x2 max pooling, then a 1x1 and a 3x3 convolution, each with a LayerNorm.

    Args:
        backbone: a backbone for images of one size that returns tokens of patches of 16 x 16
            pixels.
        width: channels of all maps of the pyramid.

    Raises:
        ValueError: if the backbone's output is no sequence of tokens, its patches have another
            size, or its image size is None.
    """

    def __init__(self, backbone: Backbone, width: int = 256, **kwargs: Any):
        x = _map(backbone)
        dtype, dim = backbone.dtype_policy, x.shape[-1]
        maps = {
            "P2": _up(
                _gelu(_norm(_up(x, dim // 2, dtype, "p2_up_0"), "p2_up_norm", dtype)),
                dim // 4,
                dtype,
                "p2_up_1",
            ),
            "P3": _up(x, dim // 2, dtype, "p3_up"),
            "P4": x,
            "P5": keras.layers.MaxPooling2D(2, data_format="channels_last", name="p5_down")(x),
        }
        pyramid = {level: _project(x, width, dtype, level.lower()) for level, x in maps.items()}
        super().__init__(backbone, pyramid, **kwargs)
        self.width = width

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


def _map(backbone):
    """The patch tokens as a feature map: `(B, prefix + N, D) -> (B, H / 16, W / 16, D)`."""
    size, x = backbone.image_size, backbone.output
    grid = None if size is None or len(x.shape) != 3 else backbone.grid_size
    if grid is None or any(n != STRIDE * cells for n, cells in zip(size, grid, strict=True)):
        cells = "a feature map" if len(x.shape) != 3 else f"{grid} patches"
        raise ValueError(
            f"A SimplePyramid needs a backbone with tokens of {STRIDE} x {STRIDE} pixels, for "
            f"images of one size. Received: image_size={size}, {cells}"
        )
    return ops.reshape(x[:, backbone.num_prefix_tokens :], (-1, *grid, x.shape[-1]))


def _up(x, filters, dtype, name):
    options = {"kernel_initializer": initial(), "data_format": "channels_last", "dtype": dtype}
    return keras.layers.Conv2DTranspose(filters, 2, strides=2, name=name, **options)(x)


def _norm(x, name, dtype):
    return normalization(epsilon=1e-6, dtype=dtype, name=name)(x)


def _gelu(x):
    return keras.activations.gelu(x)


def _project(x, width, dtype, name):
    """`(B, H, W, C) -> (B, H, W, width)`"""
    for size in (1, 3):
        options = {"padding": "same", "use_bias": False, "data_format": "channels_last"}
        options |= {"kernel_initializer": initial(), "dtype": dtype}
        x = keras.layers.Conv2D(width, size, name=f"{name}_conv_{size}x{size}", **options)(x)
        x = _norm(x, f"{name}_norm_{size}x{size}", dtype)
    return x


@register
class SegFormerEncoder(PyramidEncoder):
    """A backbone as `keras_hub.models.SegFormerBackbone` takes it.

    That class wants levels P1 to P4 where others have P2 to P5, and the widths of the maps, which
    must differ from each other.

    Args:
        backbone: a backbone with feature maps at scales 1/4 to 1/32, for images of one size.

    Attributes:
        hidden_dims: channels of the maps, finest first.

    Raises:
        ValueError: if the backbone has other levels, two maps are of one width, or its image size
            is None.
    """

    def __init__(self, backbone: PyramidBackbone, **kwargs: Any):
        levels = dict(sorted(backbone.pyramid_outputs.items()))
        widths = [x.shape[-1] for x in levels.values()]
        if list(levels) != ["P2", "P3", "P4", "P5"] or len({*widths}) < len(widths):
            raise ValueError(
                "SegFormer needs feature maps P2 to P5 of four widths. Received: "
                f"{', '.join(f'{level} of {x.shape[-1]}' for level, x in levels.items())} channels"
            )
        if backbone.image_size is None:
            raise ValueError("SegFormer takes images of one size. Received: image_size=None")
        maps = {f"P{i}": x for i, x in enumerate(levels.values(), 1)}
        super().__init__(backbone, maps, **kwargs)
        self.hidden_dims = widths

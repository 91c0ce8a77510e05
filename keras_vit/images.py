"""Preprocessing: from pictures to a model's input, by the numbers of the checkpoint's source."""

import math
import os
from collections.abc import Sequence
from typing import Any

import keras
import keras_hub
import numpy as np
from PIL import Image

from keras_vit.crop import View, resize_images, resize_picture
from keras_vit.layers.base import register
from keras_vit.layers.patches import pair
from keras_vit.layers.resample import KERNELS, Numpy, numpy_for
from keras_vit.pixels import as_image, raw_pixels, scaled, to_channels
from keras_vit.pixels import load_image as load_image  # part of this module's interface
from keras_vit.pixels import picture_files as picture_files
from keras_vit.pixels import to_array as to_array
from keras_vit.types import Images, Size, Tensor

CROP_MODES = ("center", "squash")


def is_one(images: Images) -> bool:
    """Whether this is a single image: a path, a PIL image or an array `(H, W)` or `(H, W, C)`."""
    return not isinstance(images, (list, tuple)) and getattr(images, "ndim", 3) < 4


def listed(images: Images) -> Any:
    """One image or several, as a sequence: a list, or an array `(B, H, W, C)`.

    Raises:
        ValueError: there is no image.
    """
    several: Any = [images] if is_one(images) else images
    if not len(several):
        raise ValueError("There is no image. Received: an empty list")
    return several


@register
class ImageConverter(keras_hub.layers.ImageConverter):
    """Resize, centre crop and normalise raw images, as timm and transformers do in evaluation.

    Takes a path, a PIL image, an array `(H, W, C)` or `(B, H, W, C)` of uint8, of uint16 (scaled to
    8 bits), of bool or of floats in 0..255, or a list of these. Returns float32 `(B, height, width,
    C)`, without B for a single image. 8-bit pixels are equal to those of PIL's resize. Works inside
    `tf.data.Dataset.map` and SavedModels, with any backend; edges of more than 65535 pixels are
    refused there.

    Args:
        image_size: int or (height, width) of the output, in pixels.
        mean, std: per channel, for pixels in 0..1.
        crop_pct: images are resized to floor(image_size / crop_pct), then cropped at the centre.
        crop_mode: `"center"`: the shorter edge is resized to that size; `"squash"`: both edges.
        interpolation: `"bicubic"`, `"bilinear"` or `"lanczos"`; always antialiased.
        floor_offset: how half of an odd margin is rounded: down (transformers), or as Python's
            `round` does (torchvision, timm).
        rounded: whether resized pixels are rounded to 8 bits, as PIL does; False: they are
            fractions (DINOv3 in transformers). `pixels`, and so exported files, round in any case.

    Raises:
        ValueError: unknown `crop_mode` or `interpolation`.
    """

    def __init__(
        self,
        image_size: Size,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        crop_pct: float = 1.0,
        crop_mode: str = "center",
        interpolation: str = "bicubic",
        floor_offset: bool = False,
        rounded: bool = True,
        **kwargs: Any,
    ):
        # KerasHub's own constructor would build a resizing layer that is not used here.
        super(keras_hub.layers.ImageConverter, self).__init__(**kwargs)
        if crop_mode not in CROP_MODES:
            raise ValueError(
                f"crop_mode must be one of {', '.join(CROP_MODES)}. Received: {crop_mode!r}"
            )
        if interpolation not in KERNELS:
            raise ValueError(
                f"interpolation must be one of {', '.join(KERNELS)}. Received: {interpolation!r}"
            )
        self._image_size = pair(image_size)
        self.mean = [float(x) for x in mean]
        self.std = [float(x) for x in std]
        self.crop_pct = float(crop_pct)
        self.crop_mode = crop_mode
        self.interpolation = interpolation
        self.floor_offset = floor_offset
        self.rounded = rounded
        self.built = True

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the output, in pixels; can be set."""
        return self._image_size

    @image_size.setter
    def image_size(self, value: Size) -> None:
        self._image_size = pair(value)

    def get_config(self) -> dict[str, Any]:
        own = (
            "image_size",
            "mean",
            "std",
            "crop_pct",
            "crop_mode",
            "interpolation",
            "floor_offset",
            "rounded",
        )
        config = super(keras_hub.layers.ImageConverter, self).get_config()
        return {**config, **{name: getattr(self, name) for name in own}}

    def call(self, images: Any) -> Tensor:
        try:
            return self.normalize(self._pixels(images, self.rounded))
        except (ValueError, OSError) as error:
            vars(error)["_keras_call_info_injected"] = True  # else Keras prints all pixels
            raise

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels in 0..255 to the model's input, `(..., C) -> (..., C)` float32:
        (pixel / 255 - mean) / std."""
        scale, offset = self.scale_and_offset()
        return numpy_for(pixels).asarray(pixels, dtype="float32") * scale + offset

    def scale_and_offset(self) -> tuple[np.ndarray, np.ndarray]:
        """The factors and offsets of `normalize`, per channel, float32 `(C,)` each."""
        scale = np.array([1 / (255 * s) for s in self.std], "float32")
        offset = np.array([-m / s for m, s in zip(self.mean, self.std, strict=True)], "float32")
        return scale, offset

    def pixels(self, images: Any) -> Tensor:
        """Resized and cropped images, not normalised: integers as float32, `(..., height, width,
        C)`.

        Raises:
            ValueError: what is given are no images, or not raw pixels.
        """
        return self._pixels(images, True)

    def _pixels(self, images: Any, rounded: bool) -> Tensor:
        """`pixels`, rounded or not."""
        if isinstance(images, (str, os.PathLike, Image.Image)):
            return self._resized(as_image(images, len(self.mean)), rounded)
        kind = getattr(getattr(images, "dtype", None), "kind", None)
        if isinstance(images, (list, tuple)) or kind in ("O", "U"):
            if not len(images):
                raise ValueError("There is no image in the list. Received: an empty list")
            several = (as_image(image, len(self.mean)) for image in images)
            return np.stack([self._resized(image, rounded) for image in several])
        xp = numpy_for(images)
        if xp is np and not isinstance(images, np.ndarray):
            images = keras.ops.convert_to_numpy(images)
        if len(images.shape) not in (3, 4):
            raise ValueError(
                "Images must have the shape (height, width, channels), optionally with a batch "
                f"axis in front. Received: shape {tuple(images.shape)}"
            )
        if 0 in tuple(images.shape)[-3:]:
            raise ValueError(f"An image has no pixels. Received: shape {tuple(images.shape)}")
        if xp is np:
            return self._resized(to_channels(raw_pixels(images), len(self.mean), np), rounded)
        images = to_channels(scaled(images, xp), len(self.mean), xp)
        axes = (len(images.shape) - 3, len(images.shape) - 2)
        height, width = (
            xp.shape(images)[a] if images.shape[a] is None else images.shape[a] for a in axes
        )
        view = self.view(height, width, xp)
        if view.unscaled:
            return view.crop(images, xp)
        return resize_images(images, view, xp, rounded=rounded)

    def _resized(self, images: Image.Image | np.ndarray, rounded: bool) -> np.ndarray:
        """One image or an array `(B, H, W, C)`, each resized and cropped, float32."""
        if isinstance(images, Image.Image) and not rounded:
            images = np.asarray(images).reshape(images.height, images.width, -1)
        if isinstance(images, Image.Image):
            view = self.view(images.height, images.width)
            return resize_picture(images, view).astype("float32")
        view = self.view(*images.shape[-3:-1])
        if view.unscaled:
            return view.crop(images)
        if images.dtype != np.uint8 or not rounded:
            return resize_images(images, view, rounded=rounded)
        if images.ndim == 3:
            return resize_picture(images, view).astype("float32")
        shape = (len(images), *view.kept, images.shape[-1])
        out = np.empty(shape, "float32")
        for i, image in enumerate(images):
            out[i] = resize_picture(image, view)
        return out

    def view(self, height: int | Tensor, width: int | Tensor, xp: Numpy = np) -> View:
        """How an image of that size is resized and cropped."""
        new = self.resized(height, width, xp)
        starts = [self.offset(full - kept) for full, kept in zip(new, self.image_size, strict=True)]
        return View((height, width), new, starts, self.image_size, self.interpolation)

    def resized(
        self, height: int | Tensor, width: int | Tensor, xp: Numpy = np
    ) -> tuple[int | Tensor, int | Tensor]:
        """The (height, width) an image is resized to before the crop: ints, or scalar tensors of
        `xp`."""
        # 1e-6: 384 / (384 / 438) must floor to 438
        rows, columns = (math.floor(size / self.crop_pct + 1e-6) for size in self.image_size)
        if self.crop_mode == "squash":
            return rows, columns
        if rows == columns:
            known = isinstance(height, int) and isinstance(width, int)
            short = min(height, width) if known else xp.minimum(height, width)
            return rows * height // short, columns * width // short
        # timm's ResizeKeepRatio, for a target that is not square
        if isinstance(height, int) and isinstance(width, int):
            ratio = min(height / rows, width / columns)
            return round(height / ratio), round(width / ratio)
        real = [xp.asarray(size, dtype="float64") for size in (height, width)]
        ratio = xp.minimum(real[0] / rows, real[1] / columns)
        height, width = (xp.asarray(xp.around(size / ratio), dtype="int64") for size in real)
        return height, width

    def offset(self, margin: int | Tensor) -> int | Tensor:
        """Where the crop begins, in pixels; `margin` is the resized size minus the crop's."""
        half = margin // 2
        return half if self.floor_offset else half + (margin % 2) * (half % 2)


@register
class ImagePreprocessor(keras_hub.models.ImageClassifierPreprocessor):
    """Applied to raw images by a classifier's `predict`, `fit` and `evaluate`; labels pass
    through.

    Args:
        image_converter: an `ImageConverter`.
    """

    image_converter_cls = ImageConverter

    def call(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        if self.image_converter:
            x = self.image_converter(x)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

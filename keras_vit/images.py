"""From pictures to a model's input: the pipeline of the checkpoint's own source, from its
numbers."""

import math
import os
import pathlib

import keras
import keras_hub
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keras_vit.layers.base import register
from keras_vit.layers.patches import pair
from keras_vit.layers.resample import KERNELS, numpy_for, resize_matrix

CROP_MODES = ("center", "squash")


def load_image(path, channels=3):
    """A picture file as a uint8 array `(H, W, channels)`, turned upright by its EXIF tag.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a picture, is cut off, or is too large to be one (PIL's limit).
    """
    try:
        with Image.open(path) as image:
            return to_array(ImageOps.exif_transpose(image), channels)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no picture at {os.fspath(path)!r}.") from None
    except IsADirectoryError:
        raise ValueError(
            f"{os.fspath(path)!r} is a folder. Pass a list of its files, which "
            "keras_vit.images.picture_files finds."
        ) from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a picture that PIL reads: {error}") from error


def picture_files(folder):
    """The files below a folder whose names end like a picture's, sorted."""
    endings = Image.registered_extensions()
    return sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix.lower() in endings)


def to_array(image, channels=3):
    """A path, PIL image or array of any of `(H, W)`, `(H, W, 1 | 3 | 4)` as an array `(H, W,
    channels)`."""
    if isinstance(image, (str, os.PathLike)):
        return load_image(image, channels)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])).reshape(
            image.height, image.width, channels
        )
    found = type(image).__name__
    if hasattr(image, "shape") or isinstance(image, list):
        image = keras.ops.convert_to_numpy(image)
        found = f"{image.dtype} of shape {image.shape}"
    if (
        not isinstance(image, np.ndarray)
        or image.ndim not in (2, 3)
        or image.dtype.kind in "OSUMmc"
    ):
        raise ValueError(
            "An image is a path, a PIL image, or an array of numbers (height, width) or (height, "
            f"width, channels). Received: {found}"
        )
    return to_channels(image[..., None] if image.ndim == 2 else image, channels, np)


def to_channels(x, channels, xp):
    """Grey to colour by repetition, alpha dropped: `(..., C) -> (..., channels)`."""
    found = x.shape[-1]
    if found == channels:
        return x
    if found == 1:
        return xp.concatenate([x] * channels, axis=-1)
    if found == 4 and channels == 3:
        return x[..., :3]
    raise ValueError(
        f"The model takes images of {channels} channels. Received: shape {tuple(x.shape)}. "
        "For others load it with from_preset(..., in_channels=)."
    )


@register
class ImageConverter(keras_hub.layers.ImageConverter):
    """Raw images to a model's input: resize, centre crop, normalise, as timm and transformers do in
    evaluation.

    Takes a path, a PIL image, an array `(H, W, C)` or `(B, H, W, C)` of uint8 or of floats in
    0..255, or a list of such; gives float32 `(B, height, width, C)` (without B for a single image).
    Pixels are rounded to whole numbers after each pass of the resize, as PIL does. Works inside
    `tf.data.Dataset.map`, with any backend.

    Args:
        image_size: int or (height, width) of the output, in pixels.
        mean, std: per channel, for pixels in 0..1.
        crop_pct: the resize goes to floor(image_size / crop_pct), then the centre is cropped.
        crop_mode: `"center"`: the shorter edge goes to that size; `"squash"`: both edges do.
        interpolation: `"bicubic"`, `"bilinear"` or `"lanczos"`; always antialiased.
        floor_offset: for an odd margin, crop at floor (transformers) instead of Python's round
            (torchvision, timm).
    """

    def __init__(
        self,
        image_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_pct=1.0,
        crop_mode="center",
        interpolation="bicubic",
        floor_offset=False,
        **kwargs,
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
        self.built = True

    @property
    def image_size(self):
        """(height, width) of the output, in pixels; may be set."""
        return self._image_size

    @image_size.setter
    def image_size(self, value):
        self._image_size = pair(value)

    def get_config(self):
        own = (
            "image_size",
            "mean",
            "std",
            "crop_pct",
            "crop_mode",
            "interpolation",
            "floor_offset",
        )
        config = super(keras_hub.layers.ImageConverter, self).get_config()
        return {**config, **{name: getattr(self, name) for name in own}}

    def call(self, images):
        try:
            return self.normalize(self.pixels(images))
        except (ValueError, OSError) as error:
            error._keras_call_info_injected = True  # Keras would print all pixels into the message
            raise

    def normalize(self, pixels):
        """Pixels in 0..255 to the model's input, `(..., C) -> (..., C)` float32: (pixel / 255 -
        mean) / std."""
        scale, offset = self.scale_and_offset()
        return numpy_for(pixels).asarray(pixels, dtype="float32") * scale + offset

    def scale_and_offset(self):
        """What `normalize` multiplies by and adds, per channel, float32 `(C,)` each."""
        scale = np.array([1 / (255 * s) for s in self.std], "float32")
        offset = np.array([-m / s for m, s in zip(self.mean, self.std, strict=True)], "float32")
        return scale, offset

    def pixels(self, images):
        """The resized and cropped images before normalisation: float32 `(..., height, width, C)`
        of whole numbers."""
        if isinstance(images, (str, os.PathLike, Image.Image)):
            return self.pixels(to_array(images, len(self.mean)))
        kind = getattr(getattr(images, "dtype", None), "kind", None)
        if isinstance(images, (list, tuple)) or kind in ("O", "U"):
            if not len(images):
                raise ValueError("There is no image in the list. Received: an empty list")
            return np.stack([self.pixels(to_array(image, len(self.mean))) for image in images])
        xp = numpy_for(images)
        if xp is np and not isinstance(images, np.ndarray):
            images = keras.ops.convert_to_numpy(images)
        if len(images.shape) not in (3, 4):
            raise ValueError(
                "Images must have the shape (height, width, channels), with or without a batch "
                "axis before it. "
                f"Received: shape {tuple(images.shape)}"
            )
        if 0 in tuple(images.shape)[-3:]:
            raise ValueError(f"An image without pixels. Received: shape {tuple(images.shape)}")
        return self._resample(to_channels(images, len(self.mean), xp), xp)

    def _resample(self, x, xp):
        axes = (len(x.shape) - 3, len(x.shape) - 2)
        height, width = (xp.shape(x)[a] if x.shape[a] is None else x.shape[a] for a in axes)
        resized = self.resized(height, width, xp)
        starts = [
            self.offset(full - kept) for full, kept in zip(resized, self.image_size, strict=True)
        ]
        if all(isinstance(size, int) for size in resized) and (height, width) == resized:
            if min(starts) >= 0:  # nothing to resample: a crop
                (top, left), (rows, columns) = starts, self.image_size
                x = x[..., top : top + rows, left : left + columns, :]
                return xp.asarray(x, dtype="float32")
        down, across = (
            xp.asarray(
                resize_matrix(old, new, start, length, self.interpolation, xp), dtype="float32"
            )
            for old, new, start, length in zip(
                (height, width), resized, starts, self.image_size, strict=True
            )
        )
        # Not matmul: TensorFlow 2.21's corrupts memory where a matrix is broadcast over an axis of
        # length 1, as C of grey pictures is (https://github.com/tensorflow/tensorflow/issues/117700).
        x = xp.swapaxes(xp.asarray(x, dtype="float32"), -1, -2)  # (..., H, C, W)
        x = _whole(xp.tensordot(x, xp.swapaxes(across, 0, 1), 1), xp)
        x = xp.swapaxes(x, -3, -1)  # (..., w, C, H)
        x = _whole(xp.tensordot(x, xp.swapaxes(down, 0, 1), 1), xp)
        return xp.swapaxes(xp.swapaxes(x, -3, -1), -2, -1)  # (..., h, C, w) -> (..., h, w, C)

    def resized(self, height, width, xp=np):
        """The size to which an image is resized before the crop; ints, or scalar tensors of
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
        return tuple(xp.asarray(xp.around(size / ratio), dtype="int32") for size in real)

    def offset(self, margin):
        """Where the crop begins for that margin (full size minus crop), in pixels."""
        half = margin // 2
        return half if self.floor_offset else half + (margin % 2) * (half % 2)


@register
class ImagePreprocessor(keras_hub.models.ImageClassifierPreprocessor):
    """What a classifier applies to raw images in `predict`, `fit` and `evaluate`; labels pass
    through.

    Args:
        image_converter: an `ImageConverter`.
    """

    image_converter_cls = ImageConverter

    def call(self, x, y=None, sample_weight=None):
        if self.image_converter:
            x = self.image_converter(x)
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)


def _whole(x, xp):
    """Pixels as PIL keeps them between two passes: whole numbers of 0..255, halves rounded up."""
    return xp.clip(xp.floor(x + 0.5), 0.0, 255.0)

"""Pictures of any kind as raw pixels: 8 bits per channel, or floats in 0..255."""

import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import keras
import numpy as np
from PIL import Image, ImageOps

from keras_vit.crop import EDGE
from keras_vit.layers.resample import Numpy
from keras_vit.types import Path, Tensor

# Formats that PIL recognises, or writes, but does not decode.
NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # PIL's, by the number of channels
# How far floats may lie outside 0..255: interpolation overshoots.
OVERSHOOT = 64
DARK = 3  # normalised pixels of bright pictures, which are not negative, stay below
RAW = (
    "Images are raw pixels in 0..255 (uint8, or floats in that range); the preprocessor resizes "
    "and normalises them itself."
)


def load_image(path: Path | BinaryIO, channels: int = 3) -> np.ndarray:
    """Read a picture file as a uint8 array `(H, W, channels)`, rotated as its EXIF tag says.

    The file is a path or a file object.

    Pictures with 16 bits per channel are scaled to 8, as `tf.io.decode_png` does; floats from 0 to
    1 to 0..255.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a picture, is damaged, exceeds PIL's size limit, or the range of
            its values is not known.
    """
    return _array(open_image(path, channels), channels)


def open_image(image: Path | BinaryIO | Image.Image, channels: int = 3) -> Image.Image:
    """A picture file, or an image of PIL, as an image of PIL with 8 bits per channel.

    Raises:
        FileNotFoundError, ValueError: as `load_image`.
    """
    if isinstance(image, Image.Image):
        return _eight_bits(image, MODES[channels])
    name = repr(image if hasattr(image, "read") else os.fspath(image))
    picture = _decoded(image, name)
    try:
        return _eight_bits(picture, MODES[channels])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _decoded(path: Path | BinaryIO, name: str) -> Image.Image:
    """The decoded and upright picture of a file."""
    try:
        with Image.open(path) as image:
            longest = max(image.size)
            if longest <= EDGE:
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no picture at {name}.") from None
    except IsADirectoryError:
        raise ValueError(
            f"{name} is a folder. Pass a list of its files, which "
            "keras_vit.images.picture_files finds."
        ) from None
    except Exception as error:  # PIL's decoders raise errors of any kind
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is not a picture that PIL reads: {reason}") from error
    if longest > EDGE:
        raise ValueError(f"{name} has an edge of {longest} pixels; the limit is {EDGE}.")
    return image


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """An image of PIL in a mode of 8 bits; PIL itself would clip larger values to 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    elif image.mode == "I":
        raise ValueError(
            "The pixels are 32-bit integers, whose range is not known. Save the picture with 8 or "
            "16 bits per channel."
        )
    elif image.mode == "F":
        x = np.asarray(image)
        low, high = x.min(), x.max()
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"The pixels are floats from {low:.3g} to {high:.3g}. Floats from 0 to 1 are read; "
                "save the picture with these, or with 8 bits per channel."
            )
        image = Image.fromarray(np.floor(x * 255 + 0.5).astype("uint8"))
    return image if image.mode == mode else image.convert(mode)


def picture_files(folder: Path) -> list[pathlib.Path]:
    """The files below a folder that have the extension of a picture, sorted; no hidden ones."""
    endings = picture_endings()
    return [path for path in files_below(folder) if path.suffix.lower() in endings]


def picture_endings() -> set[str]:
    """The extensions of the formats that PIL decodes: `.jpg` ..., in lower case."""
    return {e for e, kind in Image.registered_extensions().items() if kind not in NOT_DECODED}


def files_below(folder: Path) -> list[pathlib.Path]:
    """All files in a folder and its subfolders, sorted; hidden files and folders are left out."""
    return sorted(_files_below(pathlib.Path(folder), set()))


def visible(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """What a folder holds, without what is hidden."""
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _files_below(folder: pathlib.Path, seen: set[str]) -> Iterator[pathlib.Path]:
    real = os.path.realpath(folder)
    if real in seen:  # a link to a folder above it
        return
    seen.add(real)
    for path in visible(folder):
        if path.is_dir():
            yield from _files_below(path, seen)
        elif path.is_file():
            yield path


def to_array(image: Any, channels: int = 3) -> np.ndarray:
    """A path, a PIL image or an array `(H, W)` or `(H, W, 1 | 3 | 4)` as raw pixels `(H, W,
    channels)`.

    Raises:
        ValueError: it is none of these, has another number of channels, or does not hold raw
            pixels.
    """
    image = as_image(image, channels)
    return _array(image, channels) if isinstance(image, Image.Image) else image


def as_image(image: Any, channels: int = 3) -> Image.Image | np.ndarray:
    """As `to_array`, but files and PIL images as images of PIL."""
    if isinstance(image, (str, os.PathLike, Image.Image)):
        return open_image(image, channels)
    received = type(image).__name__
    if hasattr(image, "shape") or isinstance(image, list):
        image = keras.ops.convert_to_numpy(image)
        received = f"{image.dtype} of shape {image.shape}"
    if (
        not isinstance(image, np.ndarray)
        or image.ndim not in (2, 3)
        or image.dtype.kind in "OSUMmc"
    ):
        raise ValueError(
            "An image is a path, a PIL image, or an array of numbers (height, width) or (height, "
            f"width, channels). Received: {received}"
        )
    image = raw_pixels(image)
    return to_channels(image[..., None] if image.ndim == 2 else image, channels, np)


def scaled(x: Tensor, xp: Numpy) -> Tensor:
    """As `raw_pixels` for a tensor in a graph, whose values are not known: by its type alone."""
    if x.dtype.name == "bool":
        return xp.asarray(x, dtype="uint8") * 255
    if x.dtype.name == "uint16":
        return xp.asarray(x // 256, dtype="uint8")
    return x


def _array(image: Image.Image, channels: int) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, channels)


def to_channels(x: Tensor, channels: int, xp: Numpy) -> Tensor:
    """Grey to colour by repetition, without alpha: `(..., C) -> (..., channels)`."""
    found = x.shape[-1]
    if found == channels:
        return x
    if found == 1:
        return xp.concatenate([x] * channels, axis=-1)
    if found == 4 and channels == 3:
        return x[..., :3]
    raise ValueError(
        f"The model takes images of {channels} channels, channels last. Received: shape "
        f"{tuple(x.shape)}. For others load it with from_preset(..., in_channels=)."
    )


def raw_pixels(x: np.ndarray) -> np.ndarray:
    """An array of images with pixels in 0..255, after a check that it holds raw pixels.

    Call it wherever images come from a user: normalised floats given as pictures would be
    normalised twice. uint16 is scaled to 8 bits, bool to 0 and 255. The result is uint8 where that
    loses nothing.

    Warns:
        UserWarning: floats whose largest value is at most 1, or 3 if they are not whole; uint16
            whose largest is at most 255: these images are almost black.

    Raises:
        ValueError: no real numbers; NaN, infinity or values far outside 0..255, as normalised
            floats have them.
    """
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{RAW} Received: {x.dtype} values")
    if x.dtype == np.uint8 or not x.size:
        return x
    if x.dtype == np.bool_:
        return np.where(x, np.uint8(255), np.uint8(0))
    low, high = float(x.min()), float(x.max())
    if x.dtype.kind == "u" and x.dtype.itemsize == 2:  # of either byte order
        if 0 < high <= 255:
            _warn_dark(f"uint16 images are 16-bit pixels in 0..65535, but {high:.0f} is", "uint8")
        return (x >> 8).astype("uint8")
    if not -min(OVERSHOOT, high / 4) <= low <= high <= 255 + OVERSHOOT:  # NaN, too
        raise ValueError(
            f"{RAW} Received: {x.dtype} values from {low:.3g} to {high:.3g}. Pass the pictures as "
            "they are, before any normalisation (16-bit pixels as uint16)."
        )
    whole = x.dtype.kind in "iu" or np.array_equal(x, np.floor(x))
    if 0 < high <= (1 if whole else DARK) and x.dtype.kind == "f":
        wanted = "pixels in 0..255" + ": multiply these by 255" * (high <= 1)
        _warn_dark(f"{RAW} But {high:.3g} is", wanted)
    return x.astype("uint8") if whole and 0 <= low <= high <= 255 else x


def _warn_dark(text: str, wanted: str) -> None:
    warnings.warn(
        f"{text} the largest value of these, so they are almost black. Pass {wanted}.",
        stacklevel=3,
    )

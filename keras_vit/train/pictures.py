"""Pictures that are decoded once, and batches of them, randomly cropped and flipped."""

import concurrent.futures
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from keras_vit.arrays import ArrayBatches
from keras_vit.images import ImageConverter
from keras_vit.types import ImageSet

Progress = Callable[[Iterable, int], Iterable]  # of an iterable and its length

MARGIN = 8 / 7  # size of the pictures to crop from over the model's input size: 256 for 224
MEMORY = 4e9  # bytes of decoded pictures to keep; beyond that, each epoch decodes again
STEP = 32  # pictures that a thread decodes at a time


class Pictures:
    """Pictures as uint8 pixels `(B, height, width, C)`, decoded and resized once if they fit.

    Args:
        images: an array `(B, H, W, C)`, or a list of paths, PIL images, arrays.
        converter: the `ImageConverter` that resizes and crops them.
        memory: bytes they may take; if they take more, they are decoded on access.
        progress: as in `read_folder`.
    """

    def __init__(
        self,
        images: ImageSet,
        converter: ImageConverter,
        memory: float = MEMORY,
        progress: Progress | None = None,
    ):
        self.images = images
        self.converter = converter
        self.cache: np.ndarray | None = None
        shape = (len(images), *converter.image_size, len(converter.mean))
        if math.prod(shape) > memory:
            return
        cache = np.empty(shape, "uint8")
        chunks = [np.arange(i, min(i + STEP, len(images))) for i in range(0, len(images), STEP)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            decoded: Iterable = pool.map(self.decode, chunks)
            decoded = progress(decoded, len(chunks)) if progress else decoded
            for rows, pixels in zip(chunks, decoded, strict=True):
                cache[rows] = pixels
        self.cache = cache

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return self.decode(rows) if self.cache is None else self.cache[rows]

    def decode(self, rows: np.ndarray) -> np.ndarray:
        """The pixels of the pictures with these indices."""
        if isinstance(self.images, np.ndarray):
            return self.converter.pixels(self.images[rows]).astype("uint8")
        return self.converter.pixels([self.images[i] for i in rows]).astype("uint8")


class Batches(ArrayBatches):
    """Batches of pictures and labels, as the model takes them; for training, `TrainingBatches` has
    more.

    What is random in a batch follows from the seed, the epoch and the batch's index.

    Args:
        pictures: `Pictures` of the model's size, or larger ones to crop from.
        labels: int array `(B,)`, or `(B, classes)`.
        batch_size: pictures per batch.
        converter: the model's `ImageConverter`: size and normalisation.
        augment: whether to shuffle, and to crop at random.
        flip: whether to flip half of the pictures horizontally, if `augment`.
        seed: int.
    """

    def __init__(
        self,
        pictures: Pictures,
        labels: np.ndarray,
        batch_size: int,
        converter: ImageConverter,
        augment: bool = False,
        flip: bool = False,
        seed: int = 0,
    ):
        rows = np.arange(len(pictures))
        super().__init__((rows, labels), batch_size, shuffle=augment, seed=seed)
        self.pictures = pictures
        self.converter = converter
        self.augment = augment
        self.flip = flip

    def __getitem__(self, index):
        rows = self.order()[index * self.batch_size : (index + 1) * self.batch_size]
        x = self.pictures[rows]
        if self.augment:
            random = np.random.default_rng((self.seed, self.epoch, index))
            x = crop(x, self.converter.image_size, self.flip, random)
        return self.converter.normalize(x), self.arrays[1][rows]


def crop(
    x: np.ndarray, size: tuple[int, int], flip: bool, random: np.random.Generator
) -> np.ndarray:
    """Random crops, half of them flipped: `(B, H, W, C) -> (B, height, width, C)`."""
    rows, columns = size
    tops = random.integers(0, x.shape[1] - rows + 1, len(x))
    lefts = random.integers(0, x.shape[2] - columns + 1, len(x))
    mirrored = random.random(len(x)) < (0.5 if flip else 0.0)
    out = np.empty((len(x), rows, columns, x.shape[3]), x.dtype)
    for i, (top, left, mirror) in enumerate(zip(tops, lefts, mirrored, strict=True)):
        part = x[i, top : top + rows, left : left + columns]
        out[i] = part[:, ::-1] if mirror else part
    return out


def wider(converter: ImageConverter) -> ImageConverter:
    """The converter for pictures to crop from: the same view with a margin around it."""
    size = [round(s * MARGIN) for s in converter.image_size]
    scaled = math.floor(converter.image_size[0] / converter.crop_pct + 1e-6)
    config: dict[str, Any] = {**converter.get_config(), "image_size": size}
    config["crop_pct"] = min(1, size[0] / scaled)
    return ImageConverter.from_config(config)

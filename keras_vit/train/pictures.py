"""Pictures that are decoded once, and batches of them, cropped and mirrored at random."""

import concurrent.futures
import math

import numpy as np

from keras_vit import data
from keras_vit.images import ImageConverter

MARGIN = 8 / 7  # of the pictures that training crops from, over the model's input: 256 for 224
MEMORY = 4e9  # bytes of decoded pictures to keep; if there are more, each epoch decodes again
STEP = 32  # pictures to decode at once


class Pictures:
    """Pictures as uint8 pixels `(B, height, width, C)`, decoded and resized once if memory allows.

    Args:
        images: an array `(B, H, W, C)`, or a list of paths, PIL images, arrays.
        converter: the `ImageConverter` that resizes and crops them.
        memory: bytes that they may take; if they take more, they are decoded when asked for.
        progress: as in `read_folder`.
    """

    def __init__(self, images, converter, memory=MEMORY, progress=None):
        self.images = images
        self.converter = converter
        self.cache = None
        shape = (len(images), *converter.image_size, len(converter.mean))
        if math.prod(shape) > memory:
            return
        cache = np.empty(shape, "uint8")
        chunks = [np.arange(i, min(i + STEP, len(images))) for i in range(0, len(images), STEP)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            decoded = pool.map(self.decode, chunks)
            decoded = progress(decoded, len(chunks)) if progress else decoded
            for rows, pixels in zip(chunks, decoded, strict=True):
                cache[rows] = pixels
        self.cache = cache

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return self.decode(rows) if self.cache is None else self.cache[rows]

    def decode(self, rows):
        """The pixels of the pictures with these numbers."""
        if isinstance(self.images, np.ndarray):
            return self.converter.pixels(self.images[rows]).astype("uint8")
        return self.converter.pixels([self.images[i] for i in rows]).astype("uint8")


class Batches(data.ArrayBatches):
    """Pictures and labels in batches, as the model takes them.

    What is random in a batch follows from the seed, the epoch and the batch's number.

    Args:
        pictures: `Pictures` of the model's size, or larger ones to crop from.
        labels: int array `(B,)`.
        batch_size: pictures per batch.
        converter: the model's `ImageConverter`: size and normalisation.
        augment: whether to shuffle, and to crop at random places.
        flip: whether to mirror half of the pictures, left to right.
        seed: int.
    """

    def __init__(self, pictures, labels, batch_size, converter, augment=False, flip=False, seed=0):
        super().__init__((np.arange(len(pictures)), labels), batch_size, None, augment, seed)
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


def crop(x, size, flip, random):
    """Random crops, half of them mirrored: `(B, H, W, C) -> (B, height, width, C)`."""
    rows, columns = size
    tops = random.integers(0, x.shape[1] - rows + 1, len(x))
    lefts = random.integers(0, x.shape[2] - columns + 1, len(x))
    mirrored = random.random(len(x)) < (0.5 if flip else 0.0)
    out = np.empty((len(x), rows, columns, x.shape[3]), x.dtype)
    for i, (top, left, mirror) in enumerate(zip(tops, lefts, mirrored, strict=True)):
        part = x[i, top : top + rows, left : left + columns]
        out[i] = part[:, ::-1] if mirror else part
    return out


def wider(converter):
    """The converter of the pictures that training crops from: the same middle, with a margin."""
    size = [round(s * MARGIN) for s in converter.image_size]
    scaled = math.floor(converter.image_size[0] / converter.crop_pct + 1e-6)
    config = {**converter.get_config(), "image_size": size, "crop_pct": min(1, size[0] / scaled)}
    return ImageConverter.from_config(config)

"""Random views of pictures, and mixtures of the pictures of a batch: numpy and PIL, for any backend
and for `tf.data`. What is random follows from a numpy generator alone."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from keras_vit.layers.patches import pair
from keras_vit.train import operations
from keras_vit.train.operations import RESAMPLE, RandAugment
from keras_vit.types import Size

Box = tuple[int, int, int, int]  # top, left, height, width


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A random view of one picture: uint8 `(H, W, C)` of any size -> uint8 `(height, width, C)`.

    Args:
        size: of the result, int or (height, width) in pixels.
        scale: the part of the picture's area that is cut out, at random in this range
            (RandomResizedCrop of Inception, https://arxiv.org/abs/1409.4842); None: DeiT III's
            SimpleRandomCrop: the short side becomes the size, 4 pixels are added by reflection.
        ratio: the range of the cut's width / height.
        flip: the probability of mirroring.
        rand_augment: timm's notation, such as `"rand-m9-mstd0.5-inc1"`; `""`: none.
        three: 3-Augment (https://arxiv.org/abs/2204.07118, section 3): grey, solarisation or blur,
            one of them always.
        jitter: brightness, contrast and saturation change by a factor in 1 +- jitter.
        interpolation: `"bicubic"`, `"bilinear"` ...
        fill: what comes in from outside, 0..255 per channel.
    """

    size: Size
    scale: tuple[float, float] | None = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rand_augment: str = ""
    three: bool = False
    jitter: float = 0.0
    interpolation: str = "bicubic"
    fill: tuple[int, ...] = (128, 128, 128)

    @functools.cached_property
    def _rand_augment(self):
        return RandAugment.parse(self.rand_augment) if self.rand_augment else None

    def __call__(self, picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
        channels = picture.shape[-1]
        if channels not in (1, 3):
            return self._without_colours(picture, random)
        image = Image.fromarray(picture if channels == 3 else picture[..., 0])
        image = self.view(image, random)
        fill: Any = self.fill[:3] if channels == 3 else self.fill[0]
        if self._rand_augment is not None:
            image = self._rand_augment(image, random, fill, RESAMPLE[self.interpolation])
        if self.three:
            image = one_of_three(image, random)
        if self.jitter:
            image = jitter(image, self.jitter, random)
        return np.asarray(image).reshape(*pair(self.size), channels)

    def view(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """A random cut, resized, and perhaps mirrored."""
        height, width = pair(self.size)
        if self.scale is None:
            image = simple_crop(image, (height, width), random, self.interpolation)
        else:
            shape = image.height, image.width
            top, left, rows, columns = cut(shape, self.scale, self.ratio, random)
            image = image.crop((left, top, left + columns, top + rows))
            if image.size != (width, height):
                image = image.resize((width, height), RESAMPLE[self.interpolation])
        if random.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _without_colours(self, picture, random):
        """Pictures of other than 1 or 3 channels: each channel has the same view."""
        if self.rand_augment or self.three or self.jitter:
            raise ValueError(
                "Colours change in pictures of 1 or 3 channels. Received: "
                f"{picture.shape[-1]} channels. Choose a recipe that crops and flips only."
            )
        state = random.bit_generator.state
        views = []
        for channel in np.moveaxis(picture, -1, 0):
            random.bit_generator.state = state
            views.append(np.asarray(self.view(Image.fromarray(channel), random)))
        return np.stack(views, axis=-1)

    def map(self, dataset: Any, seed: int = 0) -> Any:
        """A `tf.data.Dataset` of (uint8 picture `(H, W, C)`, ...), not batched, with views of them.

        Each pass over it has other views; they follow from `seed` and the order of the pictures.
        """
        import tensorflow as tf

        size = pair(self.size)

        def view(picture, seeds):
            random = np.random.default_rng([int(seeds) & (2**63 - 1), seed])
            return self(np.asarray(picture), random)

        def augmented(example, seeds):
            picture, *rest = example if isinstance(example, tuple) else (example,)
            x = tf.numpy_function(view, [picture, seeds], tf.uint8)
            x.set_shape((*size, picture.shape[-1]))
            return (x, *rest) if rest else x

        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
        return tf.data.Dataset.zip((dataset, seeds)).map(augmented, tf.data.AUTOTUNE)


def cut(
    shape: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    random: np.random.Generator,
) -> Box:
    """RandomResizedCrop's box, as torchvision and timm draw it: uniform area, log-uniform aspect;
    after ten boxes that do not fit, the largest centred one of an allowed aspect."""
    height, width = shape
    for _ in range(10):
        area = random.uniform(*scale) * height * width
        aspect = math.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = random.integers(0, (height - rows + 1, width - columns + 1))
            return int(top), int(left), rows, columns
    aspect = min(max(width / height, ratio[0]), ratio[1])
    columns, rows = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def simple_crop(
    image: Image.Image, size: tuple[int, int], random: np.random.Generator, interpolation: str
) -> Image.Image:
    """SimpleRandomCrop of DeiT III (deit/augment.py, `src`): the short side becomes the size, then
    a random cut of the picture with 4 pixels of reflection around it."""
    factor = max(size[0] / image.height, size[1] / image.width)
    new = (max(size[1], round(image.width * factor)), max(size[0], round(image.height * factor)))
    x = np.asarray(image.resize(new, RESAMPLE[interpolation]))
    x = np.pad(x, ((4, 4), (4, 4), *[(0, 0)] * (x.ndim - 2)), mode="reflect")
    top = random.integers(0, x.shape[0] - size[0] + 1)
    left = random.integers(0, x.shape[1] - size[1] + 1)
    return Image.fromarray(x[top : top + size[0], left : left + size[1]])


def one_of_three(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Grey, solarisation or a Gaussian blur of radius 0.1 to 2, each with probability 1/3."""
    match random.integers(0, 3):
        case 0:
            return operations.grey(image)
        case 1:
            return operations.solarize(image, 128)
    return operations.blur(image, random.uniform(0.1, 2.0))


def jitter(image: Image.Image, amount: float, random: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation in random order, as torchvision's ColorJitter."""
    kinds: list[Any] = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    factors = random.uniform(max(0.0, 1 - amount), 1 + amount, 3)
    for i in random.permutation(3):
        image = kinds[i](image).enhance(factors[i])
    return image


def erase(
    x: np.ndarray,
    random: np.random.Generator,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> np.ndarray:
    """Random erasing (https://arxiv.org/abs/1708.04896) of normalised pictures `(B, H, W, C)`, in
    place, each with that probability: a box becomes noise from N(0, 1), as timm's mode "pixel"."""
    height, width = x.shape[1:3]
    for picture in x:
        if random.random() >= probability:
            continue
        for _ in range(10):
            pixels = random.uniform(*area) * height * width
            ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
            rows, columns = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if rows < height and columns < width:
                top = random.integers(0, height - rows + 1)
                left = random.integers(0, width - columns + 1)
                noise = random.standard_normal((rows, columns, x.shape[3]), "float32")
                picture[top : top + rows, left : left + columns] = noise
                break
    return x


def one_hot(labels: np.ndarray, classes: int, smoothing: float = 0.0) -> np.ndarray:
    """`(B,) -> (B, classes)` float32: 1 - s + s / classes for the label, s / classes elsewhere."""
    y = np.full((len(labels), classes), smoothing / classes, "float32")
    y[np.arange(len(labels)), labels] += 1 - smoothing
    return y


def mix(
    x: np.ndarray,
    y: np.ndarray,
    random: np.random.Generator,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    switch: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Mixup (https://arxiv.org/abs/1710.09412) or CutMix (https://arxiv.org/abs/1905.04899) of a
    batch with the same batch in reverse order, one weight for all, as timm in batch mode.

    Args:
        x: pictures `(B, H, W, C)`, float.
        y: soft labels `(B, classes)`.
        random: the generator.
        mixup, cutmix: alpha of Beta(alpha, alpha), from which the weight is drawn; 0: not at all.
        switch: with both, the probability of CutMix.
    """
    if not mixup and not cutmix:
        return x, y
    chosen = bool(cutmix) and (not mixup or random.random() < switch)
    weight = random.beta(*2 * (cutmix if chosen else mixup,))
    if not chosen:
        x = x * np.float32(weight) + x[::-1] * np.float32(1 - weight)
    else:
        x, (top, left, rows, columns) = x.copy(), box(x.shape[1:3], weight, random)
        part = slice(top, top + rows), slice(left, left + columns)
        x[:, *part] = x[::-1][:, *part].copy()
        weight = 1 - rows * columns / (x.shape[1] * x.shape[2])  # what the border cuts off
    return x, y * np.float32(weight) + y[::-1] * np.float32(1 - weight)


def box(shape: tuple[int, ...], weight: float, random: np.random.Generator) -> Box:
    """CutMix's box of 1 - weight of the area, with its centre anywhere in the picture."""
    sizes = [int(length * math.sqrt(1 - weight)) for length in shape]
    centres = random.integers(0, shape)
    spans = []
    for length, size, centre in zip(shape, sizes, centres, strict=True):
        low = min(max(centre - size // 2, 0), length)
        high = min(max(centre + (size + 1) // 2, 0), length)
        spans.append((int(low), int(high - low)))
    (top, rows), (left, columns) = spans
    return top, left, rows, columns

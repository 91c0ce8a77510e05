"""Operations of RandAugment on PIL images, with the strengths that timm gives them."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Fill = tuple[int, ...] | int
RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
BICUBIC = RESAMPLE["bicubic"]


def affine(image: Image.Image, matrix: tuple, fill: Fill, resample: Any = BICUBIC) -> Image.Image:
    """The image whose pixel (x, y) is that at (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill
    )


def shear_x(image: Image.Image, factor: float, fill: Fill, resample: Any) -> Image.Image:
    return affine(image, (1, factor, 0, 0, 1, 0), fill, resample)


def shear_y(image: Image.Image, factor: float, fill: Fill, resample: Any) -> Image.Image:
    return affine(image, (1, 0, 0, factor, 1, 0), fill, resample)


def translate_x(image: Image.Image, part: float, fill: Fill, resample: Any) -> Image.Image:
    return affine(image, (1, 0, part * image.width, 0, 1, 0), fill, resample)


def translate_y(image: Image.Image, part: float, fill: Fill, resample: Any) -> Image.Image:
    return affine(image, (1, 0, 0, 0, 1, part * image.height), fill, resample)


def rotate(image: Image.Image, degrees: float, fill: Fill, resample: Any) -> Image.Image:
    return image.rotate(degrees, resample=resample, fillcolor=fill)


def solarize_add(image: Image.Image, add: float) -> Image.Image:
    """Add to the dark pixels, those below 128."""
    table = [min(255, i + int(add)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def posterize(image: Image.Image, bits: float) -> Image.Image:
    """Keep the highest bits. None of them, a black picture, occurs in the papers: at level 0 of
    RandAugment, at 10 of "inc1". PIL 13 refuses it, and timm with it."""
    kept = 256 - 2 ** (8 - int(bits))
    return image.point([i & kept for i in range(256)] * len(image.getbands()))


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    return ImageOps.solarize(image, int(threshold))


def enhance(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: kind(image).enhance(factor)


def blur(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert(image.mode)


# The argument of an operation at a level from 0 to 10 (more with `mmax`); sign is 1 or -1.


def _enhancing(level, sign):
    return level / 10 * 1.8 + 0.1


def _enhancing_more(level, sign):
    return max(0.1, 1 + sign * level / 10 * 0.9)


def _up_to(limit):
    return lambda level, sign: sign * level / 10 * limit


class Operation(NamedTuple):
    """An operation, its arguments, and whether it moves pixels: it then takes (image, argument,
    fill, resample)."""

    apply: Callable[..., Image.Image]
    argument: Callable[[float, int], float] | None = None
    moves: bool = False

    def __call__(
        self, image: Image.Image, level: float, sign: int, fill: Fill, resample: Any = BICUBIC
    ) -> Image.Image:
        if self.argument is None:
            return self.apply(image)
        more = (fill, resample) if self.moves else ()
        return self.apply(image, self.argument(level, sign), *more)


# timm/data/auto_augment.py; `INCREASING` are those of "inc1": a higher level changes more.
PLAIN = {
    "AutoContrast": Operation(ImageOps.autocontrast),
    "Equalize": Operation(ImageOps.equalize),
    "Invert": Operation(ImageOps.invert),
    "Rotate": Operation(rotate, _up_to(30), True),
    "Posterize": Operation(posterize, lambda level, _: int(level / 10 * 4)),
    "Solarize": Operation(solarize, lambda level, _: min(256, int(level / 10 * 256))),
    "SolarizeAdd": Operation(solarize_add, lambda level, _: min(128, int(level / 10 * 110))),
    "Color": Operation(enhance(ImageEnhance.Color), _enhancing),
    "Contrast": Operation(enhance(ImageEnhance.Contrast), _enhancing),
    "Brightness": Operation(enhance(ImageEnhance.Brightness), _enhancing),
    "Sharpness": Operation(enhance(ImageEnhance.Sharpness), _enhancing),
    "ShearX": Operation(shear_x, _up_to(0.3), True),
    "ShearY": Operation(shear_y, _up_to(0.3), True),
    "TranslateXRel": Operation(translate_x, _up_to(0.45), True),
    "TranslateYRel": Operation(translate_y, _up_to(0.45), True),
}
INCREASING = {
    **PLAIN,
    "Posterize": Operation(posterize, lambda level, _: 4 - int(level / 10 * 4)),
    "Solarize": Operation(solarize, lambda level, _: 256 - min(256, int(level / 10 * 256))),
    "Color": Operation(enhance(ImageEnhance.Color), _enhancing_more),
    "Contrast": Operation(enhance(ImageEnhance.Contrast), _enhancing_more),
    "Brightness": Operation(enhance(ImageEnhance.Brightness), _enhancing_more),
    "Sharpness": Operation(enhance(ImageEnhance.Sharpness), _enhancing_more),
}


class RandAugment(NamedTuple):
    """RandAugment (https://arxiv.org/abs/1909.13719) as timm has it: `RandAugment.parse(
    "rand-m9-mstd0.5-inc1")`.

    Attributes:
        magnitude, std: mean and standard deviation of the level; infinite: uniform from 0.
        layers: how many operations are drawn, with replacement.
        probability: of each of these.
        highest: the level is clipped to 0..highest.
        increasing: whether a higher level changes more, for all operations.
    """

    magnitude: float = 10
    std: float = 0.0
    layers: int = 2
    probability: float = 0.5
    highest: float = 10
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """timm's notation: `rand`, then m, mstd, n, p, mmax and inc with their numbers.

        Raises:
            ValueError: it is not of that form.
        """
        names = {"m": "magnitude", "mstd": "std", "n": "layers", "p": "probability"}
        names |= {"mmax": "highest", "inc": "increasing"}
        first, *parts = text.split("-")
        found: dict[str, Any] = {}
        for part in parts:
            match = re.fullmatch(r"([a-z]+)([0-9.]+)", part)
            if match is None or match[1] not in names:
                raise ValueError(f"In {text!r}, {part!r} is none of {', '.join(names)} + number.")
            found[names[match[1]]] = float(match[2])
        if first != "rand":
            raise ValueError(f"It must begin with 'rand-'. Received: {text!r}")
        found["layers"] = int(found.get("layers", 2))
        found["increasing"] = bool(found.get("increasing", False))
        if found.get("std", 0) > 100:
            found["std"] = float("inf")
        return cls(**found)

    def __call__(
        self, image: Image.Image, random: np.random.Generator, fill: Fill, resample: Any = BICUBIC
    ) -> Image.Image:
        operations = list((INCREASING if self.increasing else PLAIN).values())
        for i in random.integers(0, len(operations), self.layers):
            chance, sign = random.random(), 1 if random.random() < 0.5 else -1
            if np.isinf(self.std):
                level = random.uniform(0, self.magnitude)
            else:
                level = random.normal(self.magnitude, self.std)
            level = min(max(level, 0.0), self.highest)
            if chance < self.probability:
                image = operations[i](image, level, sign, fill, resample)
        return image

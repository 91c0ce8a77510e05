"""Checks of values from a config.json or a caller, before anything is built from them."""

import inspect
import math
import numbers
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_vit.text import printable
from keras_vit.types import Size
from keras_vit.weights import WeightsError

LARGEST = 1 << 16  # a width, an edge of an image, a patch
DEEPEST = 1 << 8
MANY = 1 << 31  # pictures
CLASSES = 1 << 20
WEIGHTS = 25e9  # ViT-22B (https://arxiv.org/abs/2302.05442) has the most


class WrongValue(ValueError):
    """A value that no model can be built from."""


def count(value: Any, field: str, least: int = 0, most: int = LARGEST) -> int:
    """A whole number."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise WrongValue(
            f"{field} must be a whole number from {least} to {most}. Received: {value!r:.80}"
        )
    return int(value)


def kind(value: Any, field: str, wanted: type) -> Any:
    """A string or an object (dict)."""
    if not isinstance(value, wanted):
        name = "a string" if wanted is str else "an object"
        raise WrongValue(f"{field} must be {name}. Received: {value!r:.80}")
    return value


def pair(value: Any, field: str) -> tuple[int, int]:
    """A whole number or two, as (height, width)."""
    values = [value, value] if isinstance(value, numbers.Integral) else value
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise WrongValue(
            f"{field} must be a whole number, or two: (height, width). Received: {value!r:.80}"
        )
    height, width = (count(v, field, 1) for v in values)
    return height, width


def number(value: Any, field: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise WrongValue(f"{field} must be a number. Received: {value!r:.80}")
    size: Any = abs(value)
    if not size <= 1e30:  # infinite, NaN, or an int too large for a float
        raise WrongValue(f"{field} must be a finite number. Received: {value!r:.80}")
    return float(value)


def positive(value: Any, field: str) -> float:
    """A finite number above zero."""
    if number(value, field) <= 0:
        raise WrongValue(f"{field} must be a positive number. Received: {value!r:.80}")
    return float(value)


def per_channel(values: Any, field: str, each: Callable = number) -> list[float]:
    """One number per channel."""
    if not isinstance(values, (list, tuple)) or not 0 < len(values) <= 1024:
        raise WrongValue(f"{field} must be a list of numbers. Received: {values!r:.80}")
    return [each(value, field) for value in values]


def channels(values: Any, field: str, each: Callable = number) -> list[float]:
    """A number for all channels, or a list of one per channel."""
    if isinstance(values, numbers.Real):
        return [each(values, field)]
    return per_channel(list(values) if isinstance(values, np.ndarray) else values, field, each)


def names(values: Any, field: str) -> list[str]:
    """A list of texts."""
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise WrongValue(f"{field} must be a list of names. Received: {values!r:.80}")
    return list(values)


def rate(value: Any, field: str) -> float:
    """A probability below one."""
    if not 0 <= number(value, field) < 1:
        raise WrongValue(f"{field} must be from 0 to below 1. Received: {value!r:.80}")
    return float(value)


def word(value: Any, field: str, known: Collection[str]) -> str:
    """One of the known words."""
    if not isinstance(value, str) or value not in known:
        raise WrongValue(f"{field} must be one of {', '.join(known)}. Received: {value!r:.80}")
    return value


def ratio(hidden: int, width: int) -> float:
    """The ratio for which int(width * ratio) == hidden; the plain quotient may give one less."""
    found = hidden / width
    return found if int(width * found) == hidden else math.nextafter(found, math.inf)


def shape(shapes: Mapping[str, tuple[int, ...]], key: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that determines the architecture."""
    found = shapes.get(key)
    if found is None or len(found) != rank or 0 in found:
        raise WrongValue(
            f"The architecture follows from {key}, a tensor of {rank} axes. Received: "
            f"{found or 'no such tensor'}. "
            f"The file has: {printable(', '.join(list(shapes)[:6])) or 'nothing'}"
        )
    return found


def square(patches: int, what: str) -> int:
    """The edge of the square grid of that many patches."""
    side = math.isqrt(max(patches, 0))
    if not side or side * side != patches:
        raise WrongValue(f"{what} must fit a square image. Received: {patches} patches")
    return side


def repeated(keys: Iterable[str], template: str) -> int:
    """The number of indices at `*`: blocks.0, blocks.1 ... for `blocks.*.`"""
    pattern = re.compile(re.escape(template).replace(r"\*", r"(\d+)"))
    return len({match[1] for match in map(pattern.match, keys) if match})


def options(
    found: dict[str, Any], known: dict[str, inspect.Parameter], names: dict[str, str] | None = None
) -> dict[str, Any]:
    """Hyper-parameters, checked against their annotations.

    Args:
        found: the config's values, under our names.
        known: the family's parameters.
        names: our name -> the config's, for messages.
    """
    for name, value in found.items():
        field, parameter = (names or {}).get(name, name), known[name]
        if not _optional(parameter, value):
            KINDS.get(parameter.annotation, _any)(value, field, parameter)
    return found


def _optional(parameter, value):
    """Whether it may be None, and is."""
    return value is None and (parameter.default is None or type(None) in _parts(parameter))


def _parts(parameter):
    return typing.get_args(parameter.annotation)


def _int(value, field, parameter):
    least, most = int(parameter.default != 0), DEEPEST if parameter.name == "depth" else LARGEST
    count(value, field, least, most)


def _float(value, field, parameter):
    (rate if parameter.default == 0 else positive)(value, field)


def _optional_float(value, field, parameter):
    number(value, field)


def _bool(value, field, parameter):
    if not isinstance(value, bool):
        raise WrongValue(f"{field} must be true or false. Received: {value!r:.80}")


def _size(value, field, parameter):
    pair(value, field)


def _counts(value, field, parameter):
    if not isinstance(value, (list, tuple)) or len(value) > 16:
        raise WrongValue(f"{field} must be a list of numbers. Received: {value!r:.80}")
    zeros = isinstance(parameter.default, tuple) and 0 in parameter.default
    most = DEEPEST if parameter.name == "depths" else LARGEST
    for item in value:
        count(item, field, int(not zeros), most)


def _ratios(value, field, parameter):
    if not isinstance(value, (list, tuple)) or len(value) > 16:
        raise WrongValue(f"{field} must be a list of numbers. Received: {value!r:.80}")
    for item in value:
        positive(item, field)


def _any(value, field, parameter):
    """The family itself checks strings."""


KINDS = {
    int: _int,
    int | None: _int,
    float: _float,
    float | None: _optional_float,
    bool: _bool,
    Size | None: _size,
    Size: _size,
    Sequence[int]: _counts,
    Sequence[float]: _ratios,
}


REQUESTS: dict[str, Callable[[Any, str], Any]] = {
    "num_classes": lambda value, field: count(value, field, 0, CLASSES),
    "image_size": pair,
    "in_channels": lambda value, field: count(value, field, 1),
    "patch_size": lambda value, field: count(value, field, 1),
    "drop_rate": rate,
    "drop_path_rate": rate,
    "patch_drop_rate": rate,
    "num_heads": lambda value, field: count(value, field, 1),
    "mean": channels,
    "std": lambda value, field: channels(value, field, positive),
    "crop_pct": positive,
    "labels": names,
}


def requests(wanted: dict[str, Any]) -> dict[str, Any]:
    """The checked arguments of a call of `from_preset`, without those that are None."""
    return {
        name: REQUESTS[name](value, name) if name in REQUESTS else value
        for name, value in wanted.items()
        if value is not None
    }


def known(wanted: Iterable[str], names: Iterable[str]) -> None:
    """Refuse arguments of `from_preset` that there are not, such as `image_shape`."""
    strange = sorted(set(wanted) - set(names))
    if strange:
        raise WrongValue(
            f"from_preset has no argument {', '.join(strange)}. It takes: {', '.join(names)}."
        )


def size(model: keras.Model, source: Any, tensors: dict | None) -> None:
    """Refuse a model that cannot have weights, before memory is allocated.

    Args:
        model: a model whose variables have no values yet.
        source: the file's name for errors.
        tensors: the file's tensors; None: no file is read.
    """
    count = model.count_params()
    if count > WEIGHTS:
        raise WrongValue(f"The model would have {count:.0e} weights, more than any known model.")
    blocks = len(model.backbone.blocks)
    if tensors is not None and blocks > len(tensors):
        raise WeightsError(
            f"The weights of {source} do not fit the model: its config says {blocks} blocks, "
            f"but the file holds {len(tensors)} tensors."
        )

"""Numbers from elsewhere, a config.json or a call, looked at before anything is built from them."""

import inspect
import math
import numbers

from keras_vit.weights import WeightsError

LARGEST = 1 << 16  # a width, an edge of an image, a patch
DEEPEST = 1 << 8
CLASSES = 1 << 20
WEIGHTS = 25e9  # ViT-22B (https://arxiv.org/abs/2302.05442) has the most


class WrongValue(ValueError):
    """A value that no model can be built from."""


def count(value, field, least=0, most=LARGEST):
    """A whole number."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise WrongValue(
            f"{field} must be a whole number from {least} to {most}. Received: {value!r:.80}"
        )
    return int(value)


def kind(value, field, wanted):
    """A text (str) or an object (dict)."""
    if not isinstance(value, wanted):
        name = {str: "a text", dict: "an object"}[wanted]
        raise WrongValue(f"{field} must be {name}. Received: {value!r:.80}")
    return value


def pair(value, field):
    """A whole number or two, as (height, width)."""
    values = [value, value] if isinstance(value, numbers.Integral) else value
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise WrongValue(
            f"{field} must be a whole number, or two: (height, width). Received: {value!r:.80}"
        )
    return tuple(count(v, field, 1) for v in values)


def number(value, field):
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise WrongValue(f"{field} must be a number. Received: {value!r:.80}")
    if not abs(value) <= 1e30:  # infinite, no number, or an int that no float holds
        raise WrongValue(f"{field} must be a finite number. Received: {value!r:.80}")
    return float(value)


def positive(value, field):
    """A finite number above zero."""
    if number(value, field) <= 0:
        raise WrongValue(f"{field} must be a positive number. Received: {value!r:.80}")
    return float(value)


def per_channel(values, field, each=number):
    """One number per channel."""
    if not isinstance(values, (list, tuple)) or not 0 < len(values) <= 1024:
        raise WrongValue(f"{field} must be a list of numbers. Received: {values!r:.80}")
    return [each(value, field) for value in values]


def rate(value, field):
    """A probability below one."""
    if not 0 <= number(value, field) < 1:
        raise WrongValue(f"{field} must be from 0 to below 1. Received: {value!r:.80}")
    return float(value)


def word(value, field, known):
    """One of the known words."""
    if not isinstance(value, str) or value not in known:
        raise WrongValue(f"{field} must be one of {', '.join(known)}. Received: {value!r:.80}")
    return value


def ratio(hidden, width):
    """The ratio for which int(width * ratio) == hidden: the quotient may round to one less."""
    found = hidden / width
    return found if int(width * found) == hidden else math.nextafter(found, math.inf)


def options(found, defaults, names=None):
    """Hyper-parameters, each of the kind that its default is.

    Args:
        found: what the config gives, under our names.
        defaults: name -> default of all that the family takes.
        names: our name -> the config's, for the message.
    """
    for name, value in found.items():
        field, default = (names or {}).get(name, name), defaults[name]
        if name == "image_size":
            pair(value, field)
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise WrongValue(f"{field} must be true or false. Received: {value!r:.80}")
        elif isinstance(default, float):
            positive(value, field)
        elif isinstance(default, int) or name == "num_heads":
            least = 0 if default == 0 else 1
            count(value, field, least, DEEPEST if name == "depth" else LARGEST)
        elif default is None and value is not None and not isinstance(value, str):
            number(value, field)
    if weights(found) > WEIGHTS:
        raise WrongValue(
            f"The model would have {weights(found):.0e} weights, more than any that is known."
        )
    return found


def weights(found):
    """About how many weights those hyper-parameters make."""
    width, patch = found.get("embed_dim", 0), found.get("patch_size", 1)
    height, across = pair(found.get("image_size", 1), "image_size")
    block = width * width * (4 + 2 * found.get("mlp_ratio", 4))
    first = width * patch * patch * found.get("in_channels", 3)
    return found.get("depth", 0) * block + first + width * (height // patch) * (across // patch)


WISHES = {
    "num_classes": lambda value, field: count(value, field, 0, CLASSES),
    "image_size": pair,
    "in_channels": lambda value, field: count(value, field, 1),
    "patch_size": lambda value, field: count(value, field, 1),
    "drop_rate": rate,
    "drop_path_rate": rate,
}


def wishes(wanted):
    """What a caller of `from_preset` asks for, name -> value; None where nothing is."""
    return {
        name: WISHES[name](value, name) if name in WISHES and value is not None else value
        for name, value in wanted.items()
    }


def known(wanted, *functions):
    """Refuse arguments that none of the functions has: `image_shape`, for instance."""
    names = [n for f in functions for n in inspect.signature(f).parameters]
    names = [n for n in names if n not in ("self", "cls", "name", "source_options")]
    strange = sorted(set(wanted) - set(names))
    if strange:
        raise WrongValue(
            f"from_preset has no argument {', '.join(strange)}. It takes: {', '.join(names)}."
        )


def depth(spec, tensors):
    """Refuse to build more blocks than the file has tensors for."""
    blocks = spec.backbone.get("depth", 0)
    if blocks > len(tensors):
        raise WeightsError(
            f"The weights of {spec.source} do not fit the model: its config says {blocks} blocks, "
            f"but the file holds {len(tensors)} tensors."
        )

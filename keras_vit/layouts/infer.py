"""What the tensors of a file without config.json tell of its model."""

import math
import re

from keras_vit import checks
from keras_vit.layouts.spec import checked, spec_of

EPS = 1e-6  # of all sources
LEAVES = {"kernel": "weight", "scale": "weight"}


def timm_key(key, table):
    """A key of the file in timm's words, or as it is; `table`: {regular expression: timm's}."""
    for pattern, ours in table.items():
        match = re.fullmatch(pattern, key)
        if match:
            *layers, leaf = match.expand(ours).split(".")
            return ".".join([*layers, LEAVES.get(leaf, leaf)])
    return key


def first_keys(file):
    """A few of the file's own keys, for an error."""
    return f"Found: {', '.join(list(file.raw)[:6]) or 'nothing'}."


def shape_of(key, rank, file, tensors):
    """The shape of a tensor from which the architecture follows; an error where it is none."""
    shape = tensors[key].shape if key in tensors else None
    if shape is None or len(shape) != rank or 0 in shape:
        raise ValueError(
            f"{file} holds no model that is known: its architecture follows from {key}, a tensor "
            f"of {rank} axes. Received: {shape or 'no such tensor'}. "
            f"{first_keys(file)}"
        )
    return shape


def depth_of(tensors):
    """The number of blocks."""
    return len({k.split(".")[1] for k in tensors if re.match(r"blocks\.\d+\.", k)})


def side_of(count, what):
    """The edge of the square grid of that many patches."""
    side = math.isqrt(max(count, 0))
    if not side or side * side != count:
        raise checks.WrongValue(
            f"{what} must be those of a square image. Received: {count} patches"
        )
    return side


def vit(file, tensors):
    """What follows from the tensors of any ViT: hyper-parameters; the grid's edge."""
    width, channels, patch, _ = shape_of("patch_embed.proj.weight", 4, file, tensors)
    hidden = shape_of("blocks.0.mlp.fc1.weight", 2, file, tensors)[0]
    side = side_of(shape_of("pos_embed", 3, file, tensors)[1] - 1, "Positions")
    options = {
        "patch_size": patch,
        "in_channels": channels,
        "embed_dim": width,
        "depth": depth_of(tensors),
        "mlp_ratio": checks.ratio(hidden, width),
        "norm_eps": EPS,
    }
    return options, side


def head(file, tensors):
    """Width of the head, and of a representation layer before it, or None.

    The ViT paper's own ImageNet-21k files have such a layer, but a head of zeros: it is left out.
    """
    classes = shape_of("head.bias", 1, file, tensors)[0] if "head.bias" in tensors else 0
    representation = None
    if "pre_logits.weight" in tensors:
        representation = shape_of("pre_logits.weight", 2, file, tensors)[0]
        if classes and "head.weight" in tensors and not tensors["head.weight"].read().any():
            classes = 0
    return classes, representation


def spec(family, file, tensors, options, images, names=None):
    """The `Spec` of a file.

    Args:
        options: hyper-parameters, the image's size among them.
        images: numbers of its preprocessing.
        names: rows `timm's key = the file's`.
    """
    options = checked(family, options)
    if options["in_channels"] != 3:
        raise checks.WrongValue(f"images must have 3 channels. Received: {options['in_channels']}")
    classes, representation = head(file, tensors)
    found = spec_of(
        family,
        options,
        images={"image_size": options["image_size"], **images},
        source=file,
        names=names,
        num_classes=classes,
        ignore=() if classes else ("head.*",),
        name=file.path.stem,
    )
    if representation and family != "mixer":
        found.head["representation_size"] = representation
    return found

"""transformers' preprocessor_config.json, old or new, as arguments of `ImageConverter`; and the
reverse."""

import itertools
from collections.abc import Iterable
from typing import Any

import keras_vit_presets as presets
from keras_vit import checks
from keras_vit.hub import MissingFile, Repository
from keras_vit.layouts.spec import HALF, normalization

FILE = "preprocessor_config.json"
MULTIMODAL = "processor_config.json"  # of models with text, since 5.x: holds the same fields
# A processor with a crop_pct squashes images from SQUASHED pixels on, and crops below.
SQUASHED, CROP_PCT = 384, 224 / 256
RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


def read_processor(
    repositories: Iterable[Repository], defaults: dict[str, Any], model_size: tuple[int, int]
) -> dict[str, Any]:
    """The processor's settings, as arguments of `ImageConverter`.

    Args:
        repositories: the first of them that has the file counts, if any does.
        defaults: the family's values of fields that the file omits.
        model_size: (height, width) of the model's input.
    """
    given, table = _file(repositories), presets.layout("processors")
    config = {**defaults, **given}
    processor = given.get("image_processor_type") or given.get("feature_extractor_type")
    processor = str(processor or defaults.get("image_processor_type") or table["default"])
    size = config.get("size", model_size)
    crop = config.get("crop_size", model_size)
    if isinstance(size, dict):
        short = "shortest_edge" in size
        size = [size["shortest_edge"]] * 2 if short else [size["height"], size["width"]]
    else:
        short = not processor.startswith(tuple(table["square"]))
    if isinstance(crop, dict):
        crop = [crop["height"], crop["width"]]
    size = checks.pair(size, "size")
    crop = checks.pair(crop, "crop_size") if config.get("do_center_crop", False) else size
    if not config.get("do_resize", True):
        size = crop
    pct = min(crop[0] / size[0], 1.0)
    if processor.startswith(tuple(table["by_crop_pct"])):
        short = size[0] < SQUASHED
        pct = checks.positive(config.get("crop_pct") or CROP_PCT, "crop_pct") if short else 1.0
    resample = checks.count(config.get("resample", 2), "resample", 1, len(RESAMPLE))
    # The model's size counts, even if its processor crops another one (DINOv2: 518 and 224).
    return {
        "image_size": model_size,
        **_levels(config),
        "crop_pct": pct,
        "crop_mode": "center" if short else "squash",
        "interpolation": RESAMPLE[resample],
        "floor_offset": True,
        "rounded": not processor.startswith(tuple(table["fractions"])),
    }


def _file(repositories):
    for repository, name in itertools.product(repositories, (FILE, MULTIMODAL)):
        try:
            config = repository.json(name)
        except MissingFile:
            continue
        return checks.kind(config.get("image_processor", config), "image_processor", dict)
    return {}


def _levels(config):
    """Mean and standard deviation for pixels in 0..1."""
    fields = ("image_mean", "image_std")
    norm = normalization(*(config.get(field, HALF) for field in fields), fields)
    if not config.get("do_normalize", True):
        norm = {"mean": [0.0] * len(norm["mean"]), "std": [1.0] * len(norm["std"])}
    rescale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    factor = 255 * checks.positive(rescale, "rescale_factor")
    return {key: [value / factor for value in values] for key, values in norm.items()}


def processor_config(images: dict[str, Any]) -> dict[str, Any]:
    """preprocessor_config.json for the arguments of an `ImageConverter`."""
    height, width = images["image_size"]
    full = [int(size / images["crop_pct"] + 1e-6) for size in (height, width)]
    center = images["crop_mode"] == "center"
    cropped = center or full != [height, width]
    kinds = ("CLIPImageProcessor", "DeiTImageProcessor", "ViTImageProcessor")
    kind = kinds[0] if center else kinds[1] if cropped else kinds[2]
    size = {"shortest_edge": full[0]} if center else {"height": full[0], "width": full[1]}
    config = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "resample": {name: number for number, name in RESAMPLE.items()}[images["interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": images["mean"],
        "image_std": images["std"],
    }
    if cropped:
        config |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    return config

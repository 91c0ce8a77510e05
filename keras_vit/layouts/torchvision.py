"""State dicts of torchvision's models, saved as safetensors files."""

import pathlib
from collections.abc import Callable
from typing import Any

import keras_vit_presets as presets
from keras_vit import checks, hub
from keras_vit.keys import wrapper
from keras_vit.layouts.spec import Spec
from keras_vit.tensor_files import read_safetensors
from keras_vit.text import printable
from keras_vit.weights import Tensor


def read_tensors(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors under torchvision's keys."""
    found = read_safetensors(path, "Copy or save it again.")
    prefix = wrapper(found)
    return {key.removeprefix(prefix): tensor for key, tensor in found.items()}


def recognised(path: pathlib.Path, tensors: dict[str, Tensor]) -> tuple[str, dict]:
    """The family of a file's model, and its table.

    Raises:
        ValueError: the tensors are not torchvision's.
    """
    for family, table in presets.layout("torchvision").items():
        if table["known_by"] in tensors:
            return family, table
    raise ValueError(
        f"{path} is not a torchvision model, the only layout of safetensors that needs no config: "
        "tensors of timm and transformers do not determine heads, epsilon and activation. Put "
        f"its config.json beside it, name it {hub.WEIGHTS} and load the directory. The file has: "
        f"{printable(', '.join(list(tensors)[:6])) or 'nothing'}"
    )


def translated(raw: dict[str, Tensor], timm_key: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The tensors under timm's keys; unknown ones keep their keys.

    Raises:
        WrongValue: a head of several dense layers.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in raw.items():
        ours = timm_key(key) or key
        if ours in found:
            several = ", ".join(printable(k) for k in raw if timm_key(k) == ours)
            raise checks.WrongValue(
                "a head of several layers, whose activations the file does not say, is not "
                f"supported. Received: {several}"
            )
        found[ours] = tensor
    return found


def options(file: Any, found: dict[str, Any], num_heads: int | None) -> dict[str, Any]:
    """Hyper-parameters that do not follow from the shapes: the number of heads."""
    if "heads" not in file.table:
        return {}
    width = found["embed_dim"]
    heads = num_heads or file.table["heads"].get(str(width))
    if heads is None:
        raise checks.WrongValue(
            f"the number of attention heads does not follow from its tensors, and {width} is the "
            "width of none of torchvision's own models. Pass num_heads= as it was trained with"
        )
    if width % heads:
        raise checks.WrongValue(f"num_heads must divide the width {width}. Received: {heads}")
    return {"num_heads": heads}


def images(file: Any, options: dict[str, Any]) -> dict[str, Any]:
    """`ImageClassification` of torchvision's weights.

    ViT's weights above 224 pixels are SWAG's: bicubic, not cropped. So is
    `IMAGENET1K_SWAG_LINEAR_V1` with 224 pixels, but its tensors are like the others', so it cannot
    be recognised. Models of other hyper-parameters have weights of none, and are not cropped.
    """
    model = _own_model(file.table, options)
    size = max(checks.pair(options["image_size"], "image_size"))
    swag = size > file.table.get("largest", size)
    return {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_pct": model["crop"] / model["resize"] if model and not swag else 1.0,
        "crop_mode": "center",
        "interpolation": "bicubic" if swag else file.table["interpolation"],
    }


def _own_model(table, options):
    """The row of torchvision's own model with these hyper-parameters; None: there is none."""
    for row in table["models"]:
        wanted = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        if all(options[k] == v for k, v in wanted.items() if k not in ("crop", "resize")):
            return row
    return None


def is_published(spec: Spec) -> bool:
    """Whether it may be one of torchvision's own weights, whose preprocessing is known."""
    options, table = spec.backbone, presets.layout("torchvision")[spec.family]
    own = _own_model(table, options) is not None
    return own and spec.num_classes == 1000 and options["in_channels"] == 3

"""The `.npz` files of https://github.com/google-research/vision_transformer: ViT, hybrid, Mixer.

The activation is the tanh approximation of GELU, as in flax' `nn.gelu`; timm uses the exact one for
the same weights. Hybrids have timm's epsilons in the ResNet. Downscaled images differ from
google-research's: the resize here is antialiased.
"""

import functools
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

import keras_vit_presets as presets
from keras_vit import checks
from keras_vit.layouts.convert import mapped
from keras_vit.layouts.npz import read_npz as read_tensors
from keras_vit.layouts.spec import Spec
from keras_vit.text import printable
from keras_vit.weights import Tensor

__all__ = ["images", "is_published", "options", "read_tensors", "recognised", "translated"]


def recognised(path: pathlib.Path, tensors: dict[str, Tensor]) -> tuple[str, dict]:
    """The family of a file's model, and its table.

    Raises:
        WrongValue: the tensors are of no known model.
    """
    tables = presets.layout("flax")
    for family, table in reversed(tables.items()):
        if table["known_by"] in tensors:
            return family, table
    known = " or ".join(table["known_by"] for table in tables.values())
    raise checks.WrongValue(
        f"a model of google-research has a tensor {known}. The file has: "
        f"{printable(', '.join(list(tensors)[:6])) or 'nothing'}"
    )


def translated(raw: dict[str, Tensor], timm_key: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The tensors under timm's keys, in torch's axis order; unknown ones keep their keys."""
    found = {}
    for key, tensor in raw.items():
        ours = timm_key(_of_stage(key)) or key
        found[ours] = mapped(tensor, functools.partial(torch_order, key))
    if not any(".stages." in key for key in found):  # the stem alone has no submodule in timm
        found = {k.replace(".backbone.stem.", ".backbone."): t for k, t in found.items()}
    return found


def _of_stage(key):
    """`block1/unit2/...` -> `stages.0.blocks.1/...`"""
    return re.sub(
        r"^block(\d+)/unit(\d+)", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}", key
    )


def torch_order(key: str, array: np.ndarray) -> np.ndarray:
    """An array of flax in torch's axis order, heads merged: `(*s, in, out) -> (out, in, *s)`."""
    leaf = key.rpartition("/")[2]
    if "DotProductAttention" in key and array.ndim > 1:
        if leaf == "bias":
            return array.ravel()
        count = 2 if "/out/" in key else 1  # axes of the input: (H, d, D), or (D, H, d)
        rows, columns = math.prod(array.shape[:count]), math.prod(array.shape[count:])
        return array.reshape(rows, columns).T
    if leaf == "kernel" and array.ndim > 1:
        return np.moveaxis(array, (-1, -2), (0, 1))
    return array.ravel() if leaf in ("scale", "bias") else array


def options(file: Any, found: dict[str, Any], num_heads: int | None) -> dict[str, Any]:
    """Hyper-parameters that follow from the file's own keys and shapes."""
    if "num_heads" not in file.table:
        return {}
    shapes = {key: tensor.shape for key, tensor in file.own_tensors.items()}
    return {"num_heads": checks.shape(shapes, file.table["num_heads"], 3)[1]}


def images(file: Any, options: dict[str, Any]) -> dict[str, Any]:
    """google-research's evaluation: both edges are resized to the model's size."""
    return {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
    }


def is_published(spec: Spec) -> bool:
    """google-research's code prepares images of all its models alike."""
    return spec.backbone["in_channels"] == 3

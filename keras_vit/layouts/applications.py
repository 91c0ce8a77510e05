"""Weights of `keras.applications`, in both formats that Keras writes: `.h5` and `.weights.h5`."""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

import keras_vit_presets as presets
from keras_vit import checks
from keras_vit.layouts import h5
from keras_vit.layouts.convert import mapped
from keras_vit.layouts.spec import Spec
from keras_vit.text import printable
from keras_vit.weights import Tensor, WeightsError

WHOLE = "model_weights"  # where a file of `model.save("m.h5")` has them
LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias"}
NUMBERED = re.compile(r"layers/(\w+?)(?:_(\d+))?/vars/(\d)")
STEPS = re.compile(r"layers/sequential(?:_(\d+))?/layers/(conv2d|layer_normalization)/vars/(\d)")
STEP = {"conv2d": "conv", "layer_normalization": "layernorm"}
VARIABLES = ("weight", "bias")  # of a layer, in order


def read_tensors(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors by layer and leaf, `"convnext_tiny_stem_conv/weight"`, in Keras' axis order."""
    with h5.opened(path) as file:
        root = file[WHOLE] if WHOLE in file else file
        found = {n: _tensor(path, item) for n, item in h5.datasets(root, path).items()}
    for table in presets.layout("applications").values():
        named = _named(found, table["numbered"])
        if named:
            return named
    return {_legacy(key): tensor for key, tensor in found.items()}


def _tensor(path, item):
    if item.dtype.kind != "f":
        name = printable(item.name)
        raise WeightsError(f"{name} of {path} holds {item.dtype}, not floating-point numbers.")
    return Tensor(item.shape, functools.partial(_read, path, item.name))


def _read(path, name):
    with h5.opened(path) as file:
        return file[name][...].astype("float32")


def _legacy(key):
    """`model/layer/kernel:0` -> `layer/weight`"""
    *layers, leaf = key.split("/")
    leaf = leaf.removesuffix(":0")
    return "/".join([*layers[-1:], LEAVES.get(leaf, leaf)])


def _named(found, order):
    """The tensors of a `.weights.h5` by the names that its layers had; empty: it is another file.

    Args:
        found: the tensors under the file's keys.
        order: the layers of a block by class, as in the table.
    """
    numbered = {key: match for key in found if (match := NUMBERED.fullmatch(key))}
    steps = {key: match for key in found if (match := STEPS.fullmatch(key))}
    blocks = _blocks(found, numbered, next(iter(order)))
    named = {}
    for key, (kind, number, variable) in ((k, m.groups()) for k, m in numbered.items()):
        parts = order.get(kind)
        if parts is not None and int(variable) < len(VARIABLES):
            block, part = divmod(int(number or 0), len(parts))
            known = block < len(blocks)
            layer = f"{blocks[block]}_{parts[part]}" if known else order["head"].get(kind, key)
            named[f"{layer}/{VARIABLES[int(variable)]}"] = found[key]
    for key, (number, kind, variable) in ((k, m.groups()) for k, m in steps.items()):
        layer = f"downsampling_{STEP[kind]}_{int(number) - 1}" if number else f"stem_{STEP[kind]}"
        named[f"{layer}/{VARIABLES[int(variable)]}"] = found[key]
    left = {k: t for k, t in found.items() if k not in numbered and k not in steps}
    return {**named, **left} if named else {}


def _blocks(found, numbered, kind):
    """The names of the blocks; a stage begins where the width of that kind of layer changes."""
    widths = {
        int(m[2] or 0): found[key].shape[-1]
        for key, m in numbered.items()
        if m[1] == kind and m[3] == "0" and found[key].shape
    }
    names, stage, block = [], 0, 0
    for number in sorted(widths):
        if number and widths[number] != widths.get(number - 1):
            stage, block = stage + 1, 0
        names.append(f"stage_{stage}_block_{block}")
        block += 1
    return names


def recognised(path: pathlib.Path, tensors: dict[str, Tensor]) -> tuple[str, dict]:
    """The family of a file's model, and its table.

    Raises:
        ValueError: the tensors are of no known model.
    """
    for family, table in presets.layout("applications").items():
        if any(re.fullmatch(table["known_by"], key) for key in tensors):
            return family, table
    raise ValueError(
        f"{path} has the weights of none of the models of keras.applications that are known. A "
        "model of this package is saved with model.save_to_preset, whose directory loads. The "
        f"file has: {printable(', '.join(list(tensors)[:6])) or 'nothing'}"
    )


def translated(raw: dict[str, Tensor], timm_key: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The tensors under timm's keys, in torch's axis order; unknown ones keep their keys."""
    return {timm_key(key) or key: mapped(tensor, _torch_order) for key, tensor in raw.items()}


def _torch_order(array):
    """`(*space, in, out) -> (out, in, *space)`"""
    return np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array


def options(file: Any, found: dict[str, Any], num_heads: int | None) -> dict[str, Any]:
    """Hyper-parameters that do not follow from the shapes: none."""
    return {}


def images(file: Any, options: dict[str, Any]) -> dict[str, Any]:
    """How images are prepared for the published weights."""
    images = dict(file.table["images"])
    count = checks.count(options["in_channels"], "in_channels", 1)
    means = {k: [images[k][i % 3] for i in range(count)] for k in ("mean", "std")}
    return {**images, **means}


def is_published(spec: Spec) -> bool:
    """Whether it may be one of the published weights with a head."""
    return spec.num_classes == 1000 and spec.backbone["in_channels"] == 3

"""Weights of KerasHub's presets: HDF5 files, read as tensors under timm's keys."""

import fnmatch
import functools
import pathlib
import re
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy the name "bfloat16"
import numpy as np

from keras_vit.hub import Repository
from keras_vit.keys import matched
from keras_vit.layouts import h5
from keras_vit.layouts.convert import mapped
from keras_vit.text import printable
from keras_vit.weights import Tensor, WeightsError

BACKBONE_FILE, HEAD_FILE = "model.weights.h5", "task.weights.h5"
LAYERS = "layers"  # the group of a functional model's layers; the optimizer's state is beside it
BFLOAT16 = np.dtype("V2")  # as HDF5 stores it
# A path in the file of the head's weights, a regular expression = timm's key.
HEAD = {r"dense/vars/(\d)": r"head.\1"}
HEAD_OF_TWO = {r"dense/vars/(\d)": r"pre_logits.\1", r"dense_1/vars/(\d)": r"head.\1"}
LEAVES = {"0": "weight", "1": "bias"}


class Weights:
    """The weights files, used like a `hub.Repository`.

    Args:
        repository: where they are.
        keys: a path in the file, a regular expression = timm's key.
        without_bias: patterns of layers to give a bias of zeros.
        task: the classifier's config, or None.
    """

    def __init__(
        self,
        repository: Repository,
        keys: dict[str, str],
        without_bias: list[str],
        task: dict[str, Any] | None,
    ):
        self.repository = repository
        self.keys = keys
        self.without_bias = without_bias
        self.task = task

    def __str__(self) -> str:
        return str(self.repository)

    @property
    def uri(self) -> str:
        return self.repository.uri

    def tensors(self) -> dict[str, Tensor]:
        """The tensors under timm's keys, in torch's axis order.

        Raises:
            MissingFile: a file does not exist.
            WeightsError: a file is truncated, or not a Keras weights file.
        """
        found = _tensors(self.repository.file(BACKBONE_FILE), self.keys)
        if self.task:
            table = HEAD_OF_TWO if self.task.get("intermediate_dim") else HEAD
            found |= _tensors(self.repository.file(HEAD_FILE), table)
        for pattern in self.without_bias:
            for key in fnmatch.filter(list(found), f"{pattern}.weight"):
                shape = found[key].shape[:1]
                bias = key.replace(".weight", ".bias")
                found[bias] = Tensor(shape, functools.partial(np.zeros, shape, "float32"))
        return found


def _tensors(path, table):
    return {
        _key(name, table): mapped(tensor, functools.partial(_torch_order, name))
        for name, tensor in read_h5(path).items()
    }


def _key(name, table):
    """timm's key for a path in the file; unknown paths stay unchanged."""
    numbered = name.replace("_block/", "_block_0/")  # the first of equal names has no number
    return matched(numbered, table, LEAVES) or name


def _torch_order(name, array):
    """A variable of Keras in torch's axis order, heads merged: `(*s, in, out) -> (out, in, *s)`."""
    if "position_embedding" in name:  # (N, D)
        return array[None]
    if "/mha/output_dense/" in name and array.ndim == 3:  # (H, d, D)
        return array.reshape(-1, array.shape[-1]).T
    if "/mha/" in name and array.ndim > 1:  # kernel (D, H, d), bias (H, d)
        return array.reshape(array.shape[0], -1).T if array.ndim == 3 else array.ravel()
    token = re.fullmatch(r"\w+/vars/\d", name) and array.ndim == 3
    return array if array.ndim < 2 or token else np.moveaxis(array, (-1, -2), (0, 1))


def read_h5(path: pathlib.Path) -> dict[str, Tensor]:
    """The variables of a functional model's layers, by path: `dense/vars/0`.

    Only the shapes are read now.

    Raises:
        WeightsError: the file is damaged, or has variables that are not floating-point.
    """
    with h5.opened(path) as file:
        found = h5.datasets(file[LAYERS], path)
        for name, item in found.items():
            if item.dtype.kind != "f" and item.dtype != BFLOAT16:
                raise WeightsError(f"{printable(name)} of {path} is not floating-point.")
        return {name: Tensor(item.shape, _reader(path, name)) for name, item in found.items()}


def _reader(path, name):
    def read():
        with h5.opened(path) as file:
            array = file[LAYERS][name][()]
        return array.view("bfloat16" if array.dtype == BFLOAT16 else array.dtype).astype("float32")

    return read

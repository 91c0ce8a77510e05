"""The files of weights of KerasHub's presets: HDF5, read as tensors under timm's keys."""

import contextlib
import fnmatch
import functools
import re

import h5py
import ml_dtypes  # noqa: F401  teaches numpy the name "bfloat16"
import numpy as np

from keras_vit.layouts.prepare import mapped
from keras_vit.weights import Tensor, WeightsError

BACKBONE_FILE, HEAD_FILE = "model.weights.h5", "task.weights.h5"
LAYERS = "layers"  # the group of a functional model's layers; beside it is the optimizer's state
BFLOAT16 = np.dtype("V2")  # as HDF5 keeps it
# A path in a file, regular expression = timm's key. Of a layer 0 is the kernel, 1 the bias.
_BLOCK = r"\w+_encoder/encoder_layers/[a-z_]+_block_(\d+)"
BACKBONE = {
    r"\w+_embeddings?/vars/0": r"cls_token",
    r"\w+_embeddings/vars/1": r"dist_token",
    r"\w+_embeddings/vars/2": r"pos_embed",
    r"\w+_embedding/position_embedding/vars/0": r"pos_embed",
    r"\w+_embeddings?/patch_embedding/vars/(\d)": r"patch_embed.proj.\1",
    rf"{_BLOCK}/layer_norm_(\d)/vars/(\d)": r"blocks.\1.norm\2.\3",
    rf"{_BLOCK}/mha/(query|key|value)_dense/vars/(\d)": r"blocks.\1.attn.\2.\3",
    rf"{_BLOCK}/mha/output_dense/vars/(\d)": r"blocks.\1.attn.proj.\2",
    rf"{_BLOCK}/mlp/dense(?:_1)?/vars/(\d)": r"blocks.\1.mlp.fc1.\2",
    rf"{_BLOCK}/(?:mlp/dense_2|output_layer/dense)/vars/(\d)": r"blocks.\1.mlp.fc2.\2",
    r"\w+_encoder/layer_norm/vars/(\d)": r"norm.\1",
}
HEAD = {r"dense/vars/(\d)": r"head.\1"}
HEAD_OF_TWO = {r"dense/vars/(\d)": r"pre_logits.\1", r"dense_1/vars/(\d)": r"head.\1"}
LEAVES = {"0": "weight", "1": "bias"}


class Weights:
    """The files of weights, in the place of a `hub.Repository`.

    Args:
        repository: where they are.
        without_bias: patterns of layers that get a bias of zeros.
        task: the classifier's config, or None.
    """

    def __init__(self, repository, without_bias, task):
        self.repository = repository
        self.without_bias = without_bias
        self.task = task

    def __str__(self):
        return str(self.repository)

    @property
    def uri(self):
        return self.repository.uri

    def tensors(self):
        """The tensors under timm's keys, in torch's axis order.

        Raises:
            MissingFile: one of the files is not there.
            WeightsError: one that is cut off, or not one of Keras.
        """
        found = _tensors(self.repository.file(BACKBONE_FILE), BACKBONE)
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
    """A path in the file in timm's words, or as it is."""
    numbered = name.replace("_block/", "_block_0/")  # the first of equal names has no number
    for pattern, ours in table.items():
        match = re.fullmatch(pattern, numbered)
        if match:
            *layers, leaf = match.expand(ours).split(".")
            return ".".join([*layers, LEAVES.get(leaf, leaf)])
    return name


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


def read_h5(path):
    """The variables of a functional model's layers: a dict from `dense/vars/0` to `Tensor`.

    Only their shapes are read yet.

    Raises:
        WeightsError: the file is damaged, or holds other things than floating-point numbers.
    """
    with _layers(path) as layers:
        items = {}
        layers.visititems(lambda name, item: items.update({name: item}))
        tensors = {}
        for name, item in items.items():
            if isinstance(item, h5py.Dataset):
                number = item.dtype.kind == "f" or item.dtype == BFLOAT16
                if not number or item.external or item.is_virtual:
                    raise WeightsError(f"{name} of {path} holds no floating-point numbers.")
                tensors[name] = Tensor(item.shape, _reader(path, name))
        return tensors


def _reader(path, name):
    def read():
        with _layers(path) as layers:
            array = layers[name][()]
        return array.view("bfloat16" if array.dtype == BFLOAT16 else array.dtype).astype("float32")

    return read


@contextlib.contextmanager
def _layers(path):
    try:
        with h5py.File(path) as file:
            yield file[LAYERS]
    except (OSError, KeyError, RuntimeError, AttributeError) as error:  # h5py's
        raise WeightsError(
            f"{path} is not a whole file of Keras' weights ({error}). Save or download it again."
        ) from error

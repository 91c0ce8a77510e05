"""Files of weights without a config.json: the architecture follows from their tensors."""

import functools
import pathlib

from keras_vit import checks
from keras_vit.layouts import flax, torchvision

LAYOUTS = {".npz": flax, ".safetensors": torchvision}
SUFFIXES = tuple(LAYOUTS)


class File:
    """One file of weights, in the place of a `hub.Repository`."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.layout = next(m for end, m in LAYOUTS.items() if self.path.name.endswith(end))

    def __str__(self):
        return str(self.path)

    uri = property(__str__)

    @functools.cached_property
    def raw(self):
        """The tensors under the file's own keys."""
        return self.layout.read(self.path)

    def tensors(self):
        """The tensors under timm's keys, in torch's axis order; what is unknown keeps its key."""
        return self.layout.translated(self.raw)


def spec_of_file(path):
    """The `Spec` of a file of weights.

    Raises:
        ValueError: tensors of another layout, or from which no architecture follows.
    """
    file = File(path)
    try:
        return file.layout.spec_of(file, file.tensors())
    except checks.WrongValue as error:
        raise ValueError(f"{path} describes no model: {error}") from error

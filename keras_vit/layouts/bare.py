"""Weights files without a config.json: the architecture follows from the tensors."""

import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import keras_vit_presets as presets
from keras_vit import checks
from keras_vit.keys import key_of, matched
from keras_vit.layouts import applications, convert, flax, torchvision
from keras_vit.layouts.spec import Spec, checked, class_of, spec_of
from keras_vit.types import Path
from keras_vit.weights import Tensor

LAYOUTS = {".npz": flax, ".safetensors": torchvision, ".h5": applications}
SUFFIXES = tuple(LAYOUTS)
LEAVES = {"kernel": "weight", "scale": "weight"}
POSITIONS = "pos_embed"  # timm's key
UNKNOWN = ("mean", "std", "crop_pct", "crop_mode", "interpolation")  # settings no tensor says


class WeightsFile:
    """A weights file, used like a `hub.Repository`.

    Attributes:
        layout: the module that reads it.
        family: the name of the family of its model.
        table: how to read it, from the layout's file in presets/layouts.
    """

    def __init__(self, path: Path):
        self.path = pathlib.Path(path)
        self.layout = next(m for end, m in LAYOUTS.items() if self.path.name.endswith(end))
        self.family, self.table = self.layout.recognised(self.path, self.own_tensors)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def uri(self) -> str:
        return str(self.path)

    @functools.cached_property
    def own_tensors(self) -> dict[str, Tensor]:
        """The tensors under the file's own keys."""
        return self.layout.read_tensors(self.path)

    def timm_key(self, key: str) -> str | None:
        """timm's key for a key of the file; None: unknown."""
        return matched(key, self.table["keys"], LEAVES)

    @property
    def head(self) -> str:
        """timm's key for the layer that gives the logits."""
        return key_of("head", presets.families()[self.family].rename)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors under timm's keys, in torch's axis order; unknown ones keep their keys."""
        found = self.layout.translated(self.own_tensors, self.timm_key)
        if f"{self.head}.weight" in found:  # nn.Linear(..., bias=False)
            convert.zero_bias(found, f"{self.head}.weight", "", f"{self.head}.bias")
        return found


def spec_of_file(path: Path, given: Mapping[str, Any] | None = None) -> Spec:
    """The `Spec` of a weights file.

    Args:
        path: the file.
        given: arguments of `from_preset`, by name, for what the file does not say: `num_heads`,
            `image_size` as (height, width); of those of the preprocessing, only the names matter.

    Raises:
        ValueError: the tensors have another layout, or determine no architecture.
    """
    try:
        return _spec(WeightsFile(path), given or {})
    except checks.WrongValue as error:
        raise ValueError(f"{path} describes no model: {error}") from error


def _spec(file, given):
    tensors = file.tensors()
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    options = _of_shapes(class_of(file.family).backbone_cls, shapes, given.get("image_size"))
    options |= file.table.get("options", {})
    options |= file.layout.options(file, options, given.get("num_heads"))
    options = checked(file.family, options)
    classes, head = _head(tensors, shapes, file.head)
    images = {"image_size": options["image_size"], **file.layout.images(file, options)}
    spec = spec_of(
        file.family,
        {**options, **head},
        images=images,
        source=file,
        names=file.table.get("rename"),
        num_classes=classes,
        ignore=() if classes else ("head.*",),
        convert=functools.partial(convert.tensors, rows=file.table.get("convert", {})),
        name=file.path.stem,
    )
    spec.note = _assumed(spec, given)
    return spec


def _of_shapes(cls, shapes, image_size):
    """The hyper-parameters that follow from the shapes; the image of a position embedding that is
    not square must be given."""
    patches = checks.shape(shapes, POSITIONS, 3)[1] - 1 if POSITIONS in shapes else 1
    if patches < 1 or math.isqrt(patches) ** 2 == patches:
        return cls.from_shapes(shapes)
    width = shapes[POSITIONS][2]
    options = cls.from_shapes({**shapes, POSITIONS: (1, 2, width)})  # images of one patch
    unit = options["image_size"]
    if image_size is None:
        raise checks.WrongValue(
            f"its {patches} positions are not those of a square image. Pass image_size=(height, "
            f"width) of the images that it was trained on, whose patches are {unit} x {unit} pixels"
        )
    height, width = image_size
    if height * width != patches * unit**2 or height % unit or width % unit:
        raise checks.WrongValue(
            f"image_size must have {patches} patches of {unit} x {unit} pixels, as its position "
            f"embedding. Received: {height} x {width}"
        )
    return {**options, "image_size": (height, width)}


def _assumed(spec, given):
    """What to tell the user of settings that the file does not say; empty if they are known."""
    if spec.source.layout.is_published(spec):
        return ""
    unknown = {k: v for k, v in spec.images.items() if k in UNKNOWN and k not in given}
    values = ", ".join(f"{k}={v}" for k, v in unknown.items())
    return unknown and (
        f"{spec.source} does not say how its images are prepared; assumed: {values}. "
        "Pass these arguments to from_preset if it was trained otherwise."
    )


def _head(tensors, shapes, key) -> tuple[int, dict[str, Any]]:
    """The number of classes, and the width of a representation layer before the head.

    The ViT paper's own ImageNet-21k files have such a layer and a head of zeros, which is dropped.
    """
    weight = f"{key}.weight"
    classes = checks.shape(shapes, weight, 2)[0] if weight in shapes else 0
    if "pre_logits.weight" not in shapes:
        return classes, {}
    representation = checks.shape(shapes, "pre_logits.weight", 2)[0]
    if classes and not tensors[weight].read().any():
        classes = 0
    return classes, {"representation_size": representation}

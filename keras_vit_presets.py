"""Reads the tables in presets/: families, architectures and checkpoints.

This module lies outside the keras_vit package because importing the package imports Keras, which
the tables do not need.
"""

import dataclasses
import fnmatch
import functools
import pathlib
import re
import tomllib
from typing import Any

# A wheel has the tables inside the package, a checkout has them next to it.
_HERE = pathlib.Path(__file__).parent
FOLDER = next(p for p in (_HERE / "keras_vit" / "presets", _HERE / "presets") if p.is_dir())
LAYOUTS = FOLDER / "layouts"
RESOLUTION = re.compile(r"_(\d{3,4})(?=$|_)")
DATA = re.compile(  # names of training datasets in a checkpoint's tag
    r"(?<![^_])(in\d+k|laion(?:a|\d+[bm])|datacompxl|dfn(?:dr)?\d+b|metaclip2?_[a-z0-9]+|yfcc\d+m|webli"
    r"|openai|lvd\d+m|sat\d+m|m\d+m|merged\d+b|bamboo|docci|ocrvqa|refcoco|sklearn)(?![^_])"
)

TERMS = {  # of licences that are not free
    "apple-amlr": "for research only",
    "cc-by-nc-4.0": "not for commercial use",
    "dinov3-license": "Meta's terms, not a free licence: "
    "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
    "fair-noncommercial-research-license": "for research only, not for commercial use",
    "nvidia-open-model-license": "NVIDIA's own terms",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A row of the checkpoint tables: everything known without reading the weight file.

    Attributes:
        name: timm's name, including the tag.
        family: name of the family, as in `Family.name`.
        cls: name of the classifier class.
        architecture: a key of the family's `architectures`.
        options: arguments of the backbone and the head, including `image_size`.
        untrained: layers that the file may lack; they keep their initial values.
        images: arguments of `ImageConverter`.
        num_classes: number of classes; 0 if the checkpoint has no classifier.
        params: number of parameters.
        license: license of the weights.
        repository: `org/name` on the Hugging Face Hub; None if the package ships the files.
        folder: directory of the files that the package ships, or None.
        labels: class names, if neither the file nor ImageNet provides them.
        top1, top5: ImageNet-1k accuracy in per cent, as measured by timm; None if unknown.
    """

    name: str
    family: str
    cls: str
    architecture: str
    options: dict
    images: dict
    num_classes: int
    params: int
    license: str
    repository: str | None
    folder: pathlib.Path | None = None
    labels: list[str] | None = None
    untrained: tuple[str, ...] = ()
    top1: float | None = None
    top5: float | None = None

    @property
    def image_size(self) -> int:
        return self.options["image_size"]

    @property
    def place(self) -> str:
        """Where the files are: a path or an `hf://` address for `from_preset`."""
        return f"hf://{self.repository}" if self.folder is None else str(self.folder)

    @property
    def terms(self) -> str | None:
        """What a license that is not free restricts, in words; None: it is free, or unknown."""
        return TERMS.get(self.license)

    @property
    def trained_on(self) -> str:
        """The training datasets named in the tag, in order; an empty string if there are none.

        `"vit_tiny_patch16_224.augreg_in21k_ft_in1k"` gives `"in21k, in1k"`. Datasets that the tag
        does not name are missing, for example those that a distillation teacher was trained on.
        """
        return ", ".join(dict.fromkeys(DATA.findall(self.name.partition(".")[2])))


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family: one TOML file of presets/.

    Attributes:
        name: stem of the file, and name of the module in `keras_vit.models`.
        cls: name of the classifier class; the backbone class is `<cls>Backbone`.
        rename: {our key: timm's key}, for keys that the rule in `keras_vit.keys` does not yield.
        ignore: patterns of keys that a checkpoint may contain and no model uses.
        timm_module: the module of timm that defines the models; empty if timm does not have them.
        timm: {argument of timm's constructor: our argument}.
        timm_fixed: arguments of `timm` that timm's model functions do not let the caller change.
        timm_poolings: the values that timm accepts for `global_pool`.
        timm_norm_after: poolings that timm's last norm follows instead of preceding them.
        timm_convolutions: {architecture: patterns of the keys of dense layers that timm makes 1x1
            convolutions}.
        timm_norms_apart: whether timm's constructor has an argument for each of both norms; else
            one says where the only norm is.
        architectures: {timm's name: arguments of the backbone and the head}.
        unsupported: {name: why it is not supported}.
        table: the parsed file.
    """

    name: str
    cls: str
    rename: dict[str, str]
    ignore: tuple[str, ...]
    timm_module: str
    timm: dict[str, str]
    timm_fixed: tuple[str, ...]
    timm_poolings: tuple[str, ...]
    timm_norm_after: tuple[str, ...]
    timm_convolutions: dict[str, list[str]]
    timm_norms_apart: bool
    architectures: dict[str, dict]
    unsupported: dict[str, str]
    table: dict

    @functools.cached_property
    def checkpoints(self) -> dict[str, Checkpoint]:
        rows = self.table.get("checkpoints", {})
        return {name: self._checkpoint(name, **row) for name, row in rows.items()}

    def _checkpoint(
        self,
        name,
        arch,
        size,
        classes,
        norm,
        crop,
        crop_mode="center",
        interpolation="bicubic",
        hub=None,
        path=None,
        license="unknown",
        **row,
    ):
        images = {
            "image_size": size,
            **self.table["norms"][norm],
            "crop_pct": crop,
            "crop_mode": crop_mode,
            "interpolation": interpolation,
        }
        return Checkpoint(
            name=name,
            family=self.name,
            cls=self.cls,
            architecture=arch,
            options={**self.architectures[arch], "image_size": size},
            images=images,
            num_classes=classes,
            license=license,
            repository=None if path else hub or f"timm/{name}",
            folder=FOLDER / path if path else None,
            **row,
        )


def _family(path):
    table = _read(path)
    like = _read(FOLDER / f"{table['like']}.toml") if "like" in table else {}
    timm = {**like.get("timm", {}), **table.get("timm", {})}
    rows = {n: _options(table, row) for n, row in table["architectures"].items()}
    return Family(
        name=path.stem,
        cls=table["class"],
        rename={**like.get("rename", {}), **table.get("rename", {})},
        ignore=(*like.get("ignore", ()), *table.get("ignore", ())),
        timm_module=timm.get("module", ""),
        timm=timm.get("arguments", {}),
        timm_fixed=tuple(timm.get("fixed", ())),
        timm_poolings=tuple(timm.get("poolings", ())),
        timm_norm_after=tuple(timm.get("norm_after", ())),
        timm_convolutions={
            n: row.pop("convolutions", timm.get("convolutions", [])) for n, row in rows.items()
        },
        timm_norms_apart=timm.get("norms_apart", False),
        architectures=rows,
        unsupported=table.get("unsupported", {}),
        table=table,
    )


def _options(table, row):
    """The arguments of a row of `architectures`; its own columns override those of its size and
    structure."""
    own = {k: v for k, v in row.items() if k not in ("size", "structure")}
    structure = table.get("structures", {}).get(row.get("structure"), {})
    return {**table.get("sizes", {}).get(row.get("size"), {}), **structure, **own}


def _read(path):
    return tomllib.loads(path.read_text("utf-8"))


@functools.cache
def families() -> dict[str, Family]:
    """All families by name: `{"vit": ..., "deit": ...}`."""
    return {path.stem: _family(path) for path in sorted(FOLDER.glob("*.toml"))}


@functools.cache
def checkpoints() -> dict[str, Checkpoint]:
    """All checkpoints by name."""
    return {n: row for family in families().values() for n, row in family.checkpoints.items()}


def matching(pattern: str = "*") -> list[str]:
    """The names of the checkpoints that match a pattern, whatever its case: `"deit*"`, where `*`
    stands for any text, `?` for one character; or, without these, a part of the name."""
    pattern = pattern.lower()
    if not any(c in pattern for c in "*?["):
        pattern = f"*{pattern}*"
    return [name for name in checkpoints() if fnmatch.fnmatchcase(name.lower(), pattern)]


@functools.cache
def unsupported() -> dict[str, str]:
    """{name: reason} for the known models that cannot be loaded."""
    return {name: why for f in families().values() for name, why in f.unsupported.items()}


def architecture(name: str) -> tuple[str, dict] | None:
    """Look up a timm architecture, named with or without its resolution.

    Returns:
        The name of its family and its options, or None if there is no such architecture.
    """
    bare = RESOLUTION.sub("", name, count=1)
    for key in (name, bare):
        for family in families().values():
            if key in family.architectures:
                return family.name, family.architectures[key]
    return None


def architectures() -> list[str]:
    """The names of all architectures, without the resolution."""
    return [name for family in families().values() for name in family.architectures]


@functools.cache
def layout(name: str) -> dict:
    """The table of a checkpoint layout, for example `"transformers"` or `"torchvision"`.

    A section with `like` inherits the entries of the section it refers to.
    """
    sections: dict[str, Any] = {}
    for kind, table in _read(LAYOUTS / f"{name}.toml").items():
        base = sections.get(table.get("like", ""), {}) if isinstance(table, dict) else {}
        sections[kind] = _inherit(base, table)
    return sections


def _inherit(base, table):
    """`table` with the entries of `base` that it does not override; sub-tables are merged."""
    base = {key: value for key, value in base.items() if key != "writes"}
    if not base:
        return table
    return {
        key: {**base.get(key, {}), **table.get(key, {})}
        if isinstance(base.get(key, table.get(key)), dict)
        else table.get(key, base.get(key))
        for key in {**base, **table}
    }

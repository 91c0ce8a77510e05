"""The tables of presets/: families, architectures, checkpoints, and the keys of other layouts."""

import functools
import pathlib
import re
import tomllib

# Beside this file in a wheel, beside the package in a checkout and an editable install.
_HERE = pathlib.Path(__file__).parent
FOLDER = next(p for p in (_HERE / "presets", _HERE.parent / "presets") if p.is_dir())
LAYOUTS = "transformers.toml"
RESOLUTION = re.compile(r"_(\d{3,4})(?=$|_)")
DATA = re.compile(  # what in a tag is the name of pictures
    r"(?<![^_])(in\d+k|laion\d+[bm]|datacompxl|dfn(?:dr)?\d+b|metaclip2?_[a-z0-9]+|yfcc\d+m|webli"
    r"|openai|lvd\d+m|bamboo|docci|ocrvqa|refcoco|sklearn)(?![^_])"
)


@functools.cache
def families():
    """The families' tables, by file name: `{"vit": {...}, "deit": {...}}`."""
    files = sorted(p for p in FOLDER.glob("*.toml") if p.name != LAYOUTS)
    return {path.stem: tomllib.loads(path.read_text("utf-8")) for path in files}


@functools.cache
def checkpoints():
    """Every checkpoint's row by its name, with the name of its `family`."""
    return {
        name: {"family": family, **row}
        for family, table in families().items()
        for name, row in table["checkpoints"].items()
    }


def trained_on(name):
    """The training data that a checkpoint's tag names, in its order, or an empty text.

    `"vit_tiny_patch16_224.augreg_in21k_ft_in1k"` gives `"in21k, in1k"`. Data that the tag does not
    name are left out, such as a distilled model's teacher's.
    """
    return ", ".join(dict.fromkeys(DATA.findall(name.partition(".")[2])))


@functools.cache
def unsupported():
    """Names of the catalogue that do not load, and why."""
    return {n: why for t in families().values() for n, why in t.get("unsupported", {}).items()}


def architecture(name):
    """The family and the hyper-parameters of a timm architecture, with or without its resolution.

    Returns:
        (family, options), or None where there is no such architecture.
    """
    bare = RESOLUTION.sub("", name, count=1)
    for key in (name, bare):
        for family, table in families().items():
            row = table["architectures"].get(key)
            if row is not None:
                return family, expand(table, row)
    return None


def architectures():
    """The names of all architectures, without a resolution."""
    return [name for table in families().values() for name in table["architectures"]]


def expand(table, row):
    """The hyper-parameters of a row of `architectures`: its size, its structure, its own
    columns."""
    own = {k: v for k, v in row.items() if k not in ("size", "structure")}
    structure = table.get("structures", {}).get(row.get("structure"), {})
    return {**table.get("sizes", {}).get(row.get("size"), {}), **structure, **own}


@functools.cache
def transformers():
    """The tables of the transformers layout, by `model_type`; `like` rows are filled in."""
    tables = tomllib.loads((FOLDER / LAYOUTS).read_text("utf-8"))
    filled = {}
    for name, table in tables.items():
        base = filled.get(table.get("like"), {})
        filled[name] = {
            key: {**base.get(key, {}), **table.get(key, {})}
            if isinstance(base.get(key, table.get(key)), dict)
            else table.get(key, base.get(key))
            for key in {**base, **table}
        }
    return filled

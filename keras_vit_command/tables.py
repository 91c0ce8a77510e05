"""`list` and `show`: tables of the presets, which do not need Keras."""

import argparse
import contextlib
import difflib
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras_vit_presets as presets

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from keras_vit.layouts.spec import Spec


def console() -> "Console":
    """A console of the terminal's width; for a pipe, wide enough that no name is wrapped."""
    from rich.console import Console

    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=160 if wide else None, highlight=False, markup=False)


def table(*columns: str, **options: Any) -> "Table":
    """A plain table. Columns whose name begins with `>` are aligned to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", **options)
    for name in columns:
        right = name.startswith(">")
        made.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return made


def run_list(args: argparse.Namespace) -> int:
    """Print the presets that match."""
    rows = matching(args)
    if not rows:
        raise ValueError(nothing(args))
    out = console()
    made = table("name", ">size", ">params", ">top-1", "licence")
    if out.width < 100:  # leave room for the names; `show` prints the whole licence
        made.columns[-1].max_width, made.columns[-1].overflow = 10, "ellipsis"
        made.columns[-1].no_wrap = True
    for name, row in rows:
        top1 = "-" if row.top1 is None else f"{row.top1:.1f}"
        made.add_row(name, str(row.image_size), short(row.params), top1, row.license)
    out.print(made)
    if sys.stdout.isatty():
        total = len(presets.checkpoints())
        out.print(f"\n{len(rows)} of {total} presets. `keras-vit show NAME` describes one.")
    return 0


def matching(args: argparse.Namespace) -> list[tuple[str, presets.Checkpoint]]:
    """The presets that pass all filters, sorted: [(name, row)]."""
    names = presets.matching(args.pattern)
    rows = [
        (name, row)
        for name, row in presets.checkpoints().items()
        if name in names
        and (args.license or "").lower() in row.license.lower()
        and (args.data or "").lower() in row.trained_on
        and row.params <= (args.max_params or float("inf"))
        and row.image_size == (args.size or row.image_size)
        and (row.top1 or 0) >= (args.top1 or 0)
    ]
    keys: dict[str, Any] = {
        "name": lambda item: item[0],
        "top1": lambda item: -(item[1].top1 or 0),
        "params": lambda item: item[1].params,
        "size": lambda item: item[1].image_size,
        "data": lambda item: (not item[1].trained_on, item[1].trained_on),
    }
    return sorted(rows, key=keys[args.sort])


def nothing(args: argparse.Namespace) -> str:
    """The message where no preset matches."""
    near = difflib.get_close_matches(args.pattern, presets.checkpoints(), n=3, cutoff=0.3)
    hint = f" Close matches: {', '.join(near)}." if near else ""
    return f"No preset matches {args.pattern!r} and the filters.{hint}"


def short(number: int) -> str:
    """5717416 -> 5.7M"""
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.{0 if number >= 100 * scale else 1}f}{letter}"
    return str(number)


@contextlib.contextmanager
def suggesting_folders(name: str) -> Iterator[None]:
    """Add to an error the folders with models whose names are similar, if `name` is no path."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        path = pathlib.Path(name)
        if not path.exists() and path.parent.is_dir():
            models = [str(p) for p in path.parent.iterdir() if (p / "config.json").is_file()]
            similar = difflib.get_close_matches(str(path), models, n=3, cutoff=0.6)
            if similar:
                error.add_note(f"Did you mean the folder {' or '.join(map(repr, similar))}?")
        raise


def run_show(args: argparse.Namespace) -> int:
    """Describe one checkpoint."""
    out = console()
    made = table("what", "value", show_header=False)
    made.columns[0].style = "bold"
    for what, value in facts(args.name):
        if value is not None:
            made.add_row(what, str(value))
    out.print(made)
    return 0


def facts(name: str) -> Iterator[tuple[str, Any]]:
    """(name, value) of the facts about a preset, repository or directory; None: not known."""
    row = presets.checkpoints().get(name)
    if row is None:
        from keras_vit import zoo

        with suggesting_folders(name):
            spec = zoo.find_spec(name, {})
        yield "name", spec.name or name
        options = {**own_options(spec), **spec.head}
        yield from described(spec.cls.__name__, options, spec.images, spec.num_classes)
        yield "labels", ", ".join(spec.labels[:12]) if spec.labels else None
        return
    yield "name", name
    place = f"https://huggingface.co/{row.repository}"
    yield "weights", "in this package" if row.repository is None else place
    yield "licence", f"{row.license} ({row.terms})" if row.terms else row.license
    yield "trained on", row.trained_on or None
    yield "parameters", f"{row.params:,}"
    measured = row.top1 is not None
    yield (
        "ImageNet-1k",
        f"top-1 {row.top1:.2f} %, top-5 {row.top5:.2f} %" if measured else None,
    )
    yield from described(row.cls, row.options, row.images, row.num_classes)
    yield "labels", ", ".join(row.labels) if row.labels else None
    yield "in Python", f'keras_vit.from_preset("{name}")'


def own_options(spec: "Spec") -> dict[str, Any]:
    """The hyper-parameters worth showing: sizes, and those that differ from the default."""
    defaults = spec.cls.backbone_cls.defaults()
    return {
        name: value
        for name, value in spec.backbone.items()
        if defaults.get(name) != value or (type(value) is int and value)
    }


def described(
    cls: str, options: Mapping[str, Any], images: Mapping[str, Any], classes: int
) -> Iterator[tuple[str, Any]]:
    """The facts that every checkpoint has; options by the names of the model's arguments."""
    rows, columns = pair(images["image_size"])
    structure = [f"{key} {value}" for key, value in options.items() if key != "image_size"]
    edge = "both edges" if images.get("crop_mode") == "squash" else "the shorter edge"
    full = int(min(rows, columns) / images.get("crop_pct", 1.0) + 1e-6)
    yield "model", f"{cls}: {', '.join(structure)}"
    yield "input", f"{rows} x {columns} pixels"
    yield "resize", f"{edge} to {full}, {images.get('interpolation', 'bicubic')}, then centre crop"
    yield "mean", numbers(images["mean"])
    yield "std", numbers(images["std"])
    yield "classes", classes or "none: it returns features"


def pair(size: int | Iterable[int]) -> tuple[int, ...]:
    """(height, width)"""
    return (size, size) if isinstance(size, int) else tuple(size)


def numbers(values: Iterable[float]) -> str:
    """0.5, 0.5, 0.5"""
    return ", ".join(f"{value:.4g}" for value in values)

"""`list` and `show`: tables of the presets, which need no Keras."""

import difflib
import fnmatch
import os
import sys

from keras_vit import presets


def console():
    """A terminal of its own width; a pipe is wide enough that no name is broken."""
    from rich.console import Console

    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=160 if wide else None, highlight=False, markup=False)


def table(*columns, **options):
    """A plain table; names that begin with `>` stand to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", **options)
    for name in columns:
        right = name.startswith(">")
        made.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return made


def run_list(args):
    """Print the presets that match."""
    found = matching(args)
    if not found:
        raise ValueError(nothing(args))
    out = console()
    made = table("name", ">size", ">params", ">top-1", "licence")
    if out.width < 100:  # room for the names; `show` has the whole licence
        made.columns[-1].max_width, made.columns[-1].overflow = 10, "ellipsis"
        made.columns[-1].no_wrap = True
    for name, row in found:
        top1 = f"{row['top1']:.1f}" if "top1" in row else "-"
        made.add_row(name, str(row["size"]), short(row["params"]), top1, row.get("license", "-"))
    out.print(made)
    if sys.stdout.isatty():
        total = len(presets.checkpoints())
        out.print(f"\n{len(found)} of {total} presets. `keras-vit show NAME` tells all of one.")
    return 0


def matching(args):
    """The rows that pass all filters, sorted: [(name, row)]."""
    pattern = args.pattern if any(c in args.pattern for c in "*?[") else f"*{args.pattern}*"
    found = [
        (name, row)
        for name, row in presets.checkpoints().items()
        if fnmatch.fnmatch(name, pattern)
        and (args.license or "").lower() in row.get("license", "unknown").lower()
        and (args.data or "").lower() in presets.trained_on(name)
        and row["params"] <= (args.max_params or float("inf"))
        and row["size"] == (args.size or row["size"])
        and row.get("top1", 0) >= (args.top1 or 0)
    ]
    keys = {
        "name": lambda item: item[0],
        "top1": lambda item: -item[1].get("top1", 0),
        "params": lambda item: item[1]["params"],
        "size": lambda item: item[1]["size"],
        "data": lambda item: (not presets.trained_on(item[0]), presets.trained_on(item[0])),
    }
    return sorted(found, key=keys[args.sort])


def nothing(args):
    near = difflib.get_close_matches(args.pattern, presets.checkpoints(), n=3, cutoff=0.3)
    hint = f" Near it: {', '.join(near)}." if near else ""
    return f"No preset matches {args.pattern!r} and the filters.{hint}"


def short(number):
    """5717416 -> 5.7M"""
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.{0 if number >= 100 * scale else 1}f}{letter}"
    return str(number)


def run_show(args):
    """Print what is known of a checkpoint."""
    out = console()
    made = table("what", "value", show_header=False)
    made.columns[0].style = "bold"
    for what, value in facts(args.name):
        if value is not None:
            made.add_row(what, str(value))
    out.print(made)
    return 0


def facts(name):
    """(what, value) of a preset, a repository or a directory; None where it is not known."""
    row = presets.checkpoints().get(name)
    if row is None:
        from keras_vit import zoo

        spec, _ = zoo.find(name, {}, True, None, True)
        yield "name", spec.name or name
        yield from described(
            spec.cls, {**spec.backbone, **spec.head}, spec.images, spec.num_classes
        )
        yield "labels", ", ".join(spec.labels[:12]) if spec.labels else None
        return
    family = presets.families()[row["family"]]
    options = {
        **presets.expand(family, family["architectures"][row["arch"]]),
        "image_size": row["size"],
    }
    images = {**family["norms"][row["norm"]], "image_size": row["size"], "crop_pct": row["crop"]}
    images |= {key: row[key] for key in ("crop_mode", "interpolation") if key in row}
    place = f"https://huggingface.co/{row.get('hub', 'timm/' + name)}"
    yield "name", name
    yield "weights", "in this package" if "path" in row else place
    yield "licence", row.get("license")
    yield "trained on", presets.trained_on(name) or None
    yield "parameters", f"{row['params']:,}"
    yield (
        "ImageNet-1k",
        f"top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %" if "top1" in row else None,
    )
    yield from described(family["class"], options, images, row["classes"])
    yield "labels", ", ".join(row["labels"]) if "labels" in row else None
    yield "in Python", f'keras_vit.from_preset("{name}")'


def described(cls, options, images, classes):
    """The lines that every checkpoint has; options by the names of the model's arguments."""
    rows, columns = pair(images["image_size"])
    structure = [f"{key} {value}" for key, value in options.items() if key != "image_size"]
    edge = "both edges" if images.get("crop_mode") == "squash" else "the shorter edge"
    goal = int(min(rows, columns) / images["crop_pct"] + 1e-6)
    yield "model", f"{cls}: {', '.join(structure)}"
    yield "input", f"{rows} x {columns} pixels"
    yield "resize", f"{edge} to {goal}, {images.get('interpolation', 'bicubic')}, then the middle"
    yield "mean", numbers(images["mean"])
    yield "std", numbers(images["std"])
    yield "classes", classes or "none: features come out"


def pair(size):
    return (size, size) if isinstance(size, int) else tuple(size)


def numbers(values):
    return ", ".join(f"{value:.4g}" for value in values)

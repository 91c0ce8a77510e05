"""The commands that run a model: `predict`, `explain`, `demo`."""

import argparse
import csv
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vit import demo, explain, train
from keras_vit.images import picture_files
from keras_vit.models.classifier import ImageClassifier
from keras_vit.text import printable
from keras_vit.types import Path, Progress
from keras_vit.zoo import from_preset
from keras_vit_command.tables import console, suggesting_folders, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

STEP = 32  # images at once
FILES = (".tflite", ".onnx", ".xml")  # exported; a SavedModel is a folder
LISTED = 5  # unreadable files to name; the others are only counted


def load_model(name: str, **options: Any) -> ImageClassifier:
    """The model of that name. Options that are None are left out."""
    given = {key: value for key, value in options.items() if value is not None}
    with suggesting_folders(name):
        return train.fast(from_preset(name, **given))


def track(out: "Console", text: str) -> Progress:
    """A function of (iterable, total) that returns the iterable and draws a progress bar."""
    from rich.progress import track as bar

    return lambda items, total: bar(items, text, total, console=out, transient=True)


def pictures(names: Sequence[Path]) -> tuple[list[Path], int]:
    """The image files at these paths, folders included, and the number of unreadable files.

    The unreadable files are reported on stderr.
    """
    paths: list[Any] = []
    for name in names:
        paths += picture_files(name) if pathlib.Path(name).is_dir() else [name]
    faults = [train.fault(path) for path in paths]
    tell_broken([(path, why) for path, why in zip(paths, faults, strict=True) if why])
    good: list[Path] = [str(path) for path, why in zip(paths, faults, strict=True) if not why]
    if not good:
        raise ValueError(f"There is no readable image in {', '.join(map(printable, names))}.")
    return good, len(paths) - len(good)


def tell_broken(broken: Sequence[tuple[Any, str]]) -> None:
    """Report unreadable files, (path, reason), on stderr: the first ones by name."""
    if broken:
        count = f"{len(broken)} file{'s' * (len(broken) > 1)}"
        print(f"keras-vit: {count} skipped, not readable as an image:", file=sys.stderr)
    for _, why in broken[:LISTED]:
        print(f"  {why}", file=sys.stderr)
    if len(broken) > LISTED:
        print(f"  and {len(broken) - LISTED} more", file=sys.stderr)


def load_classifier(name: str, image_size: Any = None) -> Any:
    """The model of that name, or an exported file that classifies."""
    path = pathlib.Path(name)
    exported = path.suffix.lower() in FILES or (path / "saved_model.pb").is_file()
    if not exported or not path.exists():
        return load_model(name, image_size=image_size)
    if image_size is not None:
        raise ValueError(f"--image-size is not for files: {name!r} has a size of its own.")
    from keras_vit.export import FileClassifier

    return FileClassifier(path)


def run_predict(args: argparse.Namespace) -> int:
    """Print the most probable classes of each image."""
    out = console()
    paths, left_out = pictures(args.images)
    model = load_classifier(args.name, args.image_size)
    chunks = [paths[i : i + STEP] for i in range(0, len(paths), STEP)]
    quiet = len(chunks) == 1 or args.json or args.csv
    shown = chunks if quiet else track(out, "predicting")(chunks, len(chunks))
    results = [result for chunk in shown for result in model.classify(chunk, top=args.top)]
    check_finite(args.name, paths, results)
    value = "probability" if model.activation else "value"
    if args.json or args.csv:
        print_predictions(paths, results, value, args.json)
        return 2 if left_out else 0
    made = table("picture", "class", f">{value}")
    for path, result in zip(paths, results, strict=True):
        for i, (name, value) in enumerate(result):
            shown_value = f"{value:.1%}" if model.activation else f"{value:.4g}"
            made.add_row("" if i else printable(path), name, shown_value)
    out.print(made)
    return 2 if left_out else 0


def print_predictions(
    paths: Sequence[Path], results: Sequence[Any], value: str, as_json: bool
) -> None:
    """Print predictions for a program: JSON, or CSV with one line for each picture and class."""
    if as_json:
        pairs = zip(paths, results, strict=True)
        every = [
            {"picture": str(path), "classes": [{"class": n, value: float(v)} for n, v in result]}
            for path, result in pairs
        ]
        print(json.dumps(every, indent=2))
        return
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["picture", "class", value])
    for path, result in zip(paths, results, strict=True):
        rows.writerows([path, name, float(number)] for name, number in result)


def check_finite(name: str, paths: Sequence[Path], results: Sequence[Any]) -> None:
    """Raise ValueError, with the images, if the model gives NaN."""
    pairs = zip(paths, results, strict=True)
    wrong = [str(path) for path, best in pairs if np.isnan([value for _, value in best]).any()]
    if wrong:
        shown = ", ".join(wrong[:LISTED]) + (" ..." if len(wrong) > LISTED else "")
        raise ValueError(
            f"{name} gives NaN for {len(wrong)} of {len(paths)} images ({shown}): its weights are "
            "NaN or infinite, or numbers are too large for its dtype."
        )


def check_parent(path: pathlib.Path) -> None:
    """Raise FileNotFoundError unless the folder to write into exists."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name} to.")


def run_explain(args: argparse.Namespace) -> int:
    """Draw a map over images, or write an interactive page."""
    if not args.output and not args.html:
        raise ValueError("Say what to write: --output FIGURE, --html PAGE, or both.")
    out, files = console(), [pathlib.Path(name) for name in (args.output, args.html) if name]
    if args.output:
        explain.matplotlib_figure()  # raises now, not after the work
    for file in files:
        check_parent(file)
    paths, left_out = pictures(args.images)
    model = load_model(args.name, image_size=args.image_size)
    count = f"{len(paths)} image{'s' * (len(paths) > 1)}"
    with out.status("computing attention"):
        if args.output:
            figure, caption = drawn(model, paths, args)
            figure.savefig(args.output, dpi=150)
            out.print(f"{args.output}: {caption}, {count}.", soft_wrap=True)
        if args.html:
            size = explain.page(model, paths, args.html).size
            out.print(f"{args.html}: {count}, {size / 1e6:.1f} MB.", soft_wrap=True)
    return 2 if left_out else 0


def drawn(
    model: ImageClassifier, paths: list[Path], args: argparse.Namespace
) -> tuple["Figure", str]:
    """The figure that the options of `explain` ask for, and its caption."""
    if args.classes:
        method = args.method or "relevance"
        figure = explain.overlay_classes(model, paths, top=args.classes, method=method)
    else:
        figure = explain.overlay(model, paths, method=args.method or "rollout")
    return figure, figure.get_suptitle()


def run_demo(args: argparse.Namespace) -> int:
    """Run the demo."""
    demo.run(args.preset, args.output)
    return 0

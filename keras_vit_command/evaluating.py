"""`evaluate` and `probe`: what a model, a file or a checkpoint is worth on a folder of pictures."""

import argparse
import dataclasses
import json
import pathlib
from typing import Any, TypeAlias

import numpy as np

from keras_vit import explain, train
from keras_vit.models.activation import apply
from keras_vit.models.classifier import ImageClassifier
from keras_vit_command.commands import check_parent, load_classifier, tell_broken, track
from keras_vit_command.tables import console, suggesting_folders, table

STEP = 32  # images at once
Side: TypeAlias = tuple[list[pathlib.Path], np.ndarray]  # paths and labels
LISTED = 50  # classes; of more, those with the lowest recall


def run_evaluate(args: argparse.Namespace) -> int:
    """Compare predictions with the names of the folders."""
    out = console()
    if args.confusion:
        explain.matplotlib_figure()  # raises now, not after the work
        check_parent(pathlib.Path(args.confusion))
    parts = train.read_parts(args.folder)
    folder = parts.get("test") or parts.get("validation") or args.folder
    found = train.read_folder(folder, track(out, "checking files"))
    tell_broken(found.broken)
    model = load_classifier(args.name, args.image_size)
    labels = numbers(found, model.class_names, args.name)
    chunks = [found.paths[i : i + STEP] for i in range(0, len(found.paths), STEP)]
    shown = chunks if args.json else track(out, "predicting")(chunks, len(chunks))
    outputs = np.concatenate([probabilities(model, chunk) for chunk in shown])
    result = train.evaluate(outputs, labels, model.class_names)
    if args.confusion:
        result.figure().savefig(args.confusion, dpi=150)
    if args.json:
        print(result.to_json())
    else:
        print_evaluation(out, result)
    return 2 if found.broken else 0


def probabilities(model: Any, images: list[Any]) -> np.ndarray:
    """`(B, classes)`, of a model or a file."""
    if isinstance(model, ImageClassifier):
        return np.asarray(apply(model.predict(images, verbose=0), model.activation))
    return model.predict(images)


def numbers(found: train.Folder, names: list[str] | None, name: str) -> np.ndarray:
    """The number of each picture's class in the model; ValueError if it has none of that name."""
    names = list(names or ())
    unknown = [one for one in found.class_names if names.count(one) != 1]
    if unknown:
        raise ValueError(
            f"{name} has no class named {', '.join(map(repr, unknown[:3]))}: the folders must be "
            f"named after its classes ({', '.join(names[:3]) or 'it does not name them'} ...)."
        )
    return np.array([names.index(one) for one in found.class_names])[found.labels]


def print_evaluation(out: Any, result: train.Evaluation) -> None:
    """The figures as a table, and one line for each class that has pictures."""
    made = table("figure", ">value")
    made.add_row("images", str(result.images))
    made.add_row("top-1", f"{result.top1:.1%}")
    if len(result.class_names) > 5:
        made.add_row("top-5", f"{result.top5:.1%}")
    made.add_row("calibration error", f"{result.calibration_error:.1%}")
    out.print(made)
    rows = [row for row in result.per_class() if row[1]]
    worst = sorted(rows, key=lambda row: row[2])[:LISTED] if len(rows) > LISTED else rows
    classes = table("class", ">images", ">recall", ">precision")
    for name, count, recall, precision in worst:
        shown = "-" if np.isnan(precision) else f"{precision:.1%}"
        classes.add_row(name, str(count), f"{recall:.1%}", shown)
    out.print()
    out.print(classes)
    if len(rows) > LISTED:
        out.print(f"The {LISTED} classes of {len(rows)} with the lowest recall.")


def run_probe(args: argparse.Namespace) -> int:
    """Compare checkpoints by classifiers on their features."""
    out = console()
    if args.plot:
        explain.matplotlib_figure()
        check_parent(pathlib.Path(args.plot))
    sides = probe_sides(args, out)
    results = []
    for name in args.presets:
        with suggesting_folders(name):
            results.append(train.probe(name, *sides, image_size=args.image_size))
    if args.plot:
        train.probe_figure(results).savefig(args.plot, dpi=150)
    if args.json:
        print(json.dumps([dataclasses.asdict(one) for one in results], indent=2))
        return 0
    made = table("preset", ">linear", ">neighbours", ">ms per image", ">params")
    for one in sorted(results, key=lambda one: -one.linear):
        time = f"{one.seconds * 1e3:.1f}"
        params = f"{one.parameters / 1e6:.1f}M"
        made.add_row(one.name, f"{one.linear:.1%}", f"{one.neighbours:.1%}", time, params)
    out.print(made)
    return 0


def probe_sides(args: argparse.Namespace, out: Any) -> tuple[Side, Side]:
    """(paths, labels) for training and for validation."""
    parts = train.read_parts(args.folder)
    found = train.read_folder(parts.get("train", args.folder), track(out, "checking files"))
    tell_broken(found.broken)
    if "validation" in parts:
        other = train.read_folder(parts["validation"], track(out, "checking files"))
        labels = numbers(other, found.class_names, str(parts["train"]))
        return (found.paths, found.labels), (other.paths, labels)
    rows = train.split_labels(found.labels, args.validation, args.seed, found.class_names)
    first, second = (([found.paths[i] for i in side], found.labels[side]) for side in rows)
    return first, second

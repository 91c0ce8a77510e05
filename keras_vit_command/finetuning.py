"""`finetune`: trains on a folder of class folders and writes a folder with a model."""

import argparse
import csv
import hashlib
import importlib.util
import json
import pathlib
import time
import unicodedata
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np

from keras_vit import atomic, train
from keras_vit.models.saving import file_size
from keras_vit.text import printable
from keras_vit.types import Path
from keras_vit_command.commands import check_parent, load_model, tell_broken, track
from keras_vit_command.exporting import check_options, write_file
from keras_vit_command.products import write_products
from keras_vit_command.signals import exit_status
from keras_vit_command.tables import console
from keras_vit_command.unfinished import NAME, Keeper, Patience, Unfinished

if TYPE_CHECKING:
    from rich.console import Console

    from keras_vit.models.classifier import ImageClassifier

PART, NAMES = "0.2", ("training", "validation")
Examples: TypeAlias = tuple[list[pathlib.Path], np.ndarray]  # image files and their labels


def run_finetune(args: argparse.Namespace) -> int:
    """Train, and write the model, its labels and a log to the output folder."""
    out, output = console(), pathlib.Path(args.output)
    check_packages(args)
    unfinished = Unfinished(output)
    check_output(output, unfinished, args)
    target = args.export and pathlib.Path(args.export)
    if args.quantize and not target:
        raise ValueError("--quantize applies to the file of --export FILE, which is missing.")
    if target:
        check_options(target, args)
        check_parent(target)
    with unfinished.opened():
        with atomic.filling(output) as folder:
            if not args.resume:
                unfinished.discard()
            elif unfinished.exists():
                out.print(f"Continuing after {unfinished.progress()}.")
                check_settings(unfinished, options(args))
            sides, names = folders(args, out)
            training, validation = sides["training"], sides["validation"]
            settings = {**options(args), "images": digest(training, validation)}
            if unfinished.exists():
                check_settings(unfinished, settings)
            model = new_model(args, names)
            atomic.check_space(output, file_size(model.variables))  # now, not after hours
            start = time.monotonic()
            keeper = Keeper(unfinished, settings)
            stop = learn(model, training, validation, args, keeper, out)
            kept = keeper.select(model, args.keep, completed=stop is None)
            save(model, folder, keeper.history)
            found = write_products(model, folder, keeper.history, sides, options(args))
        if stop is None:
            unfinished.discard()
    report(args, kept, keeper, (time.monotonic() - start) / 60, out)
    if "test" in found:
        out.print(f"Test accuracy {found['test'].top1:.1%}, {found['test'].images} images.")
    if stop:
        out.print("To continue, run the same command with --resume.")
        return exit_status(stop)
    if target:
        with out.status(f"writing {target}"):
            quantize = {"quantize": args.quantize} if args.quantize else {}
            write_file(model, target, training[0] if args.quantize == "int8" else None, **quantize)
        out.print(f"Exported to {target}.", soft_wrap=True)
    return 0


def new_model(args: argparse.Namespace, names: list[str]) -> "ImageClassifier":
    """The pretrained model with a new head; with its own, if it is of the same classes."""
    keras.utils.set_random_seed(args.seed)
    model = load_model(
        args.preset,
        num_classes=None if same_labels(args.preset, names) else len(names),
        image_size=args.image_size,
        drop_path_rate=args.drop_path,
        dtype="mixed_bfloat16" if args.mixed_precision else args.dtype,
    )
    model.labels = names
    if args.freeze is not None:
        train.freeze(model, **args.freeze)
    if args.lora:
        model.backbone.enable_lora(args.lora)
    return model


def same_labels(preset: str, names: list[str]) -> bool:
    """Whether it is a model that `finetune` wrote, of these classes."""
    labels = pathlib.Path(preset) / "labels.txt"
    return labels.is_file() and labels.read_text("utf-8").splitlines() == names


def learn(
    model: "ImageClassifier",
    training: Examples,
    validation: Examples,
    args: argparse.Namespace,
    keeper: Keeper,
    out: "Console",
) -> KeyboardInterrupt | None:
    """Train. Ctrl-C, or a signal that does the same, ends the training after the first epoch: it is
    returned."""
    try:
        train.finetune(
            model,
            training,
            validation,
            args.epochs,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            recipe=args.recipe,
            layer_decay=args.layer_decay,
            ema=args.ema,
            class_weights=args.class_weights,
            balanced=args.balanced,
            flip=not args.no_flip,
            seed=args.seed,
            callbacks=callbacks(args, keeper),
            progress=track(out, "reading images"),
            verbose=1 if out.is_terminal else 2,
        )
    except KeyboardInterrupt as stop:
        if not keeper.epoch:  # nothing is kept
            raise
        out.print("\nStopped.")
        return stop
    except FloatingPointError as error:
        error.add_note("Set it by --learning-rate.")
        raise
    return None


def callbacks(args: argparse.Namespace, keeper: Keeper) -> list[keras.callbacks.Callback]:
    """The keeper, and what was asked for besides."""
    found: list[keras.callbacks.Callback] = [keeper]
    if args.patience:
        found.append(Patience(keeper, args.patience))
    if args.tensorboard:
        found.append(keras.callbacks.TensorBoard(args.tensorboard))
    return found


def check_packages(args: argparse.Namespace) -> None:
    """Raise ImportError if TensorBoard is asked for and missing, now and not after the first
    epoch."""
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ImportError("--tensorboard needs TensorBoard: pip install tensorboard")


def save(model: "ImageClassifier", folder: pathlib.Path, history: dict[str, list[float]]) -> None:
    """Write the model, labels.txt and training.csv."""
    model.save_to_preset(str(folder))
    labels = "".join(f"{name}\n" for name in model.labels or ())
    (folder / "labels.txt").write_text(labels, "utf-8")
    with open(folder / "training.csv", "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["epoch", *history])
        log.writerows(zip(range(len(history["loss"])), *history.values(), strict=True))


def report(
    args: argparse.Namespace, kept: dict[str, Any], keeper: Keeper, minutes: float, out: "Console"
) -> None:
    """Print which epoch is kept, its accuracy, and what to do next."""
    accuracy, epochs = kept["history"]["val_accuracy"][-1], len(keeper.history["loss"])
    which = f"epoch {kept['epoch']} of {args.epochs}"
    if args.keep == "best" and epochs > 1:
        which += f", the best of {epochs}"
    out.print(f"Validation accuracy {accuracy:.1%} ({which}), {minutes:.1f} minutes.")
    out.print(f"The model, labels.txt and training.csv are in {args.output}. Next:", soft_wrap=True)
    out.print(f"  keras-vit predict {args.output} IMAGE", soft_wrap=True)


OPTIONS = tuple(
    "preset epochs batch_size image_size dtype drop_path no_flip seed recipe layer_decay ema "
    "class_weights balanced freeze lora mixed_precision".split()
)


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a continued training must have in common with its first part. A lower
    learning rate may save one that diverged."""
    return json.loads(json.dumps({name: getattr(args, name) for name in OPTIONS}))


def digest(training: Examples, validation: Examples) -> str:
    """What changes with the names, the classes or the division of the images."""
    lines = []
    for paths, labels in (training, validation):
        for path, label in zip(paths, labels, strict=True):
            lines.append(f"{path.parent.name}/{path.name}/{label}")
        lines.append("")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def check_settings(unfinished: Unfinished, settings: dict[str, Any]) -> None:
    """Raise ValueError unless the training to continue was started with these settings."""
    before = train.read_state(unfinished.last)["settings"]
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed == ["images"]:
        raise ValueError(
            "The images are not those with which the training began, so it cannot continue. "
            "Start again with --overwrite."
        )
    if changed:
        was = [f"--{name.replace('_', '-')} was {before.get(name)}" for name in changed]
        raise ValueError(
            f"The training began with other options: {', '.join(was)}. Give the same with "
            "--resume, or start again with --overwrite."
        )


def folders(args: argparse.Namespace, out: "Console") -> tuple[dict[str, Examples], list[str]]:
    """Images and labels of "training", "validation" and perhaps "test"; the names of the
    classes."""
    parts = train.read_parts(args.folder)
    source = parts.get("train", args.folder)
    found = train.read_folder(source, track(out, "checking files"))
    tell_broken(found.broken)
    validation = args.validation or parts.get("validation", PART)
    sides: dict[str, Examples] = {}
    if pathlib.Path(validation).is_dir():
        sides["training"] = found.paths, found.labels
        sides["validation"] = others(source, found, validation, out)
    else:
        check_counts(source, found)
        rows = train.split_labels(found.labels, part(str(validation)), args.seed)
        sides = {n: examples(found, r) for n, r in zip(NAMES, rows, strict=True)}
    if "test" in parts:
        sides["test"] = others(source, found, parts["test"], out)
    count = {name: len(labels) for name, (_, labels) in sides.items()}
    out.print(
        f"{sum(count.values())} images of {len(found.class_names)} classes: "
        f"{', '.join(map(printable, found.class_names))}"
    )
    out.print(", ".join(f"{n} for {name}" for name, n in count.items()))
    return sides, found.class_names


def others(source: Path, found: train.Folder, folder: Path, out: "Console") -> Examples:
    """Images of another folder with the same classes."""
    other = train.read_folder(folder, track(out, "checking files"))
    tell_broken(other.broken)
    labels = same_classes(source, folder, found.class_names, other.class_names)[other.labels]
    return other.paths, labels


def same_classes(
    folder: Path, other_folder: Path, names: list[str], others: list[str]
) -> np.ndarray:
    """The number in `names` of each class in `others`. macOS spells accents with two characters,
    other systems with one; both are the same name."""
    composed = [unicodedata.normalize("NFC", name) for name in names]
    others = [unicodedata.normalize("NFC", name) for name in others]
    if sorted(composed) != sorted(others):
        raise ValueError(
            f"{other_folder} must hold the same class folders as {folder}: "
            f"{', '.join(composed)}. Received: {', '.join(others)}"
        )
    return np.array([composed.index(name) for name in others])


def check_counts(source: Path, folder: train.Folder) -> None:
    """Raise ValueError, with their names, if classes have a single image: it cannot be split."""
    counts = np.bincount(folder.labels, minlength=len(folder.class_names))
    single = [name for name, count in zip(folder.class_names, counts, strict=True) if count < 2]
    if single:
        raise ValueError(
            f"Only one image of {', '.join(map(repr, single))} in {str(source)!r}: one for "
            "training and one for validation are needed. Add images, or give --validation FOLDER."
        )


def examples(folder: train.Folder, rows: np.ndarray) -> Examples:
    """The images and labels with these indices."""
    return [folder.paths[i] for i in rows], folder.labels[rows]


def part(text: str) -> float:
    """The fraction of the images that are for validation."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--validation takes a fraction such as 0.2, or an existing folder. Received: {text!r}"
        ) from None


def check_output(output: pathlib.Path, unfinished: Unfinished, args: argparse.Namespace) -> None:
    """Raise ValueError if the folder is not empty, unless a model is to be overwritten or a
    training to be continued."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{str(output)!r} is a file. --output takes a folder.")
    if unfinished.exists():
        if not args.resume and not args.overwrite:
            raise ValueError(
                f"In {str(output)!r} is a training that was interrupted after "
                f"{unfinished.progress()}. Continue it with --resume, or start again with "
                "--overwrite."
            )
        return
    # Hidden files do no harm, and an empty disk has a folder lost+found.
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    names = {name for name in names if not name.startswith(".")} - {"lost+found", NAME}
    if names and args.resume and not args.overwrite:
        raise ValueError(f"There is no interrupted training in {str(output)!r} to continue.")
    if names and not args.overwrite:
        raise ValueError(
            f"The folder {str(output)!r} is not empty. Choose another --output, or replace the "
            "model in it with --overwrite."
        )
    if names and not (output / "config.json").is_file():
        raise ValueError(
            f"There is no model in {str(output)!r} to overwrite. Choose another --output."
        )

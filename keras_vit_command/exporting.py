"""`export`, `compare` and `benchmark`: write files that run without Keras, and measure them."""

import argparse
import contextlib
import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras

from keras_vit import export
from keras_vit.export import common, onnx_graph, openvino, saved_model
from keras_vit.export.benchmark import Report
from keras_vit.export.metadata import class_names
from keras_vit.types import Path
from keras_vit_command.commands import check_parent, load_model, pictures
from keras_vit_command.tables import console

if TYPE_CHECKING:
    from rich.console import Console

CALIBRATION = 128  # images; more hardly change the ranges


def run_export(args: argparse.Namespace) -> int:
    """Write a file or a SavedModel directory, and check it."""
    out, path = console(), pathlib.Path(args.output)
    check_options(args.output, args)
    if (args.quantize == "int8") != bool(args.calibration):
        raise ValueError("--quantize int8 and --calibration FOLDER go together.")
    check_parent(path)
    if args.json and not args.check:
        raise ValueError("--json prints the comparison of --check FOLDER, so it needs that option.")
    validation, left_out = found_in(args.check) if args.check else ([], 0)
    calibration, _ = found_in(args.calibration) if args.calibration else (None, 0)
    model = load_model(args.name, image_size=args.image_size)
    with contextlib.nullcontext() if args.json else out.status(f"writing {path}"):
        with messages() as found:
            write_file(model, args.output, **chosen(args), calibration=calibration)
    if not args.json:
        out.print(f"{path}: {written(path) / 1e6:.1f} MB.", *found, sep="\n", soft_wrap=True)
        if args.check:
            out.print(f"Compared with the model on the images in {args.check}:", soft_wrap=True)
    if args.check:
        print_comparison(out, path, model, validation, args)
    return 2 if left_out else 0


def written(path: pathlib.Path) -> int:
    """The size of what was written there, in bytes."""
    parts = [path, *path.rglob("*")]
    if format_of(path) == OPENVINO:
        parts.append(openvino.weights_of(path))
    return sum(part.stat().st_size for part in parts if part.is_file())


@contextlib.contextmanager
def messages() -> Iterator[list[str]]:
    """What `keras_vit.export` logs: which images a file was checked on, and the error."""
    log, found = logging.getLogger("keras_vit.export"), []
    handler, level, propagate = logging.Handler(), log.level, log.propagate
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield found
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def run_compare(args: argparse.Namespace) -> int:
    """Compare a file with the model it was made from."""
    if not pathlib.Path(args.file).exists():
        raise FileNotFoundError(f"There is no file {args.file!r}.")
    args.check = args.folder
    validation, left_out = found_in(args.folder)
    print_comparison(
        console(), args.file, load_model(args.name, image_size=args.image_size), validation, args
    )
    return 2 if left_out else 0


def run_benchmark(args: argparse.Namespace) -> int:
    """Measure a file of any origin."""
    options = (args.threads, args.runs, args.precision, args.weight_cache)
    show(console(), export.benchmark(args.file, *options), args.json)
    return 0


def print_comparison(
    out: "Console", path: Path, model: keras.Model, paths: list[Path], args: argparse.Namespace
) -> None:
    """Print the comparison of a file with its model on the images of a folder."""
    labels = classes(paths, args.check, class_names(model))
    with contextlib.nullcontext() if args.json else out.status("comparing"):
        result = export.compare(path, model, paths, labels, args.threads, args.runs, args.precision)
    show(out, result, args.json)


def show(out: "Console", report: Report, as_json: bool) -> None:
    """Print a report as a table or as JSON."""
    if as_json:
        print(report.to_json())
    else:
        out.print(report)


def found_in(folder: Path) -> tuple[list[Path], int]:
    """The images of a folder, and how many files in it are not readable as images."""
    if not pathlib.Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder!r}.")
    return pictures([folder])


def classes(paths: Sequence[Path], folder: Path, names: list[str] | None) -> list[int] | None:
    """The class number of each image, whose subfolder is named after its class; None if not all
    images are in such subfolders."""
    parts = [pathlib.Path(path).relative_to(folder).parts for path in paths]
    if any(len(part) < 2 for part in parts):
        return None
    found, names = [part[0] for part in parts], names or []
    unknown = sorted({name for name in found if names.count(name) != 1})
    if unknown:
        print(
            f"keras-vit: no accuracy is reported: there is a folder {unknown[0]!r}, but the model "
            "has no single class of that name.",
            file=sys.stderr,
        )
        return None
    return [names.index(name) for name in found]


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `export` as arguments of the functions, without those that were not given."""
    options = {
        "quantize": args.quantize,
        "batch_size": args.batch_size,
        "preprocessing": False if args.no_preprocessing else None,
        "input": args.input or ("float32" if args.gpu else None),
        "gpu": args.gpu or None,
        "attention": args.attention or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def write_file(
    model: keras.Model,
    path: Path,
    calibration: Sequence[Path] | None = None,
    **options: Any,
) -> None:
    """Write a file that ends in .tflite, .onnx or .xml, or a SavedModel directory."""
    kind = format_of(path)
    if calibration:
        options["calibration"] = list(calibration[:: -(-len(calibration) // CALIBRATION)])
    if kind == TFLITE:
        export.to_tflite(model, path, **options)
    elif kind == OPENVINO:
        export.to_openvino(model, path, **options)
    elif kind == ONNX:
        export.to_onnx(model, path, **options)
    else:
        export.to_saved_model(model, path, **options)


TFLITE = "a TFLite file, which ends in .tflite"
ONNX = "an ONNX file, which ends in .onnx"
OPENVINO = "an OpenVINO file, which ends in .xml"
SAVED_MODEL = "a SavedModel, a directory"
SUFFIXES = {".tflite": TFLITE, ".onnx": ONNX, ".xml": OPENVINO, "": SAVED_MODEL}
ONLY = {  # the formats that an option is for
    "quantize": (TFLITE, OPENVINO),
    "calibration": (TFLITE, OPENVINO),
    "gpu": (TFLITE,),
    "input": (TFLITE, ONNX, OPENVINO),
    "attention": (SAVED_MODEL,),
}


def format_of(path: Path) -> str:
    """The format of a file to write, by its name.

    Raises:
        ValueError: another ending, which may be a typing error.
    """
    suffix, name = pathlib.Path(path).suffix.lower(), os.fspath(path)
    if suffix not in SUFFIXES and (os.path.isdir(path) or name.endswith(("/", os.sep))):
        return SAVED_MODEL
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{name!r} ends in {suffix!r}: write {TFLITE}, {ONNX}, {OPENVINO}, or "
            f"{SAVED_MODEL}. For a directory of this name give {name + '/'!r}."
        )
    return SUFFIXES[suffix]


def check_options(path: Path, args: argparse.Namespace) -> None:
    """Raise an error if an option is not for this format, the path is taken by something else, or a
    package is missing."""
    kind = format_of(path)
    for name, kinds in ONLY.items():
        if getattr(args, name, None) and kind not in kinds:
            raise ValueError(f"--{name} is for {' or '.join(kinds)}. Received: {os.fspath(path)!r}")
    if kind == SAVED_MODEL:
        saved_model.check_directory(pathlib.Path(path))
    elif kind == OPENVINO:
        openvino.check_path(path)
        openvino.check_packages(args.quantize)
    else:
        common.target_file(path)
    if kind == ONNX:
        onnx_graph.check_packages()

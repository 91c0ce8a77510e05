"""`export`, `compare` and `benchmark`: files that run elsewhere, and what they cost."""

import contextlib
import pathlib
import sys

from keras_vit import export
from keras_vit.cli.commands import check_parent, load, pictures
from keras_vit.cli.tables import console
from keras_vit.export import onnx
from keras_vit.export.metadata import class_names

CALIBRATION = 128  # pictures; more do not change the ranges


def run_export(args):
    """Write a TFLite file, an ONNX file or a SavedModel, and check it."""
    out, path = console(), pathlib.Path(args.output)
    check_options(path, args)
    if (args.quantize == "int8") != bool(args.calibration):
        raise ValueError("--quantize int8 and --calibration FOLDER go together.")
    check_parent(path)
    if args.json and not args.check:
        raise ValueError("--json prints the comparison that --check FOLDER makes.")
    judges, left_out = found_in(args.check) if args.check else ([], 0)
    taught, _ = found_in(args.calibration) if args.calibration else (None, 0)
    model = load(args.name, image_size=args.image_size)
    with contextlib.nullcontext() if args.json else out.status(f"writing {path}"):
        write(model, path, **chosen(args), calibration=taught)
    if not args.json:
        size = sum(f.stat().st_size for f in (path, *path.rglob("*")) if f.is_file()) / 1e6
        said = f"{path}: {size:.1f} MB. On test images it agrees with the model."
        out.print(said, soft_wrap=True)
    if args.check:
        judge(out, path, model, judges, args)
    return 2 if left_out else 0


def run_compare(args):
    """Run a file beside the model that it was made from."""
    if not pathlib.Path(args.file).exists():
        raise FileNotFoundError(f"There is no file {args.file!r}.")
    args.check = args.folder
    judges, left_out = found_in(args.folder)
    judge(console(), args.file, load(args.name, image_size=args.image_size), judges, args)
    return 2 if left_out else 0


def run_benchmark(args):
    """Measure a file of any origin."""
    show(console(), export.benchmark(args.file, args.threads, args.runs), args.json)
    return 0


def judge(out, path, model, paths, args):
    """Print the comparison of a file with its model on the pictures of a folder."""
    labels = classes(paths, args.check, class_names(model))
    with contextlib.nullcontext() if args.json else out.status("comparing"):
        found = export.compare(path, model, paths, labels, args.threads, args.runs)
    show(out, found, args.json)


def show(out, report, as_json):
    if as_json:
        print(report.to_json())
    else:
        out.print(report)


def found_in(folder):
    """The pictures of a folder, and how many of its files are none."""
    if not pathlib.Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {folder!r}.")
    return pictures([folder])


def classes(paths, folder, names):
    """The number of each picture's class, after which its folder is named; None without such
    folders."""
    parts = [pathlib.Path(path).relative_to(folder).parts for path in paths]
    if any(len(part) < 2 for part in parts):
        return None
    found, names = [part[0] for part in parts], names or []
    unknown = sorted({name for name in found if names.count(name) != 1})
    if unknown:
        print(
            f"keras-vit: no accuracy is told: the model has no class {unknown[0]!r}, after which "
            "a folder is named.",
            file=sys.stderr,
        )
        return None
    return [names.index(name) for name in found]


def chosen(args):
    """The options of `export` as the functions take them; those that were not given are left
    out."""
    options = {
        "quantize": args.quantize,
        "batch_size": args.batch_size,
        "preprocessing": False if args.no_preprocessing else None,
        "input": args.input or ("float32" if args.gpu else None),
        "gpu": args.gpu or None,
        "attention": args.attention or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def write(model, path, calibration=None, **options):
    """A file that ends in .tflite or .onnx, or a SavedModel directory."""
    if path.suffix == ".tflite":
        if calibration:
            options["calibration"] = calibration[:: -(-len(calibration) // CALIBRATION)]
        export.to_tflite(model, path, **options)
    elif path.suffix == ".onnx":
        export.to_onnx(model, path, **options)
    else:
        export.to_saved_model(model, path, **options)


TFLITE = "a TFLite file, which ends in .tflite"
ONNX = "an ONNX file, which ends in .onnx"
SAVED_MODEL = "a SavedModel, a directory"
ONLY = {  # what an option is for
    "quantize": (TFLITE,),
    "calibration": (TFLITE,),
    "gpu": (TFLITE,),
    "input": (TFLITE, ONNX),
    "attention": (SAVED_MODEL,),
}


def check_options(path, args):
    """Raises where an option does not go with the kind of file, or a package for it is missing."""
    kind = {".tflite": TFLITE, ".onnx": ONNX}.get(path.suffix, SAVED_MODEL)
    for name, kinds in ONLY.items():
        if getattr(args, name, None) and kind not in kinds:
            raise ValueError(f"--{name} is for {' or '.join(kinds)}. Received: {str(path)!r}")
    if kind == ONNX:
        onnx.check_packages()

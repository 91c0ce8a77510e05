"""The command's arguments, and which module runs each command."""

import argparse
from collections.abc import Callable
from importlib import metadata
from typing import TypeAlias

Command: TypeAlias = Callable[[str, str], argparse.ArgumentParser]  # of name and help
Add: TypeAlias = Callable[..., object]  # a parser's add_argument

MODULES = {  # imported on demand: Keras takes seconds
    "list": "tables",
    "show": "tables",
    "predict": "commands",
    "export": "exporting",
    "compare": "exporting",
    "benchmark": "exporting",
    "explain": "commands",
    "demo": "commands",
    "finetune": "finetuning",
    "pretrain": "pretraining",
    "evaluate": "evaluating",
    "probe": "evaluating",
    "embed": "embedding",
    "search": "embedding",
}
# What keras_vit.train has, whose import takes seconds.
PRETRAINING = ("mae", "simmim", "masked_patches")
RECIPES = (
    "finetune",
    "finetune_long",
    "deit",
    "deit3",
    "augreg_light1",
    "augreg_medium1",
    "mae_finetune",
    "vit_transfer",
)
EMBEDDINGS = ("features", "classes", "tokens")
EXPLANATIONS = (  # those of keras_vit.explain, whose import takes seconds
    "rollout",
    "relevance",
    "gradient_rollout",
    "grad_cam",
    "input_x_gradient",
    "integrated_gradients",
)
EXAMPLES = """examples:
  keras-vit demo                                        everything in two minutes
  keras-vit list 'deit*' --sort top1
  keras-vit predict deit_tiny_patch16_224.fb_in1k cat.jpg
  keras-vit finetune flowers/ --preset deit_tiny_patch16_224.fb_in1k --output my_flowers
  keras-vit evaluate my_flowers flowers/
  keras-vit export my_flowers flowers.tflite --quantize int8_dynamic --check flowers/
  keras-vit benchmark flowers.tflite

NAME is a name from `keras-vit list`, a repository of the Hugging Face Hub (hf://org/name,
optionally with @revision), a directory, or a weights file.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="keras-vit",
        description="Vision transformers for Keras 3.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"keras-vit {version()}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.add_argument("--traceback", action="store_true", help="show where an error was raised")
        return made

    _tables(command)
    _models(command)
    _files(command)
    _finetune(command)
    _pretrain(command)
    _evaluate(command)
    _embed(command)
    text = "load, classify, fine-tune, export and explain a model, in two minutes"
    add = command("demo", text).add_argument
    add("--preset", metavar="NAME", help="a checkpoint other than the small one in the package")
    add("--output", metavar="DIR", default="keras_vit_demo", help="default: keras_vit_demo")
    return top


def _tables(command: Command) -> None:
    add = command("list", "list the presets that can be loaded by name").add_argument
    add(
        "pattern", metavar="PATTERN", nargs="?", default="*", help="part of a name, or 'vit_*_224*'"
    )
    add("--sort", choices=("name", "top1", "params", "size", "data"), default="name")
    add("--license", metavar="TEXT", help="only licences that contain this: apache, mit ...")
    add(
        "--data",
        metavar="TEXT",
        help="only this training data, as in the names: in21k, laion, webli",
    )
    add("--max-params", metavar="N", type=count, help="only models of at most this size: 30M, 500k")
    add("--size", metavar="PIXELS", type=int, help="only this resolution")
    add("--top1", metavar="PERCENT", type=float, help="at least this accuracy on ImageNet-1k")
    add = command("show", "describe one checkpoint").add_argument
    add("name", metavar="NAME")


def _models(command: Command) -> None:
    add = command("predict", "classify images").add_argument
    add("name", metavar="NAME", help="a model, or a file that `export` wrote")
    add("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    add("--top", type=positive, default=5, metavar="N", help="how many classes (5)")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--csv", action="store_true", help="print CSV instead of a table")
    text = "draw over images what a model attends to, or what speaks for its classes"
    add = command("explain", text).add_argument
    add("name", metavar="NAME")
    add("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    add("--output", metavar="PNG", help="the figure to write: .png, .svg, .pdf")
    add("--html", metavar="FILE", help="an interactive page to write")
    add("--method", choices=EXPLANATIONS, help="which map the figure shows (rollout, or relevance)")
    add("--classes", type=positive, metavar="N", help="maps of the N best classes side by side")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")


def _files(command: Command) -> None:
    text = "write a TFLite, ONNX or OpenVINO file or a SavedModel directory"
    add = command("export", text).add_argument
    add("name", metavar="NAME")
    add("output", metavar="OUT", help="a file that ends in .tflite, .onnx or .xml, or a directory")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    _quantize(add)
    add("--calibration", metavar="FOLDER", help="about a hundred images, for --quantize int8")
    add("--batch-size", type=positive, metavar="N", help="default: 1 for TFLite, else any")
    add("--input", choices=("uint8", "float32"), help="data type of the pixels (uint8)")
    add("--gpu", action="store_true", help="a TFLite file for mobile GPUs: takes floats")
    add("--attention", action="store_true", help="a SavedModel that also returns attention maps")
    add("--no-preprocessing", action="store_true", help="takes normalised floats, returns logits")
    add("--check", metavar="FOLDER", help="compare with the model on the images of this folder")
    _measure(add, 10)
    add = command("compare", "compare an exported file with its model").add_argument
    add("name", metavar="NAME")
    add("file", metavar="FILE")
    add("folder", metavar="FOLDER", help="of images, or of folders named after the classes")
    add("--image-size", type=size, metavar="N|HxW", help="as given to `export`")
    _measure(add, 10)
    add = command("benchmark", "measure size, latency and contents of a file").add_argument
    add("file", metavar="FILE", help="TFLite, .onnx, .xml or a SavedModel directory, from any tool")
    add("--weight-cache", action="store_true", help="of TFLite: measure the start with it, too")
    _measure(add, 50)


def _quantize(add: Add) -> None:
    add(
        "--quantize",
        choices=("float16", "int8_dynamic", "int8"),
        help="smaller weights: a half or a quarter; int8 also computes in int8",
    )


def _measure(add: Add, runs: int) -> None:
    add("--threads", type=positive, metavar="N", help="default: one per processor")
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="in which OpenVINO computes (float32)",
    )
    add(
        "--runs",
        type=positive,
        default=runs,
        metavar="N",
        help=f"timed runs after warm-up ({runs})",
    )
    add("--json", action="store_true", help="print JSON instead of a table")


def _finetune(command: Command) -> None:
    add = command(
        "finetune", "fine-tune on a folder that holds one folder of images per class"
    ).add_argument
    add("folder", metavar="FOLDER")
    add("--preset", metavar="NAME", required=True, help="the checkpoint to start from")
    add("--output", metavar="DIR", required=True, help="folder for the trained model")
    add(
        "--epochs",
        type=positive,
        default=5,
        metavar="N",
        help="how many times each image is seen (5)",
    )
    add(
        "--validation",
        metavar="PART|FOLDER",
        help="fraction of the images for validation, or another folder of class folders; default: "
        "FOLDER/val if there are FOLDER/train and that, else 0.2",
    )
    add("--batch-size", type=positive, default=32, metavar="N", help="images per step (32)")
    add("--learning-rate", type=float, metavar="X", help="the peak (0.06 / width)")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    add("--dtype", metavar="POLICY", help="float32, mixed_bfloat16 ...")
    add("--drop-path", type=float, metavar="X", help="rate of stochastic depth in the last block")
    add("--no-flip", action="store_true", help="no mirrored images (digits, letters)")
    add("--recipe", choices=RECIPES, default="finetune", help="augmentation and rates (finetune)")
    add("--layer-decay", type=float, metavar="X", help="of the rate from block to block: 0.75")
    add("--ema", type=float, metavar="X", help="average the weights with this momentum: 0.999")
    add("--class-weights", choices=("auto",), help="rare classes count more in the loss")
    add("--balanced", action="store_true", help="draw each class equally often")
    text = "what is not trained: a number of blocks, `backbone`, or `norms` for all but norms"
    add("--freeze", type=frozen, metavar="N|backbone|norms", help=text)
    add("--lora", type=positive, metavar="RANK", help="train low-rank matrices and the head")
    add("--mixed-precision", action="store_true", help="the same as --dtype mixed_bfloat16")
    add("--patience", type=positive, metavar="N", help="stop after N epochs without a better one")
    add("--tensorboard", metavar="DIR", help="write logs for TensorBoard")
    add("--seed", type=int, default=0, metavar="N")
    add("--export", metavar="FILE", help="also write a .tflite, .onnx or .xml file")
    _quantize(add)
    add("--keep", choices=("best", "last"), default="best", help="the epoch to keep (best)")
    add("--overwrite", action="store_true", help="replace the model in DIR")
    add("--resume", action="store_true", help="continue an interrupted training in DIR")


def _pretrain(command: Command) -> None:
    add = command("pretrain", "train a backbone on images without labels").add_argument
    add("folder", metavar="FOLDER", help="of images, at any depth")
    add("--preset", metavar="NAME", required=True, help="the architecture, as a checkpoint's name")
    add("--pretrained", action="store_true", help="begin with that checkpoint's weights")
    add("--output", metavar="DIR", required=True, help="folder for the trained model")
    add(
        "--method",
        choices=PRETRAINING,
        default="mae",
        help="what is predicted of what is hidden (mae)",
    )
    add("--epochs", type=positive, default=100, metavar="N", help="(100)")
    add("--batch-size", type=positive, default=64, metavar="N", help="images per step (64)")
    add("--learning-rate", type=float, metavar="X", help="the peak; default: the paper's")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    add("--drop-path", type=float, metavar="X", help="rate of stochastic depth in the last block")
    add("--no-flip", action="store_true", help="no mirrored images (digits, letters)")
    add("--seed", type=int, default=0, metavar="N")
    add("--resume", action="store_true", help="continue an interrupted training")


def _evaluate(command: Command) -> None:
    text = "accuracy, calibration and confusions on folders named after the classes"
    add = command("evaluate", text).add_argument
    add("name", metavar="NAME", help="a model, or a file that `export` wrote")
    add("folder", metavar="FOLDER")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    add("--confusion", metavar="PNG", help="draw the confusion matrix")
    add("--json", action="store_true", help="print JSON instead of a table")
    add = command("probe", "compare checkpoints by classifiers on their features").add_argument
    add("folder", metavar="FOLDER", help="that holds one folder of images per class")
    add("presets", metavar="NAME", nargs="+", help="the checkpoints")
    add("--validation", type=float, default=0.2, metavar="PART", help="of the images (0.2)")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    add("--plot", metavar="PNG", help="draw accuracy against time per image")
    add("--seed", type=int, default=0, metavar="N")
    add("--json", action="store_true", help="print JSON instead of a table")


def _embed(command: Command) -> None:
    text = "write the embeddings of many pictures as Parquet files; again: those that are missing"
    add = command("embed", text).add_argument
    text = "a folder, a .tar file or a pattern of them, or a Parquet file of paths or URLs"
    add("source", metavar="FOLDER", help=text)
    add("--preset", dest="name", metavar="NAME", required=True, help="the model")
    add("--out", "--output", dest="output", metavar="DIR", required=True, help="for the files")
    add("--what", choices=EMBEDDINGS, default="features", help="what to write (features)")
    add("--batch-size", type=positive, default=32, metavar="N", help="images per step (32)")
    add("--workers", type=positive, metavar="N", help="processes of Ray; default: this one alone")
    add("--top", type=positive, default=5, metavar="N", help="how many classes (5)")
    add("--float16", action="store_true", help="half the storage")
    add("--column", metavar="NAME", help="of the Parquet file: the paths or URLs")
    text = "also those of an earlier run whose rows have an error"
    add("--retry-errors", action="store_true", help=text)
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    add("--json", action="store_true", help="print JSON")
    text = "find the pictures that are nearest to one, among those that `embed` has embedded"
    add = command("search", text).add_argument
    add("folder", metavar="DIR", help="what `embed` has written")
    add("picture", metavar="PICTURE", help="a file or a URL")
    add("--top", type=positive, default=10, metavar="N", help="how many pictures (10)")
    add("--output", metavar="PNG", help="draw them")
    add("--json", action="store_true", help="print JSON instead of a table")


def frozen(text: str) -> dict[str, int | bool]:
    """`6`, `backbone` or `norms`, as the arguments of `train.freeze`."""
    if text in ("backbone", "norms"):
        return {"backbone": True, "except_norms": text == "norms"}
    return {"up_to": int(text)}


def size(text: str) -> int | tuple[int, int]:
    """`224` or `192x320` (height x width), in pixels."""
    parts = [int(part) for part in text.lower().split("x")]
    if len(parts) > 2 or min(parts) < 1:
        raise ValueError
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def positive(text: str) -> int:
    """A positive integer."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def count(text: str) -> float:
    """`30M`, `500k`, `1.1B` or a plain number."""
    scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper())
    return float(text[:-1]) * scale if scale else float(text)


def version() -> str:
    """The version of the installed distribution."""
    try:
        return metadata.version("keras-vit-zoo")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "(not installed)"

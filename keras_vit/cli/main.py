"""The command's words, and what becomes of an error."""

import argparse
import importlib
import os
import sys

MODULES = {  # imported when they are needed: Keras takes seconds
    "list": "tables",
    "show": "tables",
    "predict": "commands",
    "export": "exporting",
    "compare": "exporting",
    "benchmark": "exporting",
    "explain": "commands",
    "demo": "commands",
    "finetune": "finetuning",
}
EXAMPLES = """examples:
  keras-vit demo                                        the whole way in two minutes
  keras-vit list 'deit*' --sort top1
  keras-vit predict deit_tiny_patch16_224.fb_in1k cat.jpg
  keras-vit finetune flowers/ --preset deit_tiny_patch16_224.fb_in1k --output my_flowers
  keras-vit export my_flowers flowers.tflite --quantize int8_dynamic --check flowers/
  keras-vit benchmark flowers.tflite

NAME is a name of `keras-vit list`, a repository of the Hugging Face Hub (hf://org/name,
with @revision if you like), a directory, or a file of weights.
"""


def main(argv=None):
    """Run the command; the exit status: 0, 2 for an error of the user's, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # our errors say what its warnings would
    try:
        module = importlib.import_module(f"keras_vit.cli.{MODULES[args.command]}")
        return getattr(module, f"run_{args.command}")(args)
    except KeyboardInterrupt:
        print("\nkeras-vit: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `keras-vit list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if args.traceback:
            raise
        print(f"keras-vit: {error}", file=sys.stderr)
        return 2


def parser():
    top = argparse.ArgumentParser(
        prog="keras-vit",
        description="Vision transformers for Keras 3.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"keras-vit {version()}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text):
        found = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        found.add_argument(
            "--traceback", action="store_true", help="show where in the program an error arose"
        )
        return found

    _tables(command)
    _models(command)
    _files(command)
    _finetune(command)
    add = command(
        "demo", "load, classify, fine-tune, export and explain, in two minutes"
    ).add_argument
    add("--preset", metavar="NAME", help="a checkpoint instead of the small one in the package")
    add("--output", metavar="DIR", default="keras_vit_demo", help="default: keras_vit_demo")
    return top


def _tables(command):
    add = command("list", "the presets that can be loaded by name").add_argument
    add(
        "pattern", metavar="PATTERN", nargs="?", default="*", help="part of a name, or 'vit_*_224*'"
    )
    add("--sort", choices=("name", "top1", "params", "size", "data"), default="name")
    add("--license", metavar="TEXT", help="only licences that contain this: apache, mit ...")
    add("--data", metavar="TEXT", help="only this training data, by the name: in21k, laion, webli")
    add("--max-params", metavar="N", type=count, help="only smaller ones: 30M, 500k")
    add("--size", metavar="PIXELS", type=int, help="only this resolution")
    add("--top1", metavar="PERCENT", type=float, help="only this accurate or more on ImageNet-1k")
    add = command("show", "all that is known of one checkpoint").add_argument
    add("name", metavar="NAME")


def _models(command):
    add = command("predict", "name what pictures show").add_argument
    add("name", metavar="NAME")
    add("images", metavar="IMAGE", nargs="+", help="picture files, or folders of them")
    add("--top", type=positive, default=5, metavar="N", help="how many classes (5)")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    add = command("explain", "draw what the model looks at").add_argument
    add("name", metavar="NAME")
    add("images", metavar="IMAGE", nargs="+", help="picture files, or folders of them")
    add("--output", metavar="PNG", required=True, help="the file to draw into: .png, .svg, .pdf")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")


def _files(command):
    text = "write a TFLite file, an ONNX file or a SavedModel directory"
    add = command("export", text).add_argument
    add("name", metavar="NAME")
    add("output", metavar="OUT", help="a file that ends in .tflite or .onnx, or a directory")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    _quantize(add)
    add("--calibration", metavar="FOLDER", help="about a hundred pictures, for --quantize int8")
    add("--batch-size", type=positive, metavar="N", help="default: 1 for TFLite, else any")
    add("--input", choices=("uint8", "float32"), help="type of the pixels (uint8)")
    add("--gpu", action="store_true", help="a TFLite file for phones' GPUs: takes floats")
    add("--attention", action="store_true", help="a SavedModel that gives attention maps, too")
    add("--no-preprocessing", action="store_true", help="normalised floats in, logits out")
    add("--check", metavar="FOLDER", help="compare with the model on these pictures, or folders")
    _measure(add, 10)
    add = command("compare", "run a file beside the model that it was made from").add_argument
    add("name", metavar="NAME")
    add("file", metavar="FILE")
    add("folder", metavar="FOLDER", help="of pictures, or of folders named after their classes")
    add("--image-size", type=size, metavar="N|HxW", help="as it was for `export`")
    _measure(add, 10)
    add = command("benchmark", "size, latency and contents of any such file").add_argument
    add("file", metavar="FILE", help="TFLite, .onnx or a SavedModel directory, of any origin")
    _measure(add, 50)


def _quantize(add):
    add(
        "--quantize",
        choices=("float16", "int8_dynamic", "int8"),
        help="smaller weights: half, a quarter; int8 computes in int8, too",
    )


def _measure(add, runs):
    add("--threads", type=positive, metavar="N", help="default: one for each processor")
    add("--runs", type=positive, default=runs, metavar="N", help=f"warm runs to time ({runs})")
    add("--json", action="store_true", help="print JSON instead of a table")


def _finetune(command):
    add = command(
        "finetune", "train on a folder that holds a folder of pictures per class"
    ).add_argument
    add("folder", metavar="FOLDER")
    add("--preset", metavar="NAME", required=True, help="where to start from")
    add("--output", metavar="DIR", required=True, help="where the trained model goes")
    add(
        "--epochs",
        type=positive,
        default=5,
        metavar="N",
        help="times that each picture is seen (5)",
    )
    add(
        "--validation",
        default="0.2",
        metavar="PART|FOLDER",
        help="the part of the pictures to judge by, or another folder of class folders (0.2)",
    )
    add("--batch-size", type=positive, default=32, metavar="N", help="pictures at once (32)")
    add("--learning-rate", type=float, metavar="X", help="at its highest (0.06 / width)")
    add("--image-size", type=size, metavar="N|HxW", help="in pixels; default: the checkpoint's")
    add("--dtype", metavar="POLICY", help="float32, mixed_bfloat16 ...")
    add("--drop-path", type=float, metavar="X", help="stochastic depth of the last block")
    add("--no-flip", action="store_true", help="do not mirror pictures (digits, letters)")
    add("--seed", type=int, default=0, metavar="N")
    add("--export", metavar="FILE", help="a .tflite or .onnx file to write at the end, too")
    _quantize(add)
    add("--overwrite", action="store_true", help="write over the model that lies in DIR")


def size(text):
    """`224` or `192x320` (height x width), in pixels."""
    parts = [int(part) for part in text.lower().split("x")]
    if len(parts) > 2 or min(parts) < 1:
        raise ValueError
    return parts[0] if len(parts) == 1 else tuple(parts)


def positive(text):
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def count(text):
    """`30M`, `500k`, `1.1B` or a plain number."""
    scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper())
    return float(text[:-1]) * scale if scale else float(text)


def version():
    from importlib import metadata

    try:
        return metadata.version("keras-vit-zoo")
    except metadata.PackageNotFoundError:  # a bare checkout
        return "(not installed)"

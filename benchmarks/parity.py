"""Parity with timm at full size: random weights from timm, loaded here, on the same image.

    python benchmarks/parity.py [PATTERN] [--memory GIB] [--markdown docs/parity.md]

For each architecture and image size in the tables that matches PATTERN (`vit_base*`; all by
default), timm builds a model with random weights, perturbed so that no norm, token or scale is
trivial, and writes it as a Hub repository; keras_vit loads that directory, and both run on one
random image. Printed are the largest differences in the last tokens (or map) and in the logits,
each divided by the largest value; and that of the logits at another image size, not square, if timm
can load the model for one. Needs timm and torch; each model runs in its own process. A model that
would not fit into memory is marked "too large".
"""

import argparse
import fnmatch
import json
import pathlib
import subprocess
import sys
import tempfile

import common

TITLE = """# Parity

Full-size models with random weights from timm, loaded here: the largest difference in the last
features and in the logits for one random image, each divided by the largest value. The last column
is that of the logits at another image size, height x width: timm's model resized by
`set_input_size`, or loaded with `img_size=`. There is one row per architecture, image size and
number of classes; checkpoints that differ only in their weights share a row. Models that need more
than {memory:g} GiB of memory are marked "too large".

```console
$ python benchmarks/parity.py --memory {memory:g} --markdown docs/parity.md
```
"""
TOO_LARGE = "too large"
ROW = "| {:52} | {:>8} | {:>9} | {:>9} | {:>18} |"
NONE = ""  # no other size
LOADED = ("flexi", "radio")  # timm resamples these in a way of their own, only when it loads them


def cases(pattern):
    """One checkpoint per combination of architecture, image size and number of classes, the
    smallest first."""
    import keras_vit_presets as presets

    seen = {}
    for name, row in presets.checkpoints().items():
        if row.folder is None and fnmatch.fnmatch(name, pattern):
            key = (row.family, row.architecture, row.image_size, row.num_classes)
            seen.setdefault(key, row)
    return sorted(seen.values(), key=lambda row: row.params)


def memory(params):
    """Memory of the comparison, in GiB; timm's model is deleted before ours is loaded. Measured
    with 0.4 billion parameters: 1 GiB plus 1.4 times the weights."""
    return 2 + 1.5 * 4 * params / 2**30


def compare(name, classes):
    """Print the differences of one model as JSON; runs in its own process."""
    import keras
    import numpy as np
    import torch
    from safetensors.torch import save_file

    import keras_vit

    timm = common.import_timm()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    architecture = name.partition(".")[0]
    model = timm.create_model(architecture, num_classes=classes).eval()
    cfg = model.pretrained_cfg
    config = {"architecture": architecture, "num_classes": classes}
    config["pretrained_cfg"] = {"input_size": list(cfg["input_size"]), "crop_pct": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        folder = pathlib.Path(folder)
        file = folder / "model.safetensors"
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
        (folder / "config.json").write_text(json.dumps(config))
        x = noise(cfg["input_size"][1:])
        size = other_size(name)
        other = None
        images = torch.tensor(x.transpose(0, 3, 1, 2))
        features, logits = model.forward_features(images).numpy(), model(images).numpy()
        if size:
            other = at_size(timm, architecture, model, file, size, classes)
        del model

        def difference(function, x, wanted):
            found = keras.ops.convert_to_numpy(function(x))
            if found.shape != wanted.shape:  # a map of timm's, channels first
                wanted = np.moveaxis(wanted, 1, -1)
            return float(np.abs(found - wanted).max() / np.abs(wanted).max())

        ours = keras_vit.from_preset(folder)
        results = {"features": difference(ours.backbone, x, features)}
        results["logits"] = difference(ours, x, logits)
        if other is not None:
            ours = keras_vit.from_preset(folder, image_size=size)
            results["other"] = difference(ours, noise(size), other)
            results["size"] = "{}x{}".format(*size)
    print("RESULT", json.dumps(results))


def noise(size):
    import numpy as np

    return np.random.default_rng(0).normal(size=(1, *size, 3)).astype("float32")


def other_size(name):
    """The next width that an architecture takes at its own height; None if there is none."""
    import keras_vit_presets as presets
    from keras_vit import layouts

    spec = layouts.from_checkpoint(presets.checkpoints()[name], None)
    options = spec.cls.backbone_cls.complete(spec.backbone)
    height = options["image_size"][0]
    for width in range(height + 1, height + 65):
        try:
            spec.cls.backbone_cls.grid({**options, "image_size": (height, width)})
        except ValueError:
            continue
        return height, width
    return None


def at_size(timm, architecture, model, file, size, classes):
    """The logits of timm's model, resized; None if timm cannot resize it."""
    import torch

    images = torch.tensor(noise(size).transpose(0, 3, 1, 2))
    own = any(word in architecture for word in LOADED)
    if hasattr(model, "set_input_size") and not own:
        model.set_input_size(size)
        return model(images).numpy()
    overlay = {"file": str(file), "num_classes": classes}
    arguments = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": classes}
    try:
        return timm.create_model(architecture, **arguments, img_size=size).eval()(images).numpy()
    except (TypeError, RuntimeError, AssertionError):
        pass
    try:
        return model(images).numpy()  # convolutions take images of any size
    except (RuntimeError, AssertionError):
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--memory", type=float, default=12, help="GiB that a model may take")
    parser.add_argument(
        "--markdown", type=pathlib.Path, help="write the table there; its existing rows are kept"
    )
    parser.add_argument("--one", nargs=2, metavar=("NAME", "CLASSES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        compare(options.one[0], int(options.one[1]))
        return
    columns = ("checkpoint", "params", "features", "logits", "at another size")
    head = [ROW.format(*columns), "|---|--:|--:|--:|--:|"]
    print("\n".join(head))
    rows = {}
    if options.markdown and options.markdown.exists():  # continue where the last run ended
        lines = options.markdown.read_text().splitlines()
        rows = {line.split()[1]: line for line in lines if line.startswith("| ")}
    for row in cases(options.pattern):
        name = row.name
        if TOO_LARGE not in rows.get(name, TOO_LARGE):
            continue
        if memory(row.params) > options.memory:
            results = {"features": TOO_LARGE, "logits": "", "other": NONE}
        else:
            command = [sys.executable, __file__, "--one", name, str(row.num_classes)]
            done = subprocess.run(command, capture_output=True, text=True)
            found = [text for text in done.stdout.splitlines() if text.startswith("RESULT")]
            if not found:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            results = json.loads(found[0][7:])
            results |= {k: f"{v:.1e}" for k, v in results.items() if k != "size"}
            results["other"] = f"{results['size']}: {results['other']}" if "size" in results else ""
        size = f"{row.params / 1e6:.1f} M"
        rows[name] = ROW.format(
            name, size, results["features"], results["logits"], results["other"]
        )
        print(rows[name], flush=True)
        if options.markdown:
            title = TITLE.format(memory=options.memory)
            body = [rows[row.name] for row in cases("*") if row.name in rows]
            options.markdown.write_text("\n".join([title, *head, *body, ""]))


if __name__ == "__main__":
    main()

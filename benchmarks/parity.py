"""The numbers of timm at full size: random weights, built there, loaded here, compared.

    python benchmarks/parity.py [PATTERN] [--memory GIB] [--markdown docs/parity.md]

For every architecture and image size of the tables that match PATTERN (`vit_base*`; all by
default): timm builds it with random weights, perturbed so that no norm, token or scale is trivial,
and writes it as a Hub repository; keras_vit loads that directory; both see one random image.
Printed is the largest difference of the last tokens (or map) and of the logits, each divided by the
largest value. Needs timm and torch; each model runs in a process of its own, and is left out, with
a line that says so, where it would not fit the memory.
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

timm's random weights at full size, loaded here: the largest difference of the last features and of
the logits on one random image, each divided by the largest value. One row per architecture, image
size and number of classes; checkpoints that differ by their weights alone share it. What does not
fit {memory:g} GiB is too large.

```console
$ python benchmarks/parity.py --memory {memory:g} --markdown docs/parity.md
```
"""
TOO_LARGE = "too large"
ROW = "| {:52} | {:>8} | {:>9} | {:>9} |"


def cases(pattern):
    """One checkpoint name for each distinct model: architecture, image size, number of classes;
    small ones first."""
    from keras_vit import presets

    seen = {}
    for name, row in presets.checkpoints().items():
        if "path" not in row and fnmatch.fnmatch(name, pattern):
            seen.setdefault((row["family"], row["arch"], row["size"], row["classes"]), (name, row))
    return sorted(seen.values(), key=lambda case: case[1]["params"])


def memory(params):
    """GiB that the comparison takes: timm's model is gone before ours comes. Measured, at 0.4
    billion parameters: 1 GiB and 1.4 times the weights."""
    return 2 + 1.5 * 4 * params / 2**30


def compare(name, classes):
    """Print the differences of one model as JSON; runs in a process of its own."""
    import keras
    import numpy as np
    import torch
    from safetensors.torch import save_file

    import keras_vit

    timm = common.import_timm()
    torch.manual_seed(0)
    architecture = name.partition(".")[0]
    model = timm.create_model(architecture, num_classes=classes).eval()
    cfg = model.pretrained_cfg
    config = {"architecture": architecture, "num_classes": classes}
    config["pretrained_cfg"] = {"input_size": list(cfg["input_size"]), "crop_pct": 1.0}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        folder = pathlib.Path(folder)
        save_file(
            {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors"
        )
        (folder / "config.json").write_text(json.dumps(config))
        height, width = cfg["input_size"][1:]
        x = np.random.default_rng(0).normal(size=(1, height, width, 3)).astype("float32")
        images = torch.tensor(x.transpose(0, 3, 1, 2))
        features, logits = model.forward_features(images).numpy(), model(images).numpy()
        del model
        ours = keras_vit.from_preset(folder)
        results = {}
        for key, function, wanted in (
            ("features", ours.backbone, features),
            ("logits", ours, logits),
        ):
            found = keras.ops.convert_to_numpy(function(x))
            results[key] = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    print("RESULT", json.dumps(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--memory", type=float, default=12, help="GiB that a model may take")
    parser.add_argument(
        "--markdown", type=pathlib.Path, help="write the table there; rows that it has are kept"
    )
    parser.add_argument("--one", nargs=2, metavar=("NAME", "CLASSES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        compare(options.one[0], int(options.one[1]))
        return
    head = [ROW.format("checkpoint", "params", "features", "logits"), "|---|--:|--:|--:|"]
    print("\n".join(head))
    rows = {}
    if options.markdown and options.markdown.exists():  # go on where the last run ended
        lines = options.markdown.read_text().splitlines()
        rows = {line.split()[1]: line for line in lines if line.startswith("| ")}
    for name, row in cases(options.pattern):
        if TOO_LARGE not in rows.get(name, TOO_LARGE):
            continue
        if memory(row["params"]) > options.memory:
            results = {"features": TOO_LARGE, "logits": ""}
        else:
            command = [sys.executable, __file__, "--one", name, str(row["classes"])]
            done = subprocess.run(command, capture_output=True, text=True)
            found = [text for text in done.stdout.splitlines() if text.startswith("RESULT")]
            if not found:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            results = {k: f"{v:.1e}" for k, v in json.loads(found[0][7:]).items()}
        size = f"{row['params'] / 1e6:.1f} M"
        rows[name] = ROW.format(name, size, results["features"], results["logits"])
        print(rows[name], flush=True)
        if options.markdown:
            title = TITLE.format(memory=options.memory)
            body = [rows[name] for name, _ in cases("*") if name in rows]
            options.markdown.write_text("\n".join([title, *head, *body, ""]))


if __name__ == "__main__":
    main()

"""Parity with timm at full size: random weights from timm, loaded here, on the same image.

    python benchmarks/parity.py [PATTERN] [--memory GIB] [--markdown docs/parity.md]

For each architecture and image size in the tables that matches PATTERN (`vit_base*`; all by
default), timm builds a model with random weights, perturbed so that no norm, token or scale is
trivial, and writes it as a Hub repository; keras_vit loads that directory, and both run on one
random image. (Deep MaxViTs would be chaotic: their BatchNorms get the statistics of a batch of
noise.) Printed are the largest differences in the last tokens (or map) and in the logits,
each divided by the largest value; and that of the logits at another image size, not square, if timm
can load the model for one. Needs timm and torch; a few small models share a process, and each large
one has its own. A model that would not fit into memory is marked "too large".
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
number of classes; checkpoints that differ only in their weights share a row. Where timm's own
features would change by more than 1e-4 of the largest value if the image changed by 1e-6, as in
deep MaxViTs, BatchNorms have the statistics of a batch of noise. {rows} of {all} are
measured so far. Models that need more than {memory:g} GiB of memory are marked "too large".

```console
$ python benchmarks/parity.py --memory {memory:g} --markdown docs/parity.md
```
"""
TOO_LARGE, TODO = "too large", "not measured"
ROW = "| {:52} | {:>8} | {:>9} | {:>9} | {:>18} |"
NONE = ""  # nothing to compare
CHAOS = 1e-4
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
        settle(model, cfg["input_size"])
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
    print("RESULT", name, json.dumps(results), flush=True)
    keras.backend.clear_session()


def settle(model, size):
    """Give BatchNorms the statistics of a batch of noise, if timm's model is chaotic: its features
    change by more than CHAOS if the image is multiplied by 1 + 1e-6."""
    import torch

    images = torch.tensor(noise(size[1:]).transpose(0, 3, 1, 2))
    features, near = (model.forward_features(x) for x in (images, images * (1 + 1e-6)))
    if (near - features).abs().max() < CHAOS * features.abs().max():
        return
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model.forward_features(torch.randn(4, *size))
    model.eval()


def todo(line):
    """Whether there is something to measure."""
    return line is None or TODO in line or TOO_LARGE in line


def groups(rows, size=8, params=4e8):
    """Rows for one process each: at most that many models, and of that many parameters together."""
    group = []
    for row in rows:
        if group and (len(group) == size or sum(r.params for r in [*group, row]) > params):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def results_of(group):
    """Compare the models in a process of their own: the rest of each row, by name."""
    pairs = [word for row in group for word in (row.name, str(row.num_classes))]
    command = [sys.executable, __file__, "--compare", *pairs]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout:
                if line.startswith("RESULT"):
                    _, name, results = line.split(" ", 2)
                    yield name, json.loads(results)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{', '.join(pairs[::2])} failed:\n{errors.read()[-2000:]}")


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
    parser.add_argument("--compare", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        for name, classes in zip(options.compare[::2], options.compare[1::2], strict=True):
            compare(name, int(classes))
        return
    columns = ("checkpoint", "params", "features", "logits", "at another size")
    head = [ROW.format(*columns), "|---|--:|--:|--:|--:|"]
    print("\n".join(head))
    lines = {}
    if options.markdown and options.markdown.exists():  # continue where the last run ended
        found = options.markdown.read_text().splitlines()
        lines = {line.split()[1]: line for line in found if line.startswith("| ")}

    def write(row, *cells):
        lines[row.name] = ROW.format(row.name, f"{row.params / 1e6:.1f} M", *cells)
        print(lines[row.name], flush=True)
        if options.markdown:
            every = cases("*")
            body = [lines[row.name] for row in every if row.name in lines]
            title = TITLE.format(memory=options.memory, rows=len(body), all=len(every))
            options.markdown.write_text("\n".join([title, *head, *body, ""]))

    wanted = [row for row in cases(options.pattern) if todo(lines.get(row.name))]
    wanted.sort(key=lambda row: row.name in lines)  # new rows first
    rows = {row.name: row for row in wanted}
    fitting = [row for row in rows.values() if memory(row.params) <= options.memory]
    for group in groups(fitting):
        for name, found in results_of(group):
            size, other = found.pop("size", None), found.pop("other", None)
            cells = [f"{found[key]:.1e}" for key in ("features", "logits")]
            write(rows[name], *cells, f"{size}: {other:.1e}" if size else NONE)
    for row in rows.values():
        if row not in fitting:
            write(row, TOO_LARGE, NONE, NONE)


if __name__ == "__main__":
    main()

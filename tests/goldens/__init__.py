"""The goldens that `make.py` wrote: as arrays, and as repositories of timm and transformers."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
PROCESSORS = json.loads((HERE / "processors.json").read_text("utf-8"))


def _names():
    """Every golden, and what it holds: {name: keys of its arrays}."""
    found = {}
    for path in sorted(HERE.glob("*.npz")):
        with np.load(path) as file:
            if "config" in file:
                found[path.stem] = set(file.files)
    return found


NAMES = _names()
TIMM = [name for name in NAMES if not name.startswith("hf-")]
HF = [name for name in NAMES if name.startswith("hf-")]
RESIZED = [name for name in TIMM if "resized" in NAMES[name]]  # that fit images of another size


def arrays(name):
    """The arrays of a golden: `x`, `features`, `pooled`, `logits`, `resized`, `weights/...`."""
    with np.load(HERE / f"{name}.npz") as file:
        return {key: value for key, value in file.items() if key != "config"}


def config(name):
    """The config.json that the source wrote."""
    with np.load(HERE / f"{name}.npz") as file:
        return json.loads(str(file["config"]))


def weights(name):
    """The state dict of a golden."""
    found = {k.removeprefix("weights/"): v for k, v in arrays(name).items() if "/" in k}
    return {key: np.ascontiguousarray(value) for key, value in found.items()}


def other_size(x):
    """The pictures `(B, H, W, C)` whose logits are a golden's `resized`: `(B, W, H, C)`; W > H."""
    height, width = x.shape[1:3]
    return np.concatenate([x, x[:, : width - height, ::-1]], axis=1)[:, :, :height]


def repository(name, folder, **changes):
    """Write a golden as its source saves it; `changes` replace fields of config.json.

    Returns:
        The directory, as a string.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config(name), **changes}), "utf-8")
    save_file(weights(name), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)

"""The goldens that `make.py` wrote: as arrays, and as repositories of timm and transformers."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
CONFIGS = json.loads((HERE / "configs.json").read_text("utf-8"))
PROCESSORS = json.loads((HERE / "processors.json").read_text("utf-8"))


def arrays(name):
    """The arrays of a golden: `x`, `features`, `pooled`, `logits`, `resized`, `weights/...`."""
    with np.load(HERE / f"{name}.npz") as file:
        return dict(file)


def weights(name):
    """The state dict of a golden."""
    found = {k.removeprefix("weights/"): v for k, v in arrays(name).items() if "/" in k}
    return {key: np.ascontiguousarray(value) for key, value in found.items()}


def other_size(x):
    """The pictures `(B, 8, 12, C)` whose logits are a golden's `resized`: `(B, 12, 8, C)`."""
    return np.concatenate([x, x[:, :4, ::-1]], axis=1)[:, :, :8]


def repository(name, folder, **changes):
    """Write a golden as its source saves it; `changes` replace fields of config.json.

    Returns:
        The directory, as a string.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIGS[name], **changes}), "utf-8")
    save_file(weights(name), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)

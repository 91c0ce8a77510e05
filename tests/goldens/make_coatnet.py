"""Goldens of the two families of timm's maxxvit.py: tiny models, for pictures of 64 x 96 pixels."""

import json
import pathlib
import tempfile

import timm
import torch
from make import compute, other_size, save, seeded
from timm.models._hub import save_config_for_hf

SIZE = (64, 96)
TINY = {
    "img_size": SIZE,
    "embed_dim": (4, 4, 8, 16),
    "depths": (1, 1, 1, 1),
    "stem_width": (3, 4),
    "transformer_dim_head": 4,
    "transformer_rel_pos_dim": 6,
    "num_classes": 7,
}


DEEPER = {  # blocks without a stride, too
    "coatnet-rw_0": {"depths": (2, 1, 2, 1)},
    "coatnet-next": {"depths": (2, 1, 2, 1)},
    "maxvit-tf": {"depths": (1, 2, 1, 1)},
    "maxvit-maxxvit": {"depths": (1, 2, 1, 1)},
}


def perturb(model, golden):
    """Random values for all parameters and moving averages; multiples of 1/64 compress well."""
    generator = seeded(golden)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            value = torch.exp(0.5 * noise + 0.5)
        elif tensor.ndim == 1 and name.endswith(("weight", "gamma")):  # a norm, a layer scale
            value = 1.0 + 0.3 * noise
        elif tensor.ndim == 1:
            value = 0.2 * noise
        elif name.endswith("bias_table"):
            value = 0.5 * noise
        else:
            value = 0.6 * noise / tensor[0].numel() ** 0.5
        tensor.copy_(torch.round(value * 64) / 64)
    return model.eval()


def make(golden, architecture):
    with torch.no_grad():
        options = {**TINY, **DEEPER.get(golden, {})}
        model = timm.create_model(architecture, **options)
        if hasattr(model.head, "pre_logits"):
            model = timm.create_model(architecture, **options, head_hidden_size=10)
        perturb(model, golden)
        x = torch.randn(2, 3, *SIZE, generator=seeded(golden))
        x = torch.round(x * 2) / 2
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        outputs = {**compute(model, x), **stages(model, x)}
        outputs["features"] = outputs["features"].permute(0, 2, 3, 1)
        with tempfile.TemporaryDirectory() as folder:
            save_config_for_hf(model, f"{folder}/config.json")
            config = json.loads(pathlib.Path(folder, "config.json").read_text())
        model.set_input_size(SIZE[::-1])
        outputs["resized"] = model(other_size(x))
    save(golden, config, weights, x, **outputs)


def stages(model, x):
    """{"P2": `(B, H / 4, W / 4, C)`, ...}"""
    maps = model.forward_intermediates(x, intermediates_only=True)[1:]
    return {f"P{i + 2}": part.permute(0, 2, 3, 1) for i, part in enumerate(maps)}


def others():
    pass

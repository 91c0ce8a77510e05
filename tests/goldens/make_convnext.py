"""Goldens of timm's and transformers' ConvNeXt, V1 and V2, for make.py.

32 does not divide the pictures: their last rows and columns go unread.
"""

import json
import pathlib
import tempfile

import timm
import torch
import transformers
from make import compute, other_size, perturb, picture, save, seeded
from safetensors.torch import load_file
from timm.models._hub import save_config_for_hf

SIZE = (37, 66)
TINY = {"depths": [1, 1, 2, 1], "dims": [6, 8, 10, 12]}
LEVELS = ("P2", "P3", "P4", "P5")


def last(x):
    """A feature map with the channels last, `(B, C, H, W) -> (B, H, W, C)`."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def pixels(golden):
    """Coarse, so that they compress well."""
    return torch.round(picture(3, *SIZE, golden) * 16) / 16


def perturbed(model, golden):
    """Random values, and wide hidden layers, so that their activation shows."""
    generator = seeded(golden)
    for name, parameter in perturb(model, golden).named_parameters():
        if name.endswith((".fc1.weight", ".pre_logits.fc.weight", ".pwconv1.weight")):
            noise = torch.randn(parameter.shape, generator=generator)
            value = 2 * noise / parameter.shape[1] ** 0.5
            parameter.data.copy_(torch.round(value * 256) / 256)
    return model


def make(golden, architecture):
    """A golden of timm: features of each stage, too."""
    changes = {"head_hidden_size": 10} if "mlp" in architecture else {}
    model = timm.create_model(architecture, num_classes=7, **TINY, **changes)
    model, x = perturbed(model, golden), pixels(golden)
    with torch.no_grad():
        outputs = {key: last(value) for key, value in compute(model, x).items()}
        _, stages = model.forward_intermediates(x)
        outputs |= {level: last(stage) for level, stage in zip(LEVELS, stages, strict=True)}
        outputs["resized"] = model(other_size(x))
    with tempfile.TemporaryDirectory() as folder:
        save_config_for_hf(model, f"{folder}/config.json")
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, *SIZE]
    save(golden, config, model.state_dict(), x, **outputs)


TRANSFORMERS = {  # golden's name: class, what its config changes
    "hf-convnext": ("ConvNextForImageClassification", {}),
    "hf-convnext-options": (
        "ConvNextForImageClassification",
        {"hidden_act": "silu", "layer_norm_eps": 1e-2, "layer_scale_init_value": 0.5},
    ),
    "hf-convnext-model": ("ConvNextModel", {}),
    "hf-convnextv2": ("ConvNextV2ForImageClassification", {}),
}


def others():
    """Goldens of transformers."""
    for golden, (cls, changes) in TRANSFORMERS.items():
        cls = getattr(transformers, cls)
        own = {"depths": TINY["depths"], "hidden_sizes": TINY["dims"], "image_size": 37}
        names = {i: f"name of {i}" for i in range(7)}
        model = perturbed(cls(cls.config_class(**own, id2label=names, **changes)), golden)
        x = pixels(golden)[..., :37]
        with torch.no_grad():
            output = model(x)
            trunk = getattr(model, model.base_model_prefix, model)
            outputs = {"features": last(trunk(x).last_hidden_state)}
            key = "logits" if "logits" in output else "pooled"
            outputs[key] = output.logits if key == "logits" else output.pooler_output
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            config = json.loads(pathlib.Path(folder, "config.json").read_text())
            save(golden, config, load_file(f"{folder}/model.safetensors"), x, **outputs)

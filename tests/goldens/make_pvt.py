"""Goldens of PVT v2, by timm and transformers, and of PVT, by transformers: see `make.own`."""

import copy
import json
import pathlib
import tempfile

import make as common
import timm
import torch
import transformers
from make import compute, other_size, save, seeded
from safetensors.torch import load_file
from timm.models._hub import save_config_for_hf

# Maps of 8 x 11, 4 x 6, 2 x 3 and 1 x 2: rounded up, and not multiples of the reductions.
SIZE = (30, 44)
TINY = {
    "embed_dims": (4, 8, 12, 16),
    "depths": (1, 2, 1, 1),
    "num_heads": (1, 2, 3, 2),
    "sr_ratios": (4, 2, 2, 1),
    "mlp_ratios": (2, 3, 1.5, 2),
}


def perturb(model, golden):
    """Random values for all parameters; multiples of 1/1024 compress well.

    What an embedding adds to the stream is small (standard deviation near 0.05), and so is what the
    norm after a reduction reads, so that every epsilon shows.
    """
    generator = seeded(golden)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        embeds = "patch_embed" in name or "downsample" in name
        if name.endswith(("position_embeddings", "cls_token")):
            value = 0.05 * noise
        elif parameter.ndim == 1 and name.endswith("weight"):
            value = (1.0 + 0.2 * noise) * (0.05 if embeds else 1.0)
        elif parameter.ndim == 1:
            value = 0.02 * noise if embeds or ".sr." in name else 0.1 * noise
        else:
            fan_in = parameter[0].numel()
            reduces = ".sr." in name or "reduction" in name
            value = (0.05 if embeds or reduces else 1.0) * noise / fan_in**0.5
        parameter.data.copy_(torch.round(value * 1024) / 1024)
    return model.eval()


def picture(*arguments):
    """Two pictures whose numbers compress well."""
    return torch.round(common.picture(*arguments) * 32) / 32


def make(golden, architecture):
    model = perturb(timm.create_model(architecture, num_classes=7, **TINY), golden)
    x = picture(3, *SIZE, golden)
    # In float32 the errors of the small embeddings' norms would take two thirds of the tolerance.
    exact, pixels = copy.deepcopy(model).double(), x.double()
    with torch.no_grad():
        outputs = compute(exact, pixels)
        stages = exact.forward_intermediates(pixels)[1]
        outputs |= {f"P{i}": y for i, y in enumerate(stages[:-1], 2)}
        outputs["resized"] = exact(other_size(pixels))
    outputs = {key: value.float() for key, value in outputs.items()}
    maps = {k: v.permute(0, 2, 3, 1) for k, v in outputs.items() if v.ndim == 4}
    with tempfile.TemporaryDirectory() as folder:
        save_config_for_hf(model, f"{folder}/config.json", model_args=TINY)
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, *SIZE]
    save(golden, config, model.state_dict(), x, **{**outputs, **maps})


SMALL = {
    "hidden_sizes": [4, 8, 12, 16],
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [1, 2, 3, 2],
    "mlp_ratios": [2, 3, 1, 2],
    "id2label": {i: f"name of {i}" for i in range(11)},
}
V1 = {"image_size": 32, "num_labels": 11, "sequence_reduction_ratios": [4, 2, 1, 1]}
TRANSFORMERS = {  # golden's name: class, what its config changes
    "hf-pvt": ("PvtForImageClassification", V1),
    "hf-pvt-options": (
        "PvtForImageClassification",
        {**V1, "layer_norm_eps": 1e-3, "qkv_bias": False, "hidden_act": "gelu_new"},
    ),
    "hf-pvt_v2": ("PvtV2ForImageClassification", {"image_size": SIZE, "sr_ratios": [4, 2, 2, 1]}),
    "hf-pvt_v2-linear": (
        "PvtV2ForImageClassification",
        {"image_size": SIZE, "linear_attention": True, "qkv_bias": False, "hidden_act": "gelu_new"},
    ),
}


def others():
    for golden, (cls, changes) in TRANSFORMERS.items():
        config = getattr(transformers, cls).config_class(**{**SMALL, **changes})
        model = perturb(getattr(transformers, cls)(config), golden)
        size = config.image_size
        x = picture(3, *((size, size) if isinstance(size, int) else size), golden)
        with torch.no_grad():
            features = model.base_model(x).last_hidden_state
            outputs = {"features": features, "logits": model(x).logits}
            if config.model_type == "pvt":
                outputs["resized"] = resized(model, x)
        if features.ndim == 4:
            outputs["features"] = features.permute(0, 2, 3, 1)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            weights = load_file(f"{folder}/model.safetensors")
            config = json.loads(pathlib.Path(folder, "config.json").read_text())
        save(golden, config, weights, x, **outputs)


def resized(model, x):
    """Logits for pictures of 64 x 64 pixels: each four times, side by side.

    transformers resizes no positions. The paper's own code does: `interpolate`, bilinear.
    """
    larger = type(model)(type(model.config)(**{**model.config.to_dict(), "image_size": 64})).eval()
    weights = model.state_dict()
    for key, new in larger.state_dict().items():
        old = weights[key]
        if old.shape != new.shape:
            token, table = old[:, :0], old
            if "encoder.patch_embeddings.3" in key:
                token, table = old[:, :1], old[:, 1:]
            side, goal = round(table.shape[1] ** 0.5), round((new.shape[1] - token.shape[1]) ** 0.5)
            table = table.transpose(1, 2).unflatten(2, (side, side))
            table = torch.nn.functional.interpolate(table, (goal, goal), mode="bilinear")
            weights[key] = torch.cat([token, table.flatten(2).transpose(1, 2)], 1)
    larger.load_state_dict(weights)
    return larger(x.repeat(1, 1, 2, 2)).logits

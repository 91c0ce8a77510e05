"""Write Swin's goldens: small models of timm, transformers and torchvision.

Run by make.py. The maps are such that windows do not divide them, move, and cover them.
"""

import copy
import json
import pathlib
import tempfile

import numpy as np
import timm
import torch
import transformers
from make import OUT, compute, other_size, perturb, picture, save, seeded
from safetensors.torch import load_file
from torchvision.models import swin_transformer

SIZE = (8, 12)
TINY = {
    "img_size": SIZE,
    "patch_size": 1,
    "embed_dim": 8,
    "depths": (2, 2, 2),
    "num_heads": (1, 2, 4),
    "window_size": 3,
    "num_classes": 7,
}


def make(golden, architecture, **changes):
    """A golden of timm, with the output of each stage, and the logits for two other sizes."""
    arguments = {**TINY, **changes}
    model = large_scales(perturb(timm.create_model(architecture, **arguments), golden), golden)
    x = picture(3, *SIZE, golden)
    config = {k: v for k, v in arguments.items() if k != "num_classes"}
    config = {"architecture": architecture, "num_classes": 7, "model_args": config}
    # In float32 the errors of cosine attention alone would take most of the tolerance.
    exact, pixels = copy.deepcopy(model).double(), x.double()
    with torch.no_grad():
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        outputs = compute(exact, pixels)
        for i, stage in enumerate(exact.forward_intermediates(pixels, intermediates_only=True)):
            outputs[f"stage{i}"] = stage.permute(0, 2, 3, 1)
        # Of a new model, because a second change of the size begins where the first one ended.
        for name, size in (("resized", (12, 8)), ("smaller", (7, 10))):
            other = timm.create_model(architecture, **arguments).eval()
            other.load_state_dict(weights)
            other.set_input_size(size)
            view = other_size(pixels) if name == "resized" else pixels[:, :, :7, :10]
            outputs[name] = other.double()(view)
    save(golden, config, weights, x, **{key: value.float() for key, value in outputs.items()})


def large_scales(model, golden):
    """Scales of cosine attention. Few are above the limit, log(100): they add rounding errors."""
    generator = seeded(golden)
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            value = 2 * torch.rand(parameter.shape, generator=generator)
            if "layers.1.blocks.1" in name or "mask" in golden:
                value[:1] = 5
            parameter.data.copy_(torch.round(value * 1024) / 1024)
        if name.endswith("layers.1.blocks.1.attn.proj.weight"):  # what that head adds is small
            parameter.data[:, : parameter.shape[1] // 2] /= 8
    return model


SMALL = {
    "image_size": list(SIZE),
    "patch_size": 1,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 3,
    "id2label": {i: f"name of {i}" for i in range(5)},
}
TRANSFORMERS = {
    "hf-swin": ("SwinForImageClassification", {}),
    "hf-swin-options": (
        "SwinForImageClassification",
        {"qkv_bias": False, "mlp_ratio": 2.5, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    ),
    "hf-swin-model": ("SwinModel", {}),
    "hf-swinv2": ("Swinv2ForImageClassification", {}),
    "hf-swinv2-pretrained": (
        "Swinv2ForImageClassification",
        {"pretrained_window_sizes": [5, 4], "qkv_bias": False},
    ),
    # Heads of width 1, whose cosines are 1 and -1: there the mask's size shows.
    "hf-swinv2-mask": ("Swinv2ForImageClassification", {"embed_dim": 4, "num_heads": [4, 8]}),
    "hf-swinv2-model": ("Swinv2Model", {}),
}


def make_transformers(golden, cls, changes):
    config = getattr(transformers, cls).config_class(**{**SMALL, **changes})
    model = getattr(transformers, cls)(config)
    model = large_scales(perturb(model, golden), golden)
    x = picture(3, *SIZE, golden)
    trunk = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        output = model(x)
        tokens = trunk(x).last_hidden_state
        grid = SIZE[0] // 2, SIZE[1] // 2
        outputs = {"features": tokens.unflatten(1, grid)}
        name = "logits" if "ForImageClassification" in cls else "pooled"
        outputs[name] = output.logits if name == "logits" else output.pooler_output
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        save(golden, config, weights, x, **outputs)


def make_torchvision(golden, version):
    """A state dict, pictures and what torchvision makes of them."""
    parts = {
        "block": getattr(swin_transformer, f"SwinTransformerBlock{version}"),
        "downsample_layer": getattr(swin_transformer, f"PatchMerging{version}"),
    }
    window, patch = (8, 16) if version else (3, 1)  # 256 pixels, as for torchvision's own V2
    model = swin_transformer.SwinTransformer(
        [patch, patch], 8, [1, 2], [1, 2], [window, window], num_classes=5, **parts
    )
    seed = f"{golden}-d"  # of which torchvision's own rounding errors are small
    model = large_scales(perturb(model, seed), seed)
    x = picture(3, 2 * window, 2 * window, seed)
    x = x.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    with torch.no_grad():
        arrays = {"features": model.norm(model.features(x)), "logits": model(x)}
    arrays |= {f"weights/{key}": value for key, value in model.state_dict().items()}
    arrays["x"] = x.permute(0, 2, 3, 1)
    np.savez_compressed(OUT / f"{golden}.npz", **{k: v.numpy() for k, v in arrays.items()})


def others():
    """Windows of each stage's own (S3), and the models of transformers."""
    windows = ((2, 5), (4, 4), (2, 2))
    make("swin-s3", "swin_s3_tiny_224", window_size=windows)
    for golden, case in TRANSFORMERS.items():
        make_transformers(golden, *case)
    make_torchvision("torchvision-swin", "")
    make_torchvision("torchvision-swin_v2", "V2")

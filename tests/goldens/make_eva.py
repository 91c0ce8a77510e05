"""Goldens of timm's eva.py, whose heads are multiples of 4 channels wide, and of transformers'
DINOv3."""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from make import make_timm, perturb, picture, save
from PIL import Image
from safetensors.torch import load_file

# Of the 7B, timm rounds the width of the MLP to a multiple of 64.
INSTEAD = {"vit_7b_patch16_dinov3": "vit_huge_plus_patch16_dinov3"}
DINOV3 = {
    "image_size": [8, 12],
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 22,
    "num_register_tokens": 2,
}
TRANSFORMERS = {
    "hf-dinov3": {},
    "hf-dinov3-gated": {"use_gated_mlp": True, "hidden_act": "silu"},
    "hf-dinov3-no_bias": {"query_bias": False, "value_bias": False, "rope_theta": 50.0},
}


def make(golden, architecture):
    make_timm(golden, INSTEAD.get(architecture, architecture), {"embed_dim": 16})


def make_transformers(golden, changes):
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**{**DINOV3, **changes}))
    model = perturb(model, golden)
    x = picture(3, *DINOV3["image_size"], golden)
    with torch.no_grad():
        output = model(x)
    outputs = {"features": output.last_hidden_state, "pooled": output.pooler_output}
    if not changes:
        image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype="uint8")
        processor = transformers.DINOv3ViTImageProcessor(size={"height": 8, "width": 12})
        pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
        outputs |= {"image": torch.from_numpy(image), "pixels": pixels[0].permute(1, 2, 0)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
    save(golden, config, weights, x, **outputs)
    if not changes:  # as 5.x names them in memory
        save(f"{golden}-v5", config, model.state_dict(), x, **outputs)


def others():
    for golden, changes in TRANSFORMERS.items():
        make_transformers(golden, changes)

"""Goldens of BEiT, by timm and transformers, and of Data2Vec's, by transformers: see `make.own`."""

import json
import pathlib
import tempfile

import torch
import transformers
from make import make_timm, perturb, picture, save
from safetensors.torch import load_file

SMALL = {
    "image_size": 12,  # transformers takes the table of another grid apart the wrong way round
    "patch_size": 4,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "id2label": {i: f"name of {i}" for i in range(11)},
}
BIASES = "use_relative_position_bias", "use_shared_relative_position_bias"
POSITIONS = "use_absolute_position_embeddings"
TRANSFORMERS = {  # golden's name: class, what its config changes
    "hf-beit": ("BeitForImageClassification", {BIASES[0]: True}),
    "hf-beit-options": (
        "BeitForImageClassification",
        {BIASES[1]: True, POSITIONS: True, "use_mean_pooling": False, "layer_norm_eps": 1e-3},
    ),
    "hf-data2vec": ("Data2VecVisionForImageClassification", {BIASES[0]: True, BIASES[1]: True}),
}


def make(golden, architecture):
    make_timm(golden, architecture, {})


def others():
    for golden, (cls, changes) in TRANSFORMERS.items():
        config = getattr(transformers, cls).config_class(**{**SMALL, **changes})
        model = perturb(getattr(transformers, cls)(config), golden)
        x = picture(3, 12, 12, golden)
        with torch.no_grad():
            features = model.base_model(x).last_hidden_state
            outputs = {"features": features, "logits": model(x).logits}
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            weights = load_file(f"{folder}/model.safetensors")
            config = json.loads(pathlib.Path(folder, "config.json").read_text())
        save(golden, config, weights, x, **outputs)

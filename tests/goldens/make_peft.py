"""Write peft.json and peft.npz: what PEFT computes, with the weights of seeded.py.

Run where peft, transformers and torch are installed:

    python tests/goldens/make_peft.py
"""

import json
import pathlib
import tempfile

import numpy as np
import peft
import seeded
import torch
import transformers
from safetensors.numpy import load_file, save_file

HERE = pathlib.Path(__file__).parent
SMALL = {
    "image_size": 12,
    "patch_size": 4,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
}
DINO = {**{k: v for k, v in SMALL.items() if k != "intermediate_size"}, "mlp_ratio": 3}
TEXT = {
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 5,
}
HEAD = {"modules_to_save": ["classifier"]}
QUERY = {"target_modules": ["q_proj", "v_proj"]}
VIT = ("ViTForImageClassification", {**SMALL, "num_labels": 3}, "ViTForImageClassification")
CASES = {  # name: class of the base, its config, class that is trained, LoraConfig
    "guide": (*VIT, {"r": 4, "lora_alpha": 16, "lora_dropout": 0.1, **QUERY, **HEAD}),
    "no_head": ("ViTModel", SMALL, VIT[2], {"r": 4, "lora_alpha": 2, **QUERY, **HEAD}),
    "rslora": (*VIT, {"r": 4, "lora_alpha": 3, "use_rslora": True, **QUERY, **HEAD}),
    "patterns": (
        *VIT,
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
            "rank_pattern": {"fc1": 3, r"layers\.0\.attention\.(q|k)_proj": 1},
            "alpha_pattern": {"fc1": 5, r".*layers\.1\.mlp\.fc2": 7, "q_proj": 1},
            **HEAD,
        },
    ),
    "bias_all": (*VIT, {"r": 2, "lora_alpha": 4, "bias": "all", **QUERY, **HEAD}),
    "bias_lora_only": (*VIT, {"r": 2, "lora_alpha": 4, "bias": "lora_only", **QUERY, **HEAD}),
    "lora_bias": (*VIT, {"r": 2, "lora_alpha": 4, "lora_bias": True, **QUERY, **HEAD}),
    "fan_in_fan_out": (*VIT, {"r": 2, "fan_in_fan_out": True, **QUERY, **HEAD}),
    "convolution": (*VIT, {"r": 2, "target_modules": ["projection", "fc1"], **HEAD}),
    "on_the_head": (*VIT, {"r": 2, "target_modules": ["q_proj", "classifier"]}),
    "deit": (
        "DeiTForImageClassificationWithTeacher",
        {**SMALL, "num_labels": 3},
        "DeiTForImageClassification",
        {"r": 2, **QUERY, **HEAD},
    ),
    "dinov2": (
        "Dinov2Model",
        {**DINO, "use_swiglu_ffn": True},
        "Dinov2ForImageClassification",
        {"r": 2, "target_modules": ["q_proj", "weights_in", "gate_proj", "down_proj"], **HEAD},
    ),
    "clip": (
        "CLIPModel",
        {"vision_config": SMALL, "text_config": TEXT, "projection_dim": 6},
        "CLIPForImageClassification",
        {"r": 2, **QUERY, **HEAD},
    ),
}


def shapes_of(arrays):
    return {key: list(value.shape) for key, value in arrays.items()}


def seed(path):
    """Fill a safetensors file with the weights of seeded.py; returns its shapes."""
    shapes = shapes_of(load_file(path))
    save_file(seeded.weights(shapes), path, metadata={"format": "pt"})
    return shapes


def make(base_cls, config, cls, options):
    base_cls, cls = getattr(transformers, base_cls), getattr(transformers, cls)
    with tempfile.TemporaryDirectory() as folder:
        base, adapter = pathlib.Path(folder, "base"), pathlib.Path(folder, "adapter")
        base_cls(base_cls.config_class(**config)).save_pretrained(base)
        base_shapes = seed(base / "model.safetensors")
        classes = {"num_labels": 5} if "modules_to_save" in options else {}

        def model():
            return cls.from_pretrained(base, ignore_mismatched_sizes=True, **classes).eval()

        wrapped = peft.get_peft_model(model(), peft.LoraConfig(**options))
        wrapped.save_pretrained(adapter)
        shapes = seed(adapter / "adapter_model.safetensors")
        written = json.loads((adapter / "adapter_config.json").read_text())
        written["base_model_name_or_path"] = "base"
        loaded = peft.PeftModel.from_pretrained(model(), adapter).eval()
        x = torch.from_numpy(seeded.picture(SMALL["image_size"])).permute(0, 3, 1, 2)
        with torch.no_grad():
            logits = loaded(x).logits
            plain = model()(x).logits
            merged = loaded.merge_and_unload()(x).logits
        assert (logits - merged).abs().max() < 1e-5
        assert (logits - plain).abs().max() > 1e-2
        case = {
            "base_config": json.loads((base / "config.json").read_text()),
            "base_shapes": base_shapes,
            "config": written,
            "shapes": shapes,
        }
    return case, logits.numpy()


def main():
    transformers.logging.set_verbosity_error()
    made = {}
    for name, case in CASES.items():
        made[name] = make(*case)
    cases = {name: case for name, (case, _) in made.items()}
    (HERE / "peft.json").write_text(json.dumps(cases) + "\n", "utf-8")
    np.savez_compressed(HERE / "peft.npz", **{name: out for name, (_, out) in made.items()})


if __name__ == "__main__":
    main()

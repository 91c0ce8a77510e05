"""Write the goldens: tiny random models of each structure, and what timm and transformers compute.

Run where timm, transformers and torch are installed (with a torchvision that fits the torch):

    python tests/goldens/make.py [FOLDER]

Each `<name>.npz` holds the config.json that the source wrote, a state dict, an input `x`, and the
source's `features`, `pooled` and `logits` for it. Tests need no torch.
"""

import importlib
import json
import pathlib
import sys
import tempfile
import zlib
from unittest import mock

import numpy as np
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv, mlp_mixer
from timm.models._hub import save_config_for_hf

import keras_vit_presets as presets

HERE = pathlib.Path(__file__).parent
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
SIZE = (8, 12)
TINY = {"img_size": SIZE, "patch_size": 4, "embed_dim": 12, "num_classes": 7}
VIT = {**TINY, "depth": 2, "num_heads": 2}


def seeded(golden):
    """A golden's own random numbers: they stay when others are added."""
    return torch.Generator().manual_seed(zlib.crc32(golden.encode()))


def perturb(model, golden):
    """Random values for all parameters, so that none is trivial; multiples of 1/1024 compress well.

    Tokens are small (standard deviation near 0.05), so that the epsilon of a norm shows.
    """
    generator = seeded(golden)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        leaves = ("weight", "gamma", "gamma_1", "gamma_2", "lambda1")
        scale = parameter.ndim == 1 and name.endswith(leaves)
        if scale or name.endswith("alpha"):  # a norm, a layer scale
            value = 1.0 + 0.2 * noise
        elif parameter.ndim == 1:
            value = 0.05 * noise
        elif name.endswith("freqs"):  # of rotations
            value = 0.5 * noise
        elif "patch_embed" in name or parameter.ndim in (3, 4):  # projection, tokens, positions
            value = 0.02 * noise
        else:
            value = 0.5 * noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(torch.round(value * 1024) / 1024)
    return model.eval()


def picture(channels, height, width, golden):
    """A batch of two normalised pictures, `(2, C, H, W)`."""
    return torch.randn(2, channels, height, width, generator=seeded(golden))


def other_size(x):
    """Pictures of another size: `(B, C, H, W) -> (B, C, W, H)`; W > H."""
    height, width = x.shape[2:]
    return torch.cat([x, x[:, :, : width - height].flip(3)], 2)[..., :height]


def save(name, config, weights, x, **outputs):
    arrays = {f"weights/{key}": value.numpy() for key, value in weights.items()}
    arrays["config"] = np.array(json.dumps(config))
    arrays["x"] = x.permute(0, 2, 3, 1).numpy()
    arrays |= {key: value.detach().numpy() for key, value in outputs.items()}
    np.savez_compressed(OUT / f"{name}.npz", **arrays)


def timm_architectures():
    """One architecture of timm for each structure of the tables: {golden's name: (the family's
    table, architecture)}. A hybrid's ResNet is too large for a golden, but for that below."""
    found = {}
    for family in presets.families().values():
        if family.name == "hybrid":
            continue
        rows = family.table["architectures"]
        published = {row.architecture: row.name for row in family.checkpoints.values()}
        for arch in sorted(rows, key=lambda arch: arch not in published):
            structure = rows[arch].get("structure", "plain")
            name = published.get(arch) or timm.list_models(f"{arch}*")[0]
            found.setdefault(f"{family.name}-{structure}", (family, name.split(".")[0]))
    return found


# model_args that change more than sizes, as third-party repositories do; and a hybrid whose ResNet
# is its stem, small enough to be stored.
OVERRIDES = {
    "hybrid-plain": ("vit_tiny_r_s16_p8_224", {"patch_size": 1}),
    "args-avg": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "args-token": ("eva_large_patch14_196", {"global_pool": "token"}),
    "args-many": (
        "vit_base_patch16_224",
        {
            "global_pool": "map",
            "class_token": False,
            "reg_tokens": 2,
            "init_values": 0.1,
            "qkv_bias": False,
            "act_layer": "gelu_tanh",
            "mlp_ratio": 2.0,
            "drop_path_rate": 0.1,
            "in_chans": 2,
        },
    ),
    "args-beit": (
        "beit_base_patch16_224",
        {"use_abs_pos_emb": True, "use_shared_rel_pos_bias": True, "global_pool": "token"},
    ),
}


def make_timm(golden, architecture, changes):
    model = perturb(timm.create_model(architecture, **{**VIT, **changes}), golden)
    x = picture(changes.get("in_chans", 3), *SIZE, golden)
    with torch.no_grad():
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        outputs = compute(model, x)
        other = other_size(x)
        if "flexi" in architecture or "radio" in architecture:
            # timm resamples these in a way of their own, when it loads.
            outputs["resized"] = loaded(architecture, weights, img_size=(12, 8))(other)
        else:
            model.set_input_size((12, 8))
            outputs["resized"] = model(other)
            model.set_input_size(SIZE)
        if "flexi" in architecture:
            outputs["dynamic"] = loaded(architecture, weights, dynamic_img_size=True)(other)
            outputs["patch2"] = loaded(architecture, weights, patch_size=2)(x)
            large = x.repeat(1, 1, 2, 2)
            resized = {"patch_size": 8, "img_size": (16, 24)}
            outputs["patch8"] = loaded(architecture, weights, **resized)(large)
            resized = {"patch_size": 8, "img_size": (16, 16)}
            outputs["patch8-square"] = loaded(architecture, weights, **resized)(large[..., :16])
    with tempfile.TemporaryDirectory() as folder:
        save_config_for_hf(model, f"{folder}/config.json")
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
    save(golden, config, weights, x, **outputs)


def loaded(architecture, weights, **changes):
    """A tiny model as timm loads it from a file of weights, for another size."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, f"{folder}/model.safetensors")
        cfg = {"file": f"{folder}/model.safetensors", "input_size": (3, *SIZE), "num_classes": 7}
        arguments = {"pretrained": True, "pretrained_cfg_overlay": cfg}
        return timm.create_model(architecture, **arguments, **{**VIT, **changes}).eval()


def make_mixer(golden, architecture):
    """A small mixer, of timm's class: its functions let no caller change width or depth."""

    def small(variant, pretrained, **arguments):
        return mlp_mixer.MlpMixer(**{**arguments, **TINY, "num_blocks": 2})

    with mock.patch.object(mlp_mixer, "_create_mixer", small):
        model = perturb(getattr(mlp_mixer, architecture)(), golden)
    x = picture(3, *SIZE, golden)
    arguments = {**{k: v for k, v in TINY.items() if k != "num_classes"}, "num_blocks": 2}
    config = {"architecture": architecture, "num_classes": 7, "model_args": arguments}
    with torch.no_grad():
        save(golden, config, model.state_dict(), x, **compute(model, x))


def compute(model, x):
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    return {"features": features, "pooled": pooled, "logits": model(x)}


# transformers. A trap in the width of the MLP: int(22 * (15 / 22)) is 14.
SMALL = {
    "image_size": [8, 12],
    "patch_size": 4,
    "hidden_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 15,
    "id2label": {i: f"name of {i}" for i in range(11)},
}
TRANSFORMERS = {  # golden's name: class, what its config changes
    "hf-vit": ("ViTForImageClassification", {}),
    "hf-vit-options": (
        "ViTForImageClassification",
        {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-3, "qkv_bias": False},
    ),
    "hf-vit-gelu_new": ("ViTForImageClassification", {"hidden_act": "gelu_new"}),
    "hf-vit-model": ("ViTModel", {}),
    "hf-vit-model-no_pooler": ("ViTModel", {}),
    "hf-deit-teacher": ("DeiTForImageClassificationWithTeacher", {}),
    "hf-deit": ("DeiTForImageClassification", {}),
    "hf-deit-model": ("DeiTModel", {}),
}


def make_transformers(golden, cls, changes):
    config = getattr(transformers, cls).config_class(**{**SMALL, **changes})
    options = {"add_pooling_layer": False} if golden.endswith("no_pooler") else {}
    model = perturb(getattr(transformers, cls)(config, **options), golden)
    x = picture(3, *SMALL["image_size"], golden)
    trunk = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        output = model(x)
        outputs = {"features": trunk(x).last_hidden_state}
        if "ForImageClassification" in cls:
            outputs["logits"] = output.logits
        else:
            token = output.last_hidden_state[:, 0]
            outputs["pooled"] = token if output.pooler_output is None else output.pooler_output
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(f"{folder}/model.safetensors")
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        save(golden, config, weights, x, **outputs)
        if golden == "hf-vit":  # as 5.x names them in memory
            save("hf-vit-v5", config, model.state_dict(), x, **outputs)


# preprocessor_config.json: {name: (class, config)}; of both generations.
NEW_VIT = {"size": {"height": 16, "width": 16}, "resample": 2}
MEAN = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS = {
    "vit": ("ViTImageProcessor", NEW_VIT),
    "vit-imagenet": ("ViTImageProcessor", {**NEW_VIT, **MEAN, "resample": 3}),
    "vit-lanczos": ("ViTImageProcessor", {**NEW_VIT, "resample": 1}),
    "vit-raw": ("ViTImageProcessor", {**NEW_VIT, "do_rescale": False, "do_normalize": False}),
    "vit-unnormalized": ("ViTImageProcessor", {**NEW_VIT, "do_normalize": False}),
    "vit-old": ("ViTFeatureExtractor", {"size": 16, "resample": 2, **MEAN}),
    "deit": (
        "DeiTImageProcessor",
        {"size": {"height": 21, "width": 21}, "crop_size": {"height": 16, "width": 16}, **MEAN},
    ),
    "deit-old": ("DeiTFeatureExtractor", {"size": 19, "crop_size": 16, "resample": 3, **MEAN}),
    "clip": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 19}, "crop_size": {"height": 16, "width": 16}, **MEAN},
    ),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 16}, "resample": 3, **MEAN}),
    "convnext-old": ("ConvNextFeatureExtractor", {"size": 16, "resample": 3, "crop_pct": 0.7}),
}


def make_processors():
    """What transformers' processors (those by PIL) make of one random picture, `(H, W, C)`."""
    image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype="uint8")
    configs, arrays = {}, {"image": image}
    for name, (cls, changes) in PROCESSORS.items():
        old = cls.endswith("FeatureExtractor")
        processor = getattr(transformers, cls.replace("FeatureExtractor", "ImageProcessor") + "Pil")
        processor = processor(**changes)
        if old:  # as transformers 4.18 wrote it
            configs[name] = {"feature_extractor_type": cls, "do_normalize": True, **changes}
            configs[name] |= {"do_resize": True, "do_center_crop": True} if "D" in cls else {}
        else:
            configs[name] = json.loads(processor.to_json_string())
            configs[name]["image_processor_type"] = cls
        pixels = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
        arrays[name] = np.moveaxis(pixels, 0, -1).astype("float32")
    np.savez_compressed(OUT / "processors.npz", **arrays)
    return configs


def make_functions():
    """What timm's own functions make of tables, kernels and channels, in torch's axis order."""
    random = torch.Generator().manual_seed(0)
    table = torch.randn(1, 2 + 3 * 4, 5, generator=random)
    kernel = torch.randn(5, 3, 4, 4, generator=random)
    arrays = {"table": table, "kernel": kernel}
    for size in ((5, 8), (2, 3), (6, 2), (1, 7)):
        name = "x".join(map(str, size))
        options = {"new_size": size, "old_size": (3, 4), "num_prefix_tokens": 2}
        arrays[f"table-{name}"] = resample_abs_pos_embed(table, **options)
        arrays[f"kernel-{name}"] = resample_patch_embed(kernel, list(size))
        plain = {"interpolation": "bilinear", "antialias": False}
        arrays[f"table-bilinear-{name}"] = resample_abs_pos_embed(table, **options, **plain)
        arrays[f"kernel-bilinear-{name}"] = resample_patch_embed(kernel, list(size), **plain)
        plain["align_corners"] = True
        arrays[f"table-bilinear_corners-{name}"] = resample_abs_pos_embed(table, **options, **plain)
    for channels in (1, 2, 4, 7):
        arrays[f"channels-{channels}"] = adapt_input_conv(channels, kernel)
    np.savez_compressed(OUT / "functions.npz", **{k: v.numpy() for k, v in arrays.items()})


def write_json(name, value):
    (OUT / name).write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def own(family):
    """The module of a family whose goldens are made in a way of its own: `make(golden,
    architecture)`, and `others()` for those of other sources than timm."""
    return importlib.import_module(f"make_{family}")


def main():
    for golden, (family, architecture) in sorted(timm_architectures().items()):
        if (HERE / f"make_{family.name}.py").is_file():
            own(family.name).make(golden, architecture)
        elif family.timm_module == "mlp_mixer.py":
            make_mixer(golden, architecture)
        else:
            make_timm(golden, architecture, {})
    for golden, (architecture, changes) in OVERRIDES.items():
        make_timm(golden, architecture, changes)
    for golden, case in TRANSFORMERS.items():
        make_transformers(golden, *case)
    for path in sorted(HERE.glob("make_*.py")):
        own(path.stem.removeprefix("make_")).others()
    write_json("processors.json", make_processors())
    make_functions()


if __name__ == "__main__":
    main()

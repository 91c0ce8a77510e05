"""Checkpoints of a few kilobytes, as the files of a repository: `{name: bytes}`."""

import json

import numpy as np
from safetensors.numpy import load, save

WIDTH, PATCH, SIZE, CLASSES = 8, 4, 8, 3
ROWS = (SIZE // PATCH) ** 2 + 1


def _layer(key, *shape):
    return {f"{key}.weight": shape, f"{key}.bias": shape[:1]}


def timm_shapes(depth=1):
    """Keys and shapes of a timm ViT."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, ROWS, WIDTH)}
    shapes |= _layer("patch_embed.proj", WIDTH, 3, PATCH, PATCH)
    for i in range(depth):
        shapes |= _layer(f"blocks.{i}.norm1", WIDTH) | _layer(f"blocks.{i}.norm2", WIDTH)
        shapes |= _layer(f"blocks.{i}.attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= _layer(f"blocks.{i}.attn.proj", WIDTH, WIDTH)
        shapes |= _layer(f"blocks.{i}.mlp.fc1", 2 * WIDTH, WIDTH)
        shapes |= _layer(f"blocks.{i}.mlp.fc2", WIDTH, 2 * WIDTH)
    return shapes | _layer("norm", WIDTH) | _layer("head", CLASSES, WIDTH)


def transformers_shapes():
    """Keys and shapes of a transformers ViTForImageClassification with one block."""
    shapes = {
        "vit.embeddings.cls_token": (1, 1, WIDTH),
        "vit.embeddings.position_embeddings": (1, ROWS, WIDTH),
    }
    block = "vit.encoder.layer.0"
    shapes |= _layer("vit.embeddings.patch_embeddings.projection", WIDTH, 3, PATCH, PATCH)
    for name in ("query", "key", "value"):
        shapes |= _layer(f"{block}.attention.attention.{name}", WIDTH, WIDTH)
    shapes |= _layer(f"{block}.attention.output.dense", WIDTH, WIDTH)
    shapes |= _layer(f"{block}.intermediate.dense", 2 * WIDTH, WIDTH)
    shapes |= _layer(f"{block}.output.dense", WIDTH, 2 * WIDTH)
    shapes |= _layer(f"{block}.layernorm_before", WIDTH) | _layer(f"{block}.layernorm_after", WIDTH)
    return shapes | _layer("vit.layernorm", WIDTH) | _layer("classifier", CLASSES, WIDTH)


def torchvision_shapes(width=64, patch=7, size=28, channels=1, classes=10):
    """Keys and shapes of a torchvision VisionTransformer with one block."""
    block, rows = "encoder.layers.encoder_layer_0", (size // patch) ** 2 + 1
    shapes = {"class_token": (1, 1, width), "encoder.pos_embedding": (1, rows, width)}
    shapes |= _layer("conv_proj", width, channels, patch, patch) | _layer("encoder.ln", width)
    shapes |= _layer(f"{block}.ln_1", width) | _layer(f"{block}.ln_2", width)
    shapes[f"{block}.self_attention.in_proj_weight"] = (3 * width, width)
    shapes[f"{block}.self_attention.in_proj_bias"] = (3 * width,)
    shapes |= _layer(f"{block}.self_attention.out_proj", width, width)
    shapes |= _layer(f"{block}.mlp.0", 8, width) | _layer(f"{block}.mlp.3", width, 8)
    return shapes | _layer("heads.head", classes, width)


def tensors(shapes, seed=0, dtype="float32"):
    """Random tensors of those shapes."""
    rng = np.random.default_rng(seed)
    return {key: rng.normal(0, 0.1, shape).astype(dtype) for key, shape in shapes.items()}


def timm_config(depth=1):
    return {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": CLASSES,
        "num_features": WIDTH,
        "global_pool": "token",
        "model_args": {
            "img_size": SIZE,
            "patch_size": PATCH,
            "embed_dim": WIDTH,
            "depth": depth,
            "num_heads": 2,
            "mlp_ratio": 2,
        },
        "pretrained_cfg": {
            "tag": "tiny",
            "input_size": [3, SIZE, SIZE],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": CLASSES,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def transformers_config():
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "image_size": SIZE,
        "patch_size": PATCH,
        "num_channels": 3,
        "qkv_bias": True,
        "id2label": {"0": "rose", "1": "tulip", "2": "daisy"},
        "label2id": {"rose": 0, "tulip": 1, "daisy": 2},
    }


def processor_config():
    return {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "ViTImageProcessor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": SIZE, "width": SIZE},
    }


def timm_files(seed=0, depth=1):
    """A repository in timm's layout."""
    weights = save(tensors(timm_shapes(depth), seed), metadata={"format": "pt"})
    return {
        "config.json": json.dumps(timm_config(depth)).encode(),
        "model.safetensors": weights,
    }


def transformers_files(seed=0):
    """A repository in transformers' layout."""
    weights = save(tensors(transformers_shapes(), seed), metadata={"format": "pt"})
    return {
        "config.json": json.dumps(transformers_config()).encode(),
        "preprocessor_config.json": json.dumps(processor_config()).encode(),
        "model.safetensors": weights,
    }


def write(folder, files):
    """The files as a directory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def same(tensors, content):
    """Whether tensors are those of a safetensors file's content."""
    wanted = load(content)
    return tensors.keys() == wanted.keys() and all(
        np.array_equal(tensors[key].read(), wanted[key]) for key in wanted
    )

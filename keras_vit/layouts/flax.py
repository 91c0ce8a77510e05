"""The `.npz` files of https://github.com/google-research/vision_transformer: ViT, hybrid, Mixer.

The activation is GELU's tanh form, as flax' `nn.gelu` computes it; timm's rows for the same weights
take the exact one. Hybrids have timm's epsilons in the ResNet. Pixels differ from google-research's
where images shrink: the resize here is antialiased.
"""

import functools
import math
import re

import numpy as np

from keras_vit import checks
from keras_vit.layouts import infer
from keras_vit.layouts.infer import shape_of
from keras_vit.layouts.npz import read_npz
from keras_vit.layouts.prepare import mapped

# flax' key, regular expression = timm's. Attention's three stay apart: JOINED says how they meet.
_BLOCK = r"Transformer/encoderblock_(\d+)"
_UNIT = r"(stages\.\d+\.blocks\.\d+)"
KEYS = {
    r"cls": r"cls_token",
    r"Transformer/posembed_input/pos_embedding": r"pos_embed",
    r"embedding/(\w+)": r"patch_embed.proj.\1",
    rf"{_BLOCK}/LayerNorm_0/(\w+)": r"blocks.\1.norm1.\2",
    rf"{_BLOCK}/LayerNorm_2/(\w+)": r"blocks.\1.norm2.\2",
    rf"{_BLOCK}/MultiHeadDotProductAttention_1/(query|key|value)/(\w+)": r"blocks.\1.attn.\2.\3",
    rf"{_BLOCK}/MultiHeadDotProductAttention_1/out/(\w+)": r"blocks.\1.attn.proj.\2",
    rf"{_BLOCK}/MlpBlock_3/Dense_0/(\w+)": r"blocks.\1.mlp.fc1.\2",
    rf"{_BLOCK}/MlpBlock_3/Dense_1/(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"Transformer/encoder_norm/(\w+)": r"norm.\1",
    r"(pre_logits|head)/(\w+)": r"\1.\2",
    r"conv_root/(\w+)": r"patch_embed.backbone.stem.conv.\1",
    r"gn_root/(\w+)": r"patch_embed.backbone.stem.norm.\1",
    rf"{_UNIT}/conv(\d)/(\w+)": r"patch_embed.backbone.\1.conv\2.\3",
    rf"{_UNIT}/gn(\d)/(\w+)": r"patch_embed.backbone.\1.norm\2.\3",
    rf"{_UNIT}/conv_proj/(\w+)": r"patch_embed.backbone.\1.downsample.conv.\2",
    rf"{_UNIT}/gn_proj/(\w+)": r"patch_embed.backbone.\1.downsample.norm.\2",
    r"stem/(\w+)": r"stem.proj.\1",
    r"MixerBlock_(\d+)/LayerNorm_0/(\w+)": r"blocks.\1.norm1.\2",
    r"MixerBlock_(\d+)/LayerNorm_1/(\w+)": r"blocks.\1.norm2.\2",
    r"MixerBlock_(\d+)/token_mixing/Dense_0/(\w+)": r"blocks.\1.mlp_tokens.fc1.\2",
    r"MixerBlock_(\d+)/token_mixing/Dense_1/(\w+)": r"blocks.\1.mlp_tokens.fc2.\2",
    r"MixerBlock_(\d+)/channel_mixing/Dense_0/(\w+)": r"blocks.\1.mlp_channels.fc1.\2",
    r"MixerBlock_(\d+)/channel_mixing/Dense_1/(\w+)": r"blocks.\1.mlp_channels.fc2.\2",
    r"pre_head_layer_norm/(\w+)": r"norm.\1",
}
JOINED = {"blocks.*.attn.qkv": [f"blocks.*.attn.{part}" for part in ("query", "key", "value")]}
IMAGES = {  # google-research's evaluation: both edges to the size
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "crop_pct": 1.0,
    "crop_mode": "squash",
    "interpolation": "bilinear",
}


def read(path):
    """The tensors under flax' keys."""
    return read_npz(path)


def translated(raw):
    """The tensors under timm's keys, in torch's axis order; what is unknown keeps its key."""
    found = {}
    for key, tensor in raw.items():
        tensor = mapped(tensor, functools.partial(torch_order, key))
        ours = infer.timm_key(_of_stage(key), KEYS)
        found[key if ours == _of_stage(key) else ours] = tensor
    if not any(".stages." in key for key in found):  # a stem alone has no name of its own
        found = {k.replace(".backbone.stem.", ".backbone."): t for k, t in found.items()}
    return found


def _of_stage(key):
    """`block1/unit2/...` -> `stages.0.blocks.1/...`"""
    return re.sub(
        r"^block(\d+)/unit(\d+)", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}", key
    )


def torch_order(key, array):
    """An array of flax in torch's axis order, heads merged: `(*s, in, out) -> (out, in, *s)`."""
    leaf = key.rpartition("/")[2]
    if "DotProductAttention" in key and array.ndim > 1:
        if leaf == "bias":
            return array.ravel()
        count = 2 if "/out/" in key else 1  # axes of the input: (H, d, D), or (D, H, d)
        rows, columns = math.prod(array.shape[:count]), math.prod(array.shape[count:])
        return array.reshape(rows, columns).T
    if leaf == "kernel" and array.ndim > 1:
        return np.moveaxis(array, (-1, -2), (0, 1))
    return array.ravel() if leaf in ("scale", "bias") else array


def spec_of(file, tensors):
    """The `Spec` that follows from the tensors."""
    return (_mixer if "stem.proj.weight" in tensors else _vit)(file, tensors)


def _vit(file, tensors):
    options, side = infer.vit(file, tensors)
    query = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    options |= {"num_heads": shape_of(query, 3, file, file.raw)[1], "activation": "gelu_tanh"}
    family, stride = "vit", options["patch_size"]
    if "conv_root/kernel" in file.raw:
        family = "hybrid"
        units = [
            re.match(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", k) for k in tensors
        ]
        units = {(int(m[1]), int(m[2])) for m in units if m}
        count = len({stage for stage, _ in units})
        options["stages"] = tuple(sum(u[0] == stage for u in units) for stage in range(count))
        options["in_channels"] = shape_of("conv_root/kernel", 4, file, file.raw)[2]
        stride *= 4 * 2 ** max(count - 1, 0)
    options["image_size"] = side * stride
    return infer.spec(family, file, tensors, options, IMAGES, JOINED)


def _mixer(file, tensors):
    width, channels, patch, _ = shape_of("stem.proj.weight", 4, file, tensors)
    between, tokens = shape_of("blocks.0.mlp_tokens.fc1.weight", 2, file, tensors)
    hidden = shape_of("blocks.0.mlp_channels.fc1.weight", 2, file, tensors)[0]
    options = {
        "image_size": infer.side_of(tokens, "Tokens") * patch,
        "patch_size": patch,
        "in_channels": channels,
        "embed_dim": width,
        "depth": infer.depth_of(tensors),
        "token_ratio": checks.ratio(between, width),
        "mlp_ratio": checks.ratio(hidden, width),
        "activation": "gelu_tanh",
    }
    return infer.spec("mixer", file, tensors, options, IMAGES, JOINED)

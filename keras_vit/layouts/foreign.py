"""Files of weights without a config.json: the architecture follows from their tensors.

Two sources: the `.npz` files of https://github.com/google-research/vision_transformer (ViT, hybrid,
Mixer) and state dicts of torchvision's VisionTransformer, saved as safetensors.
"""

import functools
import math
import pathlib
import re

import numpy as np

from keras_vit import checks, hub, presets
from keras_vit.layouts.npz import read_npz
from keras_vit.layouts.prepare import mapped
from keras_vit.layouts.spec import checked, spec_of

SUFFIXES = (".npz", ".safetensors")
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
EPS = 1e-6  # of all three sources
# flax' name, regular expression = timm's. Attention's three stay apart: JOINED says how they meet.
_BLOCK = r"Transformer/encoderblock_(\d+)"
_UNIT = r"(stages\.\d+\.blocks\.\d+)"
FLAX = {
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
LEAVES = {"kernel": "weight", "scale": "weight"}
JOINED = {"blocks.*.attn.qkv": [f"blocks.*.attn.{part}" for part in ("query", "key", "value")]}
_LAYER = r"encoder\.layers\.encoder_layer_(\d+)"
TORCHVISION = {
    r"class_token": r"cls_token",
    r"encoder\.pos_embedding": r"pos_embed",
    r"conv_proj\.(\w+)": r"patch_embed.proj.\1",
    rf"{_LAYER}\.ln_(\d)\.(\w+)": r"blocks.\1.norm\2.\3",
    rf"{_LAYER}\.self_attention\.in_proj_(\w+)": r"blocks.\1.attn.qkv.\2",
    rf"{_LAYER}\.self_attention\.out_proj\.(\w+)": r"blocks.\1.attn.proj.\2",
    rf"{_LAYER}\.mlp\.(?:0|linear_1)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    rf"{_LAYER}\.mlp\.(?:3|linear_2)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"encoder\.ln\.(\w+)": r"norm.\1",
    r"heads\.(head|pre_logits)\.(\w+)": r"\1.\2",
}
TORCHVISION_HEADS = {768: 12, 1024: 16, 1280: 16}


class File:
    """One file of weights, in the place of a `hub.Repository`."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def __str__(self):
        return str(self.path)

    uri = property(__str__)

    @functools.cached_property
    def raw(self):
        """The tensors under the file's own keys."""
        if self.path.suffix == ".npz":
            return read_npz(self.path)
        return hub.read_safetensors(self.path, "Copy or save it again.")

    def tensors(self):
        """The tensors under timm's keys, in torch's axis order; what is unknown keeps its key."""
        flax = self.path.suffix == ".npz"
        found = {}
        for key, tensor in self.raw.items():
            if flax:
                tensor = mapped(tensor, functools.partial(torch_order, key))
            found[timm_key(key, FLAX if flax else TORCHVISION)] = tensor
        if flax and not any(
            ".stages." in key for key in found
        ):  # a stem alone has no name of its own
            found = {k.replace(".backbone.stem.", ".backbone."): t for k, t in found.items()}
        return found


def timm_key(key, table):
    """A key of the file in timm's words, or as it is."""
    numbered = re.sub(
        r"^block(\d+)/unit(\d+)", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}", key
    )
    for pattern, ours in table.items():
        match = re.fullmatch(pattern, numbered)
        if match:
            *layers, leaf = match.expand(ours).split(".")
            return ".".join([*layers, LEAVES.get(leaf, leaf)])
    return key


def torch_order(key, array):
    """An array of flax in torch's axis order, heads merged: `(*s, in, out) -> (out, in, *s)`."""
    leaf = key.rpartition("/")[2]
    if "DotProductAttention" in key and array.ndim > 1:
        if "/out/" in key:  # (H, d, D)
            return array.reshape(-1, array.shape[-1]).T
        return array.reshape(array.shape[0], -1).T if leaf == "kernel" else array.ravel()
    if leaf == "kernel" and array.ndim > 1:
        return np.moveaxis(array, (-1, -2), (0, 1))
    return array.ravel() if leaf in ("scale", "bias") else array


def spec_of_file(path):
    """The `Spec` of a file of weights.

    Of an `.npz` file the activation is GELU's tanh form, as flax' `nn.gelu` computes it; timm's
    rows for the same weights take the exact one. Hybrids have timm's epsilons in the ResNet. Pixels
    differ from google-research's where images shrink: the resize here is antialiased.

    Raises:
        ValueError: tensors of another layout, or from which no architecture follows.
    """
    file = File(path)
    tensors = file.tensors()
    try:
        if file.path.suffix == ".npz":
            return _mixer(file, tensors) if "stem.proj.weight" in tensors else _flax(file, tensors)
        if "conv_proj.weight" in file.raw:
            return _torchvision(file, tensors)
    except checks.WrongValue as error:
        raise ValueError(f"{path} describes no model: {error}") from error
    raise ValueError(
        f"{path} holds no VisionTransformer of torchvision, the only layout whose architecture "
        "follows from its tensors (timm's and transformers' do not say heads, epsilon, activation)."
        f" Put its config.json beside it, name it {hub.WEIGHTS} and load the directory. "
        f"{_found(file)}"
    )


def _found(file):
    return f"Found: {', '.join(list(file.raw)[:6]) or 'nothing'}."


def _shape(file, tensors, key, rank):
    shape = tensors[key].shape if key in tensors else None
    if shape is None or len(shape) != rank or 0 in shape:
        raise ValueError(
            f"{file} holds no model that is known: its architecture follows from {key}, a tensor "
            f"of {rank} axes. Received: {shape or 'no such tensor'}. "
            f"{_found(file)}"
        )
    return shape


def _depth(tensors):
    return len({k.split(".")[1] for k in tensors if re.match(r"blocks\.\d+\.", k)})


def _side(count, what):
    """The edge of the square grid of that many patches."""
    side = math.isqrt(max(count, 0))
    if not side or side * side != count:
        raise checks.WrongValue(
            f"{what} must be those of a square image. Received: {count} patches"
        )
    return side


def _vit(file, tensors):
    """What follows from the tensors of any ViT: hyper-parameters; the grid's edge."""
    width, channels, patch, _ = _shape(file, tensors, "patch_embed.proj.weight", 4)
    hidden = _shape(file, tensors, "blocks.0.mlp.fc1.weight", 2)[0]
    side = _side(_shape(file, tensors, "pos_embed", 3)[1] - 1, "Positions")
    options = {
        "patch_size": patch,
        "in_channels": channels,
        "embed_dim": width,
        "depth": _depth(tensors),
        "mlp_ratio": checks.ratio(hidden, width),
        "norm_eps": EPS,
    }
    return options, side


def _head(file, tensors):
    """Width of the head, and of a representation layer before it.

    The ViT paper's own ImageNet-21k files have such a layer, but a head of zeros: it is left out.
    """
    classes = tensors["head.bias"].shape[0] if "head.bias" in tensors else 0
    representation = None
    if "pre_logits.weight" in tensors:
        representation = _shape(file, tensors, "pre_logits.weight", 2)[0]
        if classes and "head.weight" in tensors and not tensors["head.weight"].read().any():
            classes = 0
    return {"num_classes": classes}, {"representation_size": representation}


def _flax(file, tensors):
    options, side = _vit(file, tensors)
    query = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    options |= {"num_heads": _shape(file, file.raw, query, 3)[1], "activation": "gelu_tanh"}
    family, stride = "vit", options["patch_size"]
    if "conv_root/kernel" in file.raw:
        family = "hybrid"
        units = [
            re.match(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.", k) for k in tensors
        ]
        units = {(int(m[1]), int(m[2])) for m in units if m}
        count = len({stage for stage, _ in units})
        options["stages"] = tuple(sum(u[0] == stage for u in units) for stage in range(count))
        options["in_channels"] = _shape(file, file.raw, "conv_root/kernel", 4)[2]
        stride *= 4 * 2 ** max(count - 1, 0)
    return _spec(family, file, options, side * stride, _head(file, tensors), _squashed)


def _mixer(file, tensors):
    width, channels, patch, _ = _shape(file, tensors, "stem.proj.weight", 4)
    between, tokens = _shape(file, tensors, "blocks.0.mlp_tokens.fc1.weight", 2)
    hidden = _shape(file, tensors, "blocks.0.mlp_channels.fc1.weight", 2)[0]
    options = {
        "patch_size": patch,
        "in_channels": channels,
        "embed_dim": width,
        "depth": _depth(tensors),
        "token_ratio": checks.ratio(between, width),
        "mlp_ratio": checks.ratio(hidden, width),
        "activation": "gelu_tanh",
    }
    size = _side(tokens, "Tokens") * patch
    return _spec("mixer", file, options, size, _head(file, tensors), _squashed)


def _torchvision(file, tensors):
    options, side = _vit(file, tensors)
    width = options["embed_dim"]
    heads = TORCHVISION_HEADS.get(width, width // 64)
    if not heads or width % heads:
        raise ValueError(
            f"{file}: torchvision's models have heads of 64 numbers, which do not divide its "
            f"width. Received: {width}"
        )
    options |= {"num_heads": heads, "activation": "gelu"}
    size = side * options["patch_size"]
    return _spec("vit", file, options, size, _head(file, tensors), _torchvision_images)


def _squashed(options):
    """google-research's evaluation: both edges to the size, bilinear."""
    return {**HALF, "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}


def _torchvision_images(options):
    """`ImageClassification` as torchvision's weights set it: 256 -> 224, for ViT-L/16 242 -> 224.

    Those above 224 pixels are SWAG's: bicubic, uncropped. The `IMAGENET1K_SWAG_LINEAR_V1` of 224
    pixels are, too, but have the tensors of the others, so they cannot be told apart.
    """
    size = options["image_size"]
    resize = 242 if (options["embed_dim"], options["patch_size"]) == (1024, 16) else 256
    swag = size > 224
    return {
        **IMAGENET,
        "crop_pct": 1.0 if swag else 224 / resize,
        "crop_mode": "center",
        "interpolation": "bicubic" if swag else "bilinear",
    }


def _spec(family, file, options, size, head, images):
    classes, head = head
    options = checked(family, {**options, "image_size": size})
    table = presets.families()[family]
    channels = options["in_channels"]
    if channels != 3:
        raise checks.WrongValue(f"images must have 3 channels. Received: {channels}")
    found = spec_of(
        family,
        options,
        images={"image_size": size, **images(options)},
        source=file,
        names=JOINED if file.path.suffix == ".npz" else None,
        ignore=() if classes["num_classes"] else ("head.*",),
        name=file.path.stem,
        **classes,
    )
    found.head |= head if table["class"] != "MLPMixer" else {}
    return found

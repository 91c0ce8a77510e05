"""Write spellings.json and spellings.npz: what each source computes with the weights of seeded.py.

Run where timm, transformers and torch are installed (with a torchvision that fits the torch):

    python tests/goldens/make_spellings.py

Each source reads a file under its own keys: transformers by from_pretrained, timm the .npz files of
google-research by load_pretrained. Two are not to be had so: Mixer's .npz and torchvision's state
dict, which a torch module with torchvision's names and forward pass reads.
"""

import functools
import json
import pathlib
import tempfile

import numpy as np
import seeded
import timm
import torch
import transformers
from safetensors.numpy import load_file, save_file
from timm.models import vision_transformer_hybrid
from torch import nn

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
BOTH = {"vision_config": SMALL, "text_config": TEXT}
LABELS = {"num_labels": 5}
TRANSFORMERS = {  # golden's name: class, config
    "vit_msn": ("ViTMSNForImageClassification", {**SMALL, **LABELS}),
    "vit_msn-model": ("ViTMSNModel", SMALL),
    "vit_mae": ("ViTMAEForPreTraining", {**SMALL, "mask_ratio": 0.0, "decoder_hidden_size": 8,
                "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
                "decoder_intermediate_size": 8}),
    "dinov2": ("Dinov2ForImageClassification", {**DINO, **LABELS}),
    "dinov2-model": ("Dinov2Model", DINO),
    "dinov2-swiglu": ("Dinov2ForImageClassification", {**DINO, **LABELS, "use_swiglu_ffn": True}),
    "dinov2_with_registers": (
        "Dinov2WithRegistersForImageClassification", {**DINO, **LABELS, "num_register_tokens": 3}
    ),
    "dinov2_with_registers-swiglu": (
        "Dinov2WithRegistersModel", {**DINO, "num_register_tokens": 1, "use_swiglu_ffn": True}
    ),
    "clip": ("CLIPModel", {**BOTH, "projection_dim": 6}),
    "clip-class": ("CLIPForImageClassification", {**BOTH, **LABELS}),
    "clip_vision_model": ("CLIPVisionModel", SMALL),
    "clip_vision_model-gelu": ("CLIPVisionModel", {**SMALL, "hidden_act": "gelu"}),
    "clip_vision_model-projection": (
        "CLIPVisionModelWithProjection", {**SMALL, "projection_dim": 7}
    ),
    "siglip": ("SiglipModel", BOTH),
    "siglip-class": ("SiglipForImageClassification", {**BOTH, **LABELS}),
    "siglip_vision_model": ("SiglipVisionModel", SMALL),
}  # fmt: skip


def shapes_of(arrays):
    return {key: list(value.shape) for key, value in arrays.items()}


def make_transformers(name, cls, config):
    """The golden of one class: config.json, shapes of its file, features and logits."""
    cls = getattr(transformers, cls)
    with tempfile.TemporaryDirectory() as folder:
        cls(cls.config_class(**config)).save_pretrained(folder)
        file = pathlib.Path(folder, "model.safetensors")
        shapes = shapes_of(load_file(file))
        save_file(seeded.weights(shapes), file, metadata={"format": "pt"})
        model = cls.from_pretrained(folder).eval()
        written = json.loads(pathlib.Path(folder, "config.json").read_text())
    x = torch.from_numpy(seeded.picture(SMALL["image_size"])).permute(0, 3, 1, 2)
    with torch.no_grad():
        features, outputs = run_transformers(model, name, x)
    return {"config": written, "shapes": shapes}, {"features": features, "outputs": outputs}


def run_transformers(model, name, x):
    """(tokens of the trunk, what a classifier of ours gives)"""
    if name == "vit_mae":
        order = torch.arange(9.0).expand(2, 9)  # nothing is masked, nothing shuffled
        tokens = model.vit(x, noise=order).last_hidden_state
        return tokens, tokens[:, 0]
    trunk = getattr(model, "vision_model", getattr(model, model.base_model_prefix, model))
    output = trunk(x)
    tokens = output.last_hidden_state
    if name in (
        "clip",
        "clip_vision_model",
        "clip_vision_model-gelu",
        "clip_vision_model-projection",
    ):
        tokens = trunk.post_layernorm(tokens)
    if "ForImageClassification" in type(model).__name__:
        return tokens, model(x).logits
    if name == "clip":
        return tokens, model.visual_projection(output.pooler_output)
    if name == "clip_vision_model-projection":
        return tokens, model(x).image_embeds
    pooled = getattr(output, "pooler_output", None)
    return tokens, tokens[:, 0] if pooled is None else pooled


# google-research's .npz files.
def norm(name, width):
    return {f"{name}/scale": [width], f"{name}/bias": [width]}


def dense(name, *shape):
    return {f"{name}/kernel": list(shape), f"{name}/bias": [shape[-1]]}


def flax_vit(width, heads, hidden, tokens, kernel, classes=5):
    shapes = {"cls": [1, 1, width], **dense("embedding", *kernel, width)}
    shapes["Transformer/posembed_input/pos_embedding"] = [1, 1 + tokens, width]
    size = width // heads
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        shapes |= norm(f"{block}/LayerNorm_0", width) | norm(f"{block}/LayerNorm_2", width)
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = [width, heads, size]
            shapes[f"{attention}/{part}/bias"] = [heads, size]
        shapes |= dense(f"{attention}/out", heads, size, width)
        shapes |= dense(f"{block}/MlpBlock_3/Dense_0", width, hidden)
        shapes |= dense(f"{block}/MlpBlock_3/Dense_1", hidden, width)
    return shapes | norm("Transformer/encoder_norm", width) | dense("head", width, classes)


def flax_stages(stages):
    shapes = {"conv_root/kernel": [7, 7, 3, 64], **norm("gn_root", 64)}
    width = 64
    for stage, depth in enumerate(stages):
        out = 256 * 2**stage
        for i in range(depth):
            unit = f"block{stage + 1}/unit{i + 1}"
            sizes = ((1, width, out // 4), (3, out // 4, out // 4), (1, out // 4, out))
            for n, (edge, *channels) in enumerate(sizes):
                shapes[f"{unit}/conv{n + 1}/kernel"] = [edge, edge, *channels]
                shapes |= norm(f"{unit}/gn{n + 1}", channels[1])
            if i == 0:
                shapes[f"{unit}/conv_proj/kernel"] = [1, 1, width, out]
                shapes |= norm(f"{unit}/gn_proj", out)
            width = out
    return shapes


def flax_mixer(width, between, hidden, tokens, patch, classes=5):
    shapes = dense("stem", patch, patch, 3, width)
    for i in range(2):
        block = f"MixerBlock_{i}"
        shapes |= norm(f"{block}/LayerNorm_0", width) | norm(f"{block}/LayerNorm_1", width)
        shapes |= dense(f"{block}/token_mixing/Dense_0", tokens, between)
        shapes |= dense(f"{block}/token_mixing/Dense_1", between, tokens)
        shapes |= dense(f"{block}/channel_mixing/Dense_0", width, hidden)
        shapes |= dense(f"{block}/channel_mixing/Dense_1", hidden, width)
    return shapes | norm("pre_head_layer_norm", width) | dense("head", width, classes)


TINY = {"embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_ratio": 2.5, "num_classes": 5}


def run_timm(model, size):
    x = torch.from_numpy(seeded.picture(size)).permute(0, 3, 1, 2)
    with torch.no_grad():
        return {"features": model.forward_features(x), "outputs": model(x)}


def read_npz(model, shapes):
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/a.npz", **seeded.weights(shapes))
        model.eval().load_pretrained(f"{folder}/a.npz")
    return model


def timm_vit(act, **options):
    return timm.models.VisionTransformer(
        img_size=12, patch_size=4, act_layer=act, **{**TINY, **options}
    )


def timm_hybrid(stages, size, patch, **options):
    """A small hybrid of timm, with the ResNet of its own."""
    backbone = vision_transformer_hybrid._resnetv2(stages)
    embed = functools.partial(vision_transformer_hybrid.HybridEmbed, backbone=backbone)
    return timm.models.VisionTransformer(
        img_size=size, patch_size=patch, embed_layer=embed, **{**TINY, **options}
    )


def make_flax():
    """The goldens of .npz files: {name: ({"shapes"}, arrays)}."""
    vit = flax_vit(12, 3, 30, 9, (4, 4, 3))
    made = {"npz-vit": (vit, run_timm(read_npz(timm_vit("gelu_tanh"), vit), 12))}
    for name, stages, size, patch in (("npz-r", (), 32, 2), ("npz-r50", (1, 2), 32, 2)):
        width = 256 * 2 ** (len(stages) - 1) if stages else 64
        cells = size // 4 // 2 ** max(len(stages) - 1, 0) // patch
        shapes = flax_vit(12, 3, 30, cells**2, (patch, patch, width)) | flax_stages(stages)
        model = timm_hybrid(stages, size, patch, act_layer="gelu_tanh")
        made[name] = (shapes, run_timm(read_npz(model, shapes), size))
    shapes = flax_mixer(12, 7, 30, 9, 4)
    made["npz-mixer"] = (shapes, run_timm(timm_mixer(seeded.weights(shapes)), 12))
    return {name: ({"shapes": shapes}, arrays) for name, (shapes, arrays) in made.items()}


def timm_mixer(weights):
    """timm's Mixer; it reads no .npz files, so the keys are translated here."""
    words = {"MixerBlock_": "blocks.", "/LayerNorm_0/": ".norm1.", "/LayerNorm_1/": ".norm2.",
             "/token_mixing/": ".mlp_tokens.", "/channel_mixing/": ".mlp_channels.",
             "Dense_0": "fc1", "Dense_1": "fc2", "pre_head_layer_norm": "norm",
             "stem": "stem.proj", "/": ".", "kernel": "weight", "scale": "weight"}  # fmt: skip
    state = {}
    for key, value in weights.items():
        value = torch.from_numpy(value)
        if key.endswith("kernel"):
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        for theirs, ours in words.items():
            key = key.replace(theirs, ours)
        state[key] = value
    model = timm.models.MlpMixer(
        num_classes=5, img_size=12, patch_size=4, num_blocks=2, embed_dim=12,
        mlp_ratio=(7.2 / 12, 30 / 12), act_layer=functools.partial(nn.GELU, approximate="tanh"),
    )  # fmt: skip
    model.load_state_dict(state)
    return model.eval()


def make_hybrid():
    """transformers' ViTHybrid, which 5.x lacks: timm's with its epsilon, the keys renamed."""
    model = timm_hybrid((1, 2), 32, 2, norm_layer=functools.partial(nn.LayerNorm, eps=1e-12))
    bit = "embeddings.patch_embeddings.backbone.bit."
    words = {"patch_embed.backbone.stem.conv": bit + "embedder.convolution",
             "patch_embed.backbone.stem.norm": bit + "embedder.norm",
             "patch_embed.backbone.": bit + "encoder.",
             "patch_embed.proj": "embeddings.patch_embeddings.projection",
             "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
             "attn.proj": "attention.output.dense"}  # fmt: skip
    values, shapes = {}, {}
    for key, parameter in model.state_dict().items():
        name = key
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        if bit in name:
            name = name.replace(".blocks.", ".layers.")
        name = name.replace("norm1", "layernorm_before") if name.startswith("blocks") else name
        name = name.replace("norm2", "layernorm_after") if name.startswith("blocks") else name
        name = name.replace("blocks.", "encoder.layer.") if name.startswith("blocks") else name
        name = "layernorm" + name[4:] if name.startswith("norm.") else name
        name = name.replace("head.", "classifier.") if name.startswith("head") else "vit." + name
        parts = ("query", "key", "value") if "attn.qkv" in name else ("",)
        names = [name.replace("attn.qkv", f"attention.attention.{part}") for part in parts]
        shape = [parameter.shape[0] // len(parts), *parameter.shape[1:]]
        shapes |= dict.fromkeys(names, list(shape))
        values[key] = torch.from_numpy(np.concatenate([seeded.values(n, shape) for n in names]))
    model.load_state_dict(values)
    config = {
        "architectures": ["ViTHybridForImageClassification"],
        "model_type": "vit-hybrid",
        "backbone_config": {"model_type": "bit", "depths": [1, 2], "layer_type": "bottleneck",
                            "global_padding": "SAME", "embedding_dynamic_padding": True},
        **SMALL, "num_attention_heads": 3, "intermediate_size": 30, "patch_size": 2,
        "image_size": 32, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True,
        "id2label": {str(i): f"name of {i}" for i in range(5)},
    }  # fmt: skip
    return {"config": config, "shapes": shapes}, run_timm(model.eval(), 32)


# torchvision
class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        layers = nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(*layers)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """The modules, under their names, and the forward pass of torchvision's class."""

    def __init__(self, width=128, heads=2, hidden=24, representation=None):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.conv_proj = nn.Conv2d(3, width, 4, 4)
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, 10, width))
        blocks = {f"encoder_layer_{i}": Block(width, heads, hidden) for i in range(2)}
        self.encoder.layers = nn.Sequential()
        for name, block in blocks.items():
            self.encoder.layers.add_module(name, block)
        self.encoder.ln = nn.LayerNorm(width, eps=1e-6)
        self.heads = nn.Sequential()
        if representation:
            self.heads.add_module("pre_logits", nn.Linear(width, representation))
            self.heads.add_module("act", nn.Tanh())
        self.heads.add_module("head", nn.Linear(representation or width, 5))

    def forward_features(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        return self.encoder.ln(self.encoder.layers(x))

    def forward(self, x):
        return self.heads(self.forward_features(x)[:, 0])


def make_torchvision(representation):
    model = VisionTransformer(representation=representation).eval()
    shapes = shapes_of(model.state_dict())
    model.load_state_dict({k: torch.from_numpy(v) for k, v in seeded.weights(shapes).items()})
    return {"shapes": shapes}, run_timm(model, 12)


def main():
    made = {name: make_transformers(name, *case) for name, case in TRANSFORMERS.items()}
    made["vit-hybrid"] = make_hybrid()
    made |= make_flax()
    made["torchvision"] = make_torchvision(None)
    made["torchvision-representation"] = make_torchvision(16)
    text = json.dumps({name: facts for name, (facts, _) in made.items()}, separators=(",", ":"))
    (HERE / "spellings.json").write_text(text + "\n", "utf-8")
    arrays = {f"{n}/{k}": np.asarray(v) for n, (_, a) in made.items() for k, v in a.items()}
    np.savez_compressed(HERE / "spellings.npz", **arrays)


if __name__ == "__main__":
    main()

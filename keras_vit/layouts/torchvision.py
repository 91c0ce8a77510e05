"""State dicts of torchvision's VisionTransformer, saved as safetensors."""

from keras_vit import hub
from keras_vit.layouts import infer

_LAYER = r"encoder\.layers\.encoder_layer_(\d+)"
KEYS = {  # torchvision's key, regular expression = timm's
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
HEADS = {768: 12, 1024: 16, 1280: 16}


def read(path):
    """The tensors under torchvision's keys."""
    return hub.read_safetensors(path, "Copy or save it again.")


def translated(raw):
    """The tensors under timm's keys; what is unknown keeps its key."""
    return {infer.timm_key(key, KEYS): tensor for key, tensor in raw.items()}


def spec_of(file, tensors):
    """The `Spec` that follows from the tensors."""
    if "conv_proj.weight" not in file.raw:
        raise ValueError(
            f"{file} holds no VisionTransformer of torchvision, the only layout whose architecture "
            "follows from its tensors (timm's and transformers' do not say heads, epsilon, "
            f"activation). Put its config.json beside it, name it {hub.WEIGHTS} and load the "
            f"directory. {infer.first_keys(file)}"
        )
    options, side = infer.vit(file, tensors)
    width = options["embed_dim"]
    heads = HEADS.get(width, width // 64)
    if not heads or width % heads:
        raise ValueError(
            f"{file}: torchvision's models have heads of 64 numbers, which do not divide its "
            f"width. Received: {width}"
        )
    size = side * options["patch_size"]
    options |= {"image_size": size, "num_heads": heads, "activation": "gelu"}
    return infer.spec("vit", file, tensors, options, images(options))


def images(options):
    """`ImageClassification` as torchvision's weights set it: 256 -> 224, for ViT-L/16 242 -> 224.

    Those above 224 pixels are SWAG's: bicubic, uncropped. The `IMAGENET1K_SWAG_LINEAR_V1` of 224
    pixels are, too, but have the tensors of the others, so they cannot be told apart.
    """
    size = options["image_size"]
    resize = 242 if (options["embed_dim"], options["patch_size"]) == (1024, 16) else 256
    swag = size > 224
    return {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_pct": 1.0 if swag else 224 / resize,
        "crop_mode": "center",
        "interpolation": "bicubic" if swag else "bilinear",
    }

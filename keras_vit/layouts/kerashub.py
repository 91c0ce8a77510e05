"""KerasHub's own presets, what `save_to_preset` of its ViT and DeiT wrote, as a `Spec`.

config.json holds the backbone, task.json the classifier (without it the preset is a backbone),
image_converter.json the preprocessing; the weights are HDF5 files of Keras.
"""

from keras_vit import checks
from keras_vit.layouts.flax import JOINED
from keras_vit.layouts.kerashub_weights import Weights
from keras_vit.layouts.spec import checked, spec_of

OWNER = "keras_hub>"  # what the registered names of KerasHub's classes begin with
TASK, CONVERTER = "task.json", "image_converter.json"
FAMILIES = {"ViTBackbone": "vit", "DeiTBackbone": "deit"}
HIDDEN = {"vit": "mlp_dim", "deit": "intermediate_dim"}
OPTIONS = {
    "image_size": "image_shape",
    "patch_size": "patch_size",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "embed_dim": "hidden_dim",
    "norm_eps": "layer_norm_epsilon",
    "qkv_bias": "use_mha_bias",
}
ACTIVATIONS = (None, "linear", "softmax", "sigmoid")  # of the head; ours gives logits
POOLINGS = {"token": {}, "gap": {"pooling": "avg", "pool_include_prefix": True}}
INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos3": "lanczos"}
OLD_CONVERTER = ("height", "width", "mean", "variance")  # arguments that KerasHub still reads


def is_preset(config):
    """Whether a config.json is that of a backbone of KerasHub's own."""
    return str(config.get("registered_name")).startswith(OWNER)


def read(config, repository):
    """The spec of a KerasHub preset.

    Its logits are those of KerasHub's classifier before softmax, if that has one. Pictures of the
    model's size are normalized as there; others are resized with antialiasing, which KerasHub's
    presets mostly do without.

    Raises:
        ValueError: another model of KerasHub, or something that has no counterpart here.
    """
    name = str(config["registered_name"]).removeprefix(OWNER)
    if name not in FAMILIES:
        raise ValueError(
            f"{repository} holds a {name} of KerasHub, not a model of this package: of KerasHub's "
            f"presets those of {' and '.join(FAMILIES)} are read. Load it with keras_hub."
        )
    family = FAMILIES[name]
    backbone = checks.kind(config["config"], "config", dict)
    task = _task(repository, name)
    options = _options(family, backbone)
    weights = Weights(repository, _without_bias(backbone), task)
    found = spec_of(
        family,
        options | _dropout(backbone) | _pooling(task, options),
        images=_images(repository, options),
        source=weights,
        names=JOINED,
        num_classes=task["num_classes"] if task else 0,
        name=str(repository),
    )
    if task:
        found.head["representation_size"] = task.get("intermediate_dim")
        found.head["drop_rate"] = checks.rate(task.get("dropout", 0.0), "dropout")
    return found


def _options(family, config):
    names = {**OPTIONS, "mlp_ratio": HIDDEN[family], "in_channels": "image_shape"}
    shape, patch = config["image_shape"], checks.pair(config["patch_size"], "patch_size")
    if not isinstance(shape, list) or len(shape) != 3 or patch[0] != patch[1]:
        raise checks.WrongValue(
            "image_shape must be height, width and channels, patch_size that of a square. "
            f"Received: {shape!r:.80} and {patch}"
        )
    options = {ours: config[theirs] for ours, theirs in OPTIONS.items()}
    hidden, width = (checks.count(config[n], n, 1) for n in (HIDDEN[family], "hidden_dim"))
    options |= {
        "image_size": checks.pair(shape[:2], "image_shape"),
        "in_channels": shape[2],
        "patch_size": patch[0],
        "mlp_ratio": checks.ratio(hidden, width),
        "proj_bias": config["use_mha_bias"] or config.get("use_mlp_bias", True),
        "class_token": config.get("use_class_token", True),
    }
    if family == "deit":  # whose one head reads the class token
        options |= {"distillation_token": True, "distilled_head": False}
    return checked(family, options, names)


def _dropout(config):
    rates = [checks.rate(config.get(n, 0.0), n) for n in ("dropout_rate", "attention_dropout")]
    return {"drop_rate": rates[0], "pos_drop_rate": rates[0], "attn_drop_rate": rates[1]}


def _without_bias(config):
    """Layers that have no bias there, but one here."""
    attention, mlp = config["use_mha_bias"], config.get("use_mlp_bias", True)
    return [
        *["patch_embed.proj"] * (not config.get("use_patch_bias", True)),
        *["blocks.*.attn.proj"] * (mlp and not attention),
        *["blocks.*.mlp.fc?"] * (attention and not mlp),
    ]


def _task(repository, backbone):
    """The classifier's config, or None."""
    if repository.find(TASK) is None:
        return None
    found = repository.json(TASK)
    wanted = OWNER + backbone.replace("Backbone", "ImageClassifier")
    checks.word(found.get("registered_name"), f"registered_name of {TASK}", (wanted,))
    config = checks.kind(found["config"], f"config of {TASK}", dict)
    checks.count(config["num_classes"], "num_classes", 1, checks.CLASSES)
    if config.get("activation") not in ACTIVATIONS:
        raise checks.WrongValue(
            f"activation of {TASK} must be one of {', '.join(map(str, ACTIVATIONS))}. "
            f"Received: {config['activation']!r:.80}"
        )
    if config.get("intermediate_dim") is not None:
        checks.count(config["intermediate_dim"], "intermediate_dim", 1)
    return config


def _pooling(task, options):
    """How the head reads the tokens; of a backbone: as our classifiers do."""
    if task:
        return POOLINGS[checks.word(task.get("pooling", "token"), "pooling", POOLINGS)]
    return POOLINGS["token" if options["class_token"] else "gap"]


def _images(repository, options):
    """image_converter.json as arguments of `ImageConverter`; without it pixels stay in 0..255."""
    config, channels = {}, options["in_channels"]
    if repository.find(CONVERTER) is not None:
        config = checks.kind(repository.json(CONVERTER)["config"], f"config of {CONVERTER}", dict)
    old = [name for name in OLD_CONVERTER if name in config]
    if old or config.get("pad_to_aspect_ratio"):
        raise checks.WrongValue(
            f"{CONVERTER} has what is not read here: {', '.join(old) or 'pad_to_aspect_ratio'}. "
            "Save it again with KerasHub, or delete it and preprocess images yourself."
        )
    scale = _per_channel(config, "scale", 1, channels, checks.positive)
    offset = _per_channel(config, "offset", 0, channels, checks.number)
    std = [1 / (255 * x) for x in scale]
    return {
        "image_size": options["image_size"],
        "mean": [-x * s for x, s in zip(offset, std, strict=True)],
        "std": std,
        "crop_mode": "center" if config.get("crop_to_aspect_ratio", True) else "squash",
        "interpolation": INTERPOLATIONS[
            checks.word(config.get("interpolation", "bilinear"), "interpolation", INTERPOLATIONS)
        ],
    }


def _per_channel(config, field, default, channels, each):
    """One number, or one of each channel, as a list."""
    value = config.get(field)
    value = default if value is None else value
    values = checks.per_channel(
        value if isinstance(value, list) else [value] * channels, field, each
    )
    if len(values) != channels:
        raise checks.WrongValue(f"{field} must be {channels} numbers. Received: {len(values)}")
    return values

"""Presets of KerasHub's own ViT and DeiT, as saved by `save_to_preset`, as a `Spec`.

config.json describes the backbone, task.json the classifier (without it, the preset is a backbone),
image_converter.json the preprocessing; the weights are Keras' HDF5 files.
"""

from typing import Any

import keras_vit_presets as presets
from keras_vit import checks
from keras_vit.hub import Repository
from keras_vit.layouts.kerashub_weights import Weights
from keras_vit.layouts.spec import Spec, checked, spec_of
from keras_vit.text import printable

OWNER = "keras_hub>"  # prefix of the registered names of KerasHub's classes
TASK, CONVERTER = "task.json", "image_converter.json"
ACTIVATIONS = (None, "linear", "softmax", "sigmoid")  # of the head; ours returns logits
POOLINGS = {"token": {}, "gap": {"pooling": "avg", "pool_include_prefix": True}}
INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic", "lanczos3": "lanczos"}
OLD_CONVERTER = ("height", "width", "mean", "variance")  # arguments that KerasHub still accepts


def is_preset(config: dict[str, Any]) -> bool:
    """Whether a config.json describes one of KerasHub's own backbones."""
    return str(config.get("registered_name")).startswith(OWNER)


def read_config(config: dict[str, Any], repository: Repository) -> Spec:
    """The spec of a KerasHub preset.

    Its logits are those of KerasHub's classifier, before an activation. Images of the model's size
    are normalized as in KerasHub; others are resized with antialiasing, which most of KerasHub's
    presets do not use.

    Raises:
        ValueError: another model of KerasHub, or an option that is not supported here.
    """
    name = str(config["registered_name"]).removeprefix(OWNER)
    tables = presets.layout("kerashub")
    if name not in tables:
        raise ValueError(
            f"{repository} is a preset of KerasHub's {printable(name)}, which is not supported: "
            f"of KerasHub's presets, those of {' and '.join(tables)} are. Load it with keras_hub."
        )
    table = tables[name]
    backbone = checks.kind(config["config"], "config", dict)
    task = _task(repository, table)
    options = _options(table, backbone)
    head = {}
    if task:
        head["representation_size"] = task.get("intermediate_dim")
        head["drop_rate"] = checks.rate(task.get("dropout", 0.0), "dropout")
    spec = spec_of(
        table["family"],
        options | _dropout(backbone) | _pooling(task, options),
        images=_images(repository, options),
        source=Weights(repository, table["keys"], _without_bias(backbone), task),
        names=table["rename"],
        num_classes=task["num_classes"] if task else 0,
        activation=_activation(task),
        name=str(repository),
    )
    spec.head |= head
    return spec


def _options(table, config):
    names = {**table["options"], "image_size": "image_shape", "in_channels": "image_shape"}
    names |= {"patch_size": "patch_size", "mlp_ratio": table["hidden"]}
    shape, patch = config["image_shape"], checks.pair(config["patch_size"], "patch_size")
    if not isinstance(shape, list) or len(shape) != 3 or patch[0] != patch[1]:
        raise checks.WrongValue(
            "image_shape must be (height, width, channels), and patches must be square. "
            f"Received: {shape!r:.80} and {patch}"
        )
    options = {ours: config[theirs] for ours, theirs in table["options"].items()}
    hidden, width = (checks.count(config[n], n, 1) for n in (table["hidden"], "hidden_dim"))
    options |= {
        "image_size": checks.pair(shape[:2], "image_shape"),
        "in_channels": shape[2],
        "patch_size": patch[0],
        "mlp_ratio": checks.ratio(hidden, width),
        "proj_bias": config["use_mha_bias"] or config.get("use_mlp_bias", True),
        "class_token": config.get("use_class_token", True),
    }
    return checked(table["family"], {**options, **table.get("fixed", {})}, names)


def _dropout(config):
    rates = [checks.rate(config.get(n, 0.0), n) for n in ("dropout_rate", "attention_dropout")]
    return {"drop_rate": rates[0], "pos_drop_rate": rates[0], "attn_drop_rate": rates[1]}


def _without_bias(config):
    """Layers without a bias in KerasHub that have one here."""
    attention, mlp = config["use_mha_bias"], config.get("use_mlp_bias", True)
    return [
        *["patch_embed.proj"] * (not config.get("use_patch_bias", True)),
        *["blocks.*.attn.proj"] * (mlp and not attention),
        *["blocks.*.mlp.fc?"] * (attention and not mlp),
    ]


def _task(repository, table):
    """The classifier's config, or None."""
    if repository.find(TASK) is None:
        return None
    found = repository.json(TASK)
    wanted = OWNER + table["classifier"]
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


def _activation(task):
    named = (task or {}).get("activation")
    return named if named in ("softmax", "sigmoid") else "auto"  # without one it gives logits


def _pooling(task, options):
    """The pooling; for a backbone, that of our classifiers."""
    if task:
        return POOLINGS[checks.word(task.get("pooling", "token"), "pooling", POOLINGS)]
    return POOLINGS["token" if options["class_token"] else "gap"]


def _images(repository, options):
    """image_converter.json as arguments of `ImageConverter`; without it, pixels stay in 0..255."""
    config, channels = {}, options["in_channels"]
    if repository.find(CONVERTER) is not None:
        config = checks.kind(repository.json(CONVERTER)["config"], f"config of {CONVERTER}", dict)
    old = [name for name in OLD_CONVERTER if name in config]
    if old or config.get("pad_to_aspect_ratio"):
        raise checks.WrongValue(
            f"{CONVERTER} has unsupported fields: {', '.join(old) or 'pad_to_aspect_ratio'}. "
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
    """One number, or one per channel, as a list."""
    value = config.get(field)
    value = default if value is None else value
    values = checks.per_channel(
        value if isinstance(value, list) else [value] * channels, field, each
    )
    if len(values) != channels:
        raise checks.WrongValue(f"{field} must have {channels} numbers. Received: {len(values)}")
    return values

"""The layout of transformers: config.json and preprocessor_config.json as a `Spec`."""

import functools
import re

from keras_vit import checks, presets
from keras_vit.hub import MissingFile
from keras_vit.layouts import prepare
from keras_vit.layouts.spec import HALF, activation, checked, normalization, spec_of

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of models that read text, too: the same inside, since 5.x
RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
# transformers' processors whose `size: 224` means both edges; for the others it is the shorter one.
SQUARE = ("ViT", "Deit", "DeiT", "Beit", "Pvt", "Swin")


def read(config, repository):
    """The spec of a transformers config, one of the types of transformers.toml."""
    kind = checks.kind(config["model_type"], "model_type", str)
    tables = presets.transformers()
    if kind not in tables:
        raise ValueError(
            f"{repository} holds a transformers model of type {kind!r}, which is not supported. "
            f"Supported: {', '.join(tables)}."
        )
    table = tables[kind]
    architecture = (config.get("architectures") or [""])[0]
    vision = _vision(config, table)
    options = _options(vision, table)
    task = dict(table.get("tasks", {}).get(architecture, {}))
    classes = task.pop("classes", None)
    labels = _id2label(config) if "ForImageClassification" in architecture else None
    if "ForImageClassification" in architecture:
        num_classes = _num_labels(config, labels)
    else:
        width = config.get(classes, vision.get(classes))
        num_classes = checks.count(width, classes, 1, checks.CLASSES) if classes else 0
    swiglu = table.get("rename_swiglu", {}) if vision.get("use_swiglu_ffn") else {}
    return spec_of(
        _family(table),
        {**options, **task},
        images=_processor(repository, table.get("processor", {}), options),
        source=repository,
        names={**table["rename"], **swiglu},
        prefix=tuple(table["prefix"]),
        ignore=tuple(table["ignore"]),
        prepare=functools.partial(prepare.tensors, rows=table.get("prepare", {})),
        num_classes=num_classes,
        labels=labels,
        name=str(repository),
    )


def _family(table):
    return next(n for n, t in presets.families().items() if t["class"] == table["class"])


def _vision(config, table):
    """The config of the vision tower, with what it leaves out."""
    nested = table.get("nested")
    if nested:
        # A config of 4.x may hold both; the second was what its user gave, and wins.
        both = [config.get(name) or {} for name in (nested, f"{nested}_dict")]
        config = {k: v for part in both for k, v in checks.kind(part, nested, dict).items()}
    return {**table.get("defaults", {}), **config}


def _options(config, table):
    """Hyper-parameters, under our names, of a transformers config."""
    needed = ("embed_dim", "depth", "num_heads")
    options = {
        ours: config[theirs]
        for ours, theirs in table["options"].items()
        if theirs in config or ours in needed
    }
    options |= {
        **_mlp(config, checks.count(config["hidden_size"], "hidden_size", 1)),
        "image_size": checks.pair(config.get("image_size", 224), "image_size"),
        "patch_size": config.get("patch_size", 16),
        "in_channels": config.get("num_channels", 3),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    }
    if table["class"] == "HybridViT":
        options["stages"] = _stages(config.get("backbone_config") or {})
    names = {"in_channels": "num_channels", **table["options"]}
    return {**checked(_family(table), options, names), **table.get("fixed", {})}


def _mlp(config, width):
    """The MLP's options; DINOv2 gives a ratio, of which SwiGLU takes two thirds, in steps of 8."""
    act = activation(config.get("hidden_act", "gelu"), "hidden_act")
    if "use_swiglu_ffn" not in config:
        hidden = checks.count(config.get("intermediate_size", 4 * width), "intermediate_size", 1)
        return {"mlp_ratio": checks.ratio(hidden, width), "activation": act}
    hidden = int(width * checks.positive(config["mlp_ratio"], "mlp_ratio"))
    checks.count(hidden, "hidden_size * mlp_ratio", 1)
    if not config["use_swiglu_ffn"]:
        return {"mlp_ratio": checks.ratio(hidden, width), "activation": act}
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return {"mlp_ratio": checks.ratio(2 * hidden, width), "activation": "silu", "gate": "packed"}


def _stages(config):
    """The stages of a BiT backbone, as `HybridViT` computes them."""
    checks.kind(config, "backbone_config", dict)
    checks.word(config.get("layer_type", "bottleneck"), "layer_type", ("bottleneck",))
    padding = checks.kind(config.get("global_padding") or "same", "global_padding", str)
    checks.word(padding.lower(), "global_padding", ("same",))
    depths = config.get("depths", [3, 4, 9])
    if not isinstance(depths, list) or len(depths) > 8:
        raise checks.WrongValue(f"depths must be a list of numbers. Received: {depths!r:.80}")
    return tuple(checks.count(d, "depths", 1, checks.DEEPEST) for d in depths)


def _num_labels(config, labels):
    if labels:
        return len(labels)
    return checks.count(config.get("num_labels", 2), "num_labels", most=checks.CLASSES)


def _id2label(config):
    labels = config.get("id2label")
    if not labels:
        return None
    if not isinstance(labels, dict) or not all(re.fullmatch(r"\d{1,7}", key) for key in labels):
        raise checks.WrongValue(
            f"id2label must name the classes 0, 1, 2 ... Received: {labels!r:.80}"
        )
    return [str(labels[key]) for key in sorted(labels, key=int)]


def _processor(repository, defaults, options):
    """preprocessor_config.json, of either generation, as arguments of `ImageConverter`.

    Args:
        repository: where it is, or is not.
        defaults: the fields of the family's own, for what it leaves out.
        options: the model's hyper-parameters.
    """
    given = _processor_file(repository)
    config = {**defaults, **given}
    processor = given.get("image_processor_type") or given.get("feature_extractor_type")
    processor = str(processor or defaults.get("image_processor_type", "ViT"))
    model_size = options["image_size"]
    size = config.get("size", model_size)
    crop = config.get("crop_size", model_size)
    if isinstance(size, dict):
        short = "shortest_edge" in size
        size = [size["shortest_edge"]] * 2 if short else [size["height"], size["width"]]
    else:
        short = not processor.startswith(SQUARE)
    if isinstance(crop, dict):
        crop = [crop["height"], crop["width"]]
    size = checks.pair(size, "size")
    crop = checks.pair(crop, "crop_size") if config.get("do_center_crop", False) else size
    if not config.get("do_resize", True):
        size = crop
    resample = checks.count(config.get("resample", 2), "resample", 1, len(RESAMPLE))
    # The model keeps its size, also where its processor crops another one (DINOv2: 518 and 224).
    return {
        "image_size": model_size,
        **_levels(config),
        "crop_pct": min(crop[0] / size[0], 1.0),
        "crop_mode": "center" if short else "squash",
        "interpolation": RESAMPLE[resample],
        "floor_offset": True,
    }


def _processor_file(repository):
    for name in (PREPROCESSOR, PROCESSOR):
        try:
            config = repository.json(name)
        except MissingFile:
            continue
        return checks.kind(config.get("image_processor", config), "image_processor", dict)
    return {}


def _levels(config):
    """Mean and standard deviation for pixels in 0..1."""
    fields = ("image_mean", "image_std")
    norm = normalization(*(config.get(field, HALF) for field in fields), fields)
    if not config.get("do_normalize", True):
        norm = {"mean": [0.0] * len(norm["mean"]), "std": [1.0] * len(norm["std"])}
    rescale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    factor = 255 * checks.positive(rescale, "rescale_factor")
    return {key: [value / factor for value in values] for key, values in norm.items()}

"""timm's config.json as a `Spec`."""

import difflib

from keras_vit import checks, presets
from keras_vit.images import CROP_MODES
from keras_vit.layers.resample import KERNELS
from keras_vit.layouts.spec import HALF, activation, checked, normalization, spec_of

TIMM_ARGUMENTS = {
    "img_size": "image_size",
    "in_chans": "in_channels",
    "global_pool": "pooling",
    "act_layer": "activation",
    **{
        name: name
        for name in (
            "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "proj_bias",
            "init_values", "class_token", "reg_tokens", "no_embed_class", "pre_norm", "final_norm",
            "fc_norm", "pool_include_prefix", "num_classes",
        )  # fmt: skip
    },
}  # fmt: skip
# Behaviour in training only, or how timm builds its graph: nothing that a loaded model computes.
TIMM_HARMLESS = (
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "weight_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size",
)  # fmt: skip


def read(config, repository):
    """The spec of a timm config: an architecture of the tables, changed by model_args."""
    name = checks.kind(config["architecture"], "architecture", str)
    found = presets.architecture(name)
    if found is None:
        known = ", ".join(presets.families())
        near = difflib.get_close_matches(name, presets.architectures(), n=3)
        hint = f" The nearest that are: {', '.join(near)}." if near else ""
        raise ValueError(
            f"{repository} holds timm's architecture {name!r}, which is not supported. "
            f"Supported families: {known}.{hint}"
        )
    family, options = found
    cfg = checks.kind(config.get("pretrained_cfg") or config, "pretrained_cfg", dict)
    args = dict(checks.kind(config.get("model_args") or {}, "model_args", dict))
    for key in ("dynamic_img_size", *TIMM_HARMLESS):
        args.pop(key, None)
    unknown = sorted(set(args) - set(TIMM_ARGUMENTS))
    if unknown:
        raise ValueError(
            f"model_args of {repository} changes {', '.join(unknown)} of {name}, "
            f"which is not supported. Supported: {', '.join(TIMM_ARGUMENTS)}."
        )
    args = {TIMM_ARGUMENTS[k]: v for k, v in args.items()}
    size = cfg.get("input_size", [3, 224, 224])
    options = {**options, "image_size": checks.pair(size[1:], "input_size")}
    if size[0] != 3:
        options["in_channels"] = checks.count(size[0], "input_size", 1)
    options = _timm_overrides(family, options, args)
    options = checked(family, options, {ours: theirs for theirs, ours in TIMM_ARGUMENTS.items()})
    num_classes = config.get("num_classes", cfg.get("num_classes", 1000))
    images = {
        "image_size": options["image_size"],
        **normalization(cfg.get("mean", HALF), cfg.get("std", HALF), ("mean", "std")),
        "crop_pct": checks.positive(cfg.get("crop_pct") or 0.875, "crop_pct"),
        "crop_mode": checks.word(cfg.get("crop_mode") or "center", "crop_mode", CROP_MODES),
        "interpolation": checks.word(
            cfg.get("interpolation") or "bicubic", "interpolation", KERNELS
        ),
    }
    return spec_of(
        family,
        options,
        images=images,
        source=repository,
        num_classes=checks.count(num_classes, "num_classes", most=checks.CLASSES),
        labels=_timm_labels(config, cfg),
        name=f"{name}.{cfg['tag']}" if cfg.get("tag") else name,
    )


def _timm_overrides(family, options, args):
    """model_args on top of an architecture; a change of pooling moves the last norm, as in timm."""
    args.pop("num_classes", None)
    pooling = args.pop("pooling", None)
    fc_norm = args.pop("fc_norm", None)
    if "activation" in args:
        args["activation"] = activation(args["activation"], "act_layer")
    if "image_size" in args:
        args["image_size"] = checks.pair(args["image_size"], "img_size")
    known = ("avg",) if family == "mixer" else ("token", "avg", "map")
    old = options.get("pooling", known[0])
    if pooling in (None, "", old) and fc_norm is None:
        return {**options, **args}
    pooling = pooling or old
    if pooling not in known:
        raise ValueError(
            f"global_pool={pooling!r} is not supported: a {family} has only {', '.join(known)}."
        )
    norm = args.pop("final_norm", options.get("final_norm", True) or options.get("fc_norm", False))
    after = (pooling == "avg") if fc_norm is None else bool(fc_norm)
    moved = {"pooling": pooling, "final_norm": norm and not after, "fc_norm": norm and after}
    return {**options, **args, **moved}


def _timm_labels(config, cfg):
    names = config.get("label_names") or cfg.get("label_names") or config.get("labels")
    texts = config.get("label_descriptions") or cfg.get("label_descriptions") or {}
    if not isinstance(names, list):
        return None
    return [str(texts.get(name, name)) for name in names]

"""timm's layout: config.json as a `Spec`, and a model as files that timm loads."""

import difflib
import fnmatch
from typing import Any

import keras_vit_presets as presets
from keras_vit import checks, weights
from keras_vit.hub import CONFIG, Repository
from keras_vit.images import CROP_MODES
from keras_vit.layers.base import arguments as defaults_of
from keras_vit.layers.resample import KERNELS
from keras_vit.layouts import card
from keras_vit.layouts.spec import (
    Spec,
    activation,
    checked,
    class_of,
    family_of,
    images_of,
    normalization,
    spec_of,
)
from keras_vit.models.classifier import ImageClassifier
from keras_vit.text import printable
from keras_vit.types import Path

# Training behaviour, or how timm builds its graph: no effect on what a loaded model computes.
HARMLESS = (
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
    "drop_path_rate", "weight_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size",
)  # fmt: skip
EPSILON = "norm_eps"  # how the names of such options end
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # timm's, where a config has none
HEAD = (  # what the head of a model computes
    "pooling", "pool_include_prefix", "fc_norm", "fc_norm_eps", "representation_size",
    "representation_activation",
)  # fmt: skip
POOLED = ("pooling", "final_norm", "fc_norm")  # in timm, changing one changes the others


def read_config(config: dict[str, Any], repository: Repository) -> Spec:
    """The spec of a timm config: an architecture of the tables, modified by model_args."""
    name = checks.kind(config["architecture"], "architecture", str)
    found = presets.architecture(name)
    if found is None:
        known = ", ".join(presets.families())
        near = difflib.get_close_matches(name, presets.architectures(), n=3)
        hint = f" The nearest supported ones: {', '.join(near)}." if near else ""
        raise ValueError(
            f"{repository} has timm's architecture {name!r}, which is not supported. "
            f"Supported families: {known}.{hint}"
        )
    family, options = found
    cfg = checks.kind(config.get("pretrained_cfg") or config, "pretrained_cfg", dict)
    size = cfg.get("input_size", [3, 224, 224])
    options = {**options, "image_size": checks.pair(size[1:], "input_size")}
    if size[0] != 3:
        options["in_channels"] = checks.count(size[0], "input_size", 1)
    arguments = dict(checks.kind(config.get("model_args") or {}, "model_args", dict))
    table = presets.families()[family]
    options = _changed(table, options, arguments, f"model_args of {repository}", name)
    options = checked(family, options, {ours: theirs for theirs, ours in table.timm.items()})
    num_classes = config.get("num_classes", cfg.get("num_classes", 1000))
    full = f"{name}.{cfg['tag']}" if cfg.get("tag") else name
    row = presets.checkpoints().get(full)
    return spec_of(
        family,
        options,
        images={"image_size": options["image_size"], **_images(cfg)},
        source=repository,
        num_classes=checks.count(num_classes, "num_classes", most=checks.CLASSES),
        labels=_labels(config, cfg),
        optional=row.untrained if row else (),
        name=full,
    )


def _images(cfg):
    return {
        **normalization(cfg.get("mean", MEAN), cfg.get("std", STD), ("mean", "std")),
        "crop_pct": checks.positive(cfg.get("crop_pct") or 0.875, "crop_pct"),
        "crop_mode": checks.word(cfg.get("crop_mode") or "center", "crop_mode", CROP_MODES),
        "interpolation": checks.word(
            cfg.get("interpolation") or "bicubic", "interpolation", KERNELS
        ),
    }


def _changed(table, options, arguments, where, name):
    """An architecture's options, under our names, modified by model_args."""
    arguments = {k: v for k, v in arguments.items() if k not in HARMLESS}
    pooling = arguments.pop("global_pool", None)
    arguments.pop("num_classes", None)
    unknown = sorted(set(arguments) - set(table.timm))
    if unknown:
        raise ValueError(
            f"{where} changes {printable(', '.join(unknown))} of {name}, which is not supported. "
            f"Supported: {', '.join((*table.timm, 'global_pool', 'num_classes'))}."
        )
    ours = {table.timm[k]: v for k, v in arguments.items()}
    if "activation" in ours:
        ours["activation"] = activation(ours["activation"], "act_layer")
    if "image_size" in ours:
        ours["image_size"] = checks.pair(ours["image_size"], "img_size")
    return {**options, **_pooled(table, options, ours, pooling)}


def _pooled(table, options, ours, pooling):
    """A change of pooling moves the last norm, as in timm."""
    fc_norm = ours.pop("fc_norm", None)
    old = options.get("pooling", table.timm_poolings[0])
    if pooling in (None, "", old) and fc_norm is None:
        return ours
    pooling = pooling or old
    if pooling not in table.timm_poolings:
        raise ValueError(
            f"global_pool={pooling!r} is not supported. Supported for {table.name}: "
            f"{', '.join(table.timm_poolings)}."
        )
    if table.timm_norms_apart:
        return {**ours, "pooling": pooling, **_norms(table, options, ours, pooling, fc_norm)}
    norm = ours.pop("final_norm", options.get("final_norm", True) or options.get("fc_norm", False))
    after = pooling in table.timm_norm_after if fc_norm is None else bool(fc_norm)
    moved = {"pooling": pooling, "final_norm": norm and not after, "fc_norm": norm and after}
    return {**ours, **moved}


def _norms(table, options, ours, pooling, fc_norm):
    """The norms before and after a pooling, where each has an argument of its own.

    An architecture that contradicts timm's rule for the defaults has set both, and keeps them.
    """
    own = {"final_norm": options.get("final_norm", True), "fc_norm": options.get("fc_norm", False)}
    old = options.get("pooling", table.timm_poolings[0])
    after = pooling in table.timm_norm_after if fc_norm is None else bool(fc_norm)
    if fc_norm is not None or own["fc_norm"] == (old in table.timm_norm_after):
        own = {"final_norm": not after, "fc_norm": after}
    return {**own, **({"final_norm": ours["final_norm"]} if "final_norm" in ours else {})}


def _labels(config, cfg):
    names = config.get("label_names") or cfg.get("label_names") or config.get("labels")
    texts = config.get("label_descriptions") or cfg.get("label_descriptions") or {}
    if not isinstance(names, list):
        return None
    return [str(texts.get(name, name)) for name in names]


def write_model(model: ImageClassifier, directory: Path, allow_epsilon: bool = False) -> None:
    """Write a directory that timm loads, see `ImageClassifier.save_to_timm`."""
    table = family_of(type(model))
    images = images_of(model)
    architecture, arguments = _architecture(model, table, images["image_size"], allow_epsilon)
    height, width = images["image_size"]
    cfg = {
        "input_size": [model.backbone.options["in_channels"], height, width],
        "fixed_input_size": model.image_size is not None and _has_size(table),
        "num_classes": model.num_classes,
        **{k: images[k] for k in ("interpolation", "crop_pct", "crop_mode", "mean", "std")},
    }
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.backbone.output.shape[-1],
        "global_pool": model.pooling,
        "model_args": arguments,
        "pretrained_cfg": cfg,
    }
    if model.labels:
        config["label_names"] = model.labels
    tensors = weights.export(model, table.rename)
    bare = presets.RESOLUTION.sub("", architecture, count=1)
    rows = table.timm_convolutions
    for pattern in rows.get(architecture, rows.get(bare, [])):
        for key in fnmatch.filter(tensors, pattern):
            tensors[key] = weights.as_convolution(tensors[key])
    card.write_directory(directory, model, "timm", {CONFIG: config}, tensors)


def _architecture(model, table, size, allow_epsilon):
    """timm's architecture for a model, and the arguments of timm's constructor that differ."""
    kind = type(model).__name__
    if not table.timm_module:
        raise ValueError(f"timm has no {kind}.")
    if model.pooling not in table.timm_poolings:
        raise ValueError(
            f"timm has no {kind} with pooling={model.pooling!r}, only with "
            f"{', '.join(table.timm_poolings)}."
        )
    wanted = _lasting(_options(model, table, size))
    near = sorted(_nearest(wanted, table), key=lambda row: row[0])
    exact = [row for row in near if not _fixed_epsilons(row[2], table)]
    if not near:
        raise ValueError(f"timm has no architecture for this {kind}: none has the same structure.")
    _, name, changed, own = (exact or near)[0]
    if not exact and not allow_epsilon:
        epsilon = _fixed_epsilons(changed, table)[0]
        there, here = (x[epsilon] or x[EPSILON] for x in (own, wanted))
        raise ValueError(
            f"timm's {name} matches this {kind} except for the epsilon of its norms, "
            f"{there:g} there and {here:g} here, for which timm has no argument. "
            "Logits differ slightly. To write it anyway: save_to_timm(..., allow_epsilon=True)."
        )
    theirs = {ours: name for name, ours in table.timm.items()}
    arguments = {theirs[k]: wanted[k] for k in changed if k in theirs}
    if "pooling" in changed:
        after, final = wanted["fc_norm"], wanted["final_norm"]
        if not table.timm_norms_apart:  # one argument for the norm, wherever it is
            final = after or final
        norms = {"fc_norm": after, "final_norm": final}
        arguments |= {theirs[name]: norm for name, norm in norms.items() if name in theirs}
        arguments["global_pool"] = wanted["pooling"]
    if model.image_size is None and _has_size(table):
        arguments["dynamic_img_size"] = True
    return name, {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}


def _has_size(table):
    """Whether timm's models are made for one image size."""
    return "image_size" in table.timm.values()


def _fixed_epsilons(names, table):
    """Those of the names that are epsilons and no arguments of timm's constructor."""
    return sorted(n for n in names if n.endswith(EPSILON) and n not in table.timm.values())


def _options(model, table, size):
    """The options of the model and its head, for images of that size."""
    head = {name: getattr(model, name) for name in HEAD}
    options = {**model.backbone.options, **head, "image_size": size}
    if _has_size(table) and model.backbone.grid(options) != model.backbone.grid_size:
        raise ValueError(
            f"The position embedding of this {type(model).__name__} does not fit images of "
            f"{size[0]} x {size[1]} pixels, the output of its preprocessor."
        )
    return options


def _lasting(options):
    """Options that matter for what a loaded model computes."""
    free = (*HARMLESS, "drop_path", "grid_size")
    lasting = {k: v for k, v in options.items() if k not in free}
    if not lasting["fc_norm"] or lasting["fc_norm_eps"] == lasting.get("norm_eps"):
        lasting["fc_norm_eps"] = None  # that of the other norms
    if not lasting["representation_size"]:
        lasting["representation_activation"] = None
    return lasting


def _nearest(wanted, table):
    """The architectures that differ only in arguments of timm's constructor, or in epsilon:
    (rank, name, the differing options, its own options)."""
    backbone_cls = class_of(table.name).backbone_cls
    head = {**defaults_of(ImageClassifier.__init__), "pooling": table.timm_poolings[0]}
    head = {name: head[name] for name in HEAD}
    free = {ours for name, ours in table.timm.items() if name not in table.timm_fixed}
    free |= set() if _has_size(table) else {"image_size"}
    # Where the only argument says that the norm follows the pooling, there must be one norm.
    norms = wanted["fc_norm"], wanted.get("final_norm")
    moves = "final_norm" in free or ("fc_norm" in free and norms in ((0, 1), (1, 0)))
    free |= {"pooling"} if moves else set()
    for row in table.checkpoints.values():
        if row.folder is not None:
            continue
        own = _lasting({**head, **backbone_cls.complete(row.options)})
        changed = {k for k, v in wanted.items() if own.get(k) != v}
        if changed & set(POOLED):
            changed = {*changed - set(POOLED), "pooling"}
        # Not an argument of timm, and without effect on a loaded model, but equal is better.
        rank = ("resample" in changed, len(changed))
        changed.discard("resample")
        needed = changed - {*_fixed_epsilons(changed, table)}
        if needed <= free:
            yield rank, row.name.partition(".")[0], changed, own

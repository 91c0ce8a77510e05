"""The way back: config, safetensors and card that timm and transformers load, with equal logits."""

import json
import pathlib

from keras_vit import hub, presets, weights
from keras_vit.keys import spellings
from keras_vit.layouts import ACTIVATIONS, TIMM_ARGUMENTS, family_of
from keras_vit.models.classifier import ImageClassifier

PIL_RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


def write(model, directory, layout):
    """Write a model's directory in the layout of `"timm"` or `"transformers"`; see
    `ImageClassifier.save_to_timm`."""
    config, files, tensors = LAYOUTS[layout](model)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    hub.write_safetensors(directory / hub.WEIGHTS, tensors)
    for name, content in {hub.CONFIG: config, **files}.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    (directory / "README.md").write_text(card(model, layout), "utf-8")


def timm(model):
    family = family_of(model)
    architecture, arguments = timm_architecture(model, family)
    height, width = model.image_size
    images = numbers(model)
    cfg = {
        "input_size": [model.backbone.options["in_channels"], height, width],
        "fixed_input_size": True,
        "num_classes": model.num_classes,
        **{k: images[k] for k in ("interpolation", "crop_pct", "crop_mode", "mean", "std")},
    }
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.backbone.options["embed_dim"],
        "global_pool": model.pooling,
        "model_args": arguments,
        "pretrained_cfg": cfg,
    }
    if model.labels:
        config["label_names"] = model.labels
    return config, {}, weights.export(model, presets.families()[family].get("rename", {}))


def timm_architecture(model, family):
    """The registered architecture that a model is, or is by few arguments of timm's constructor."""
    wanted = {**model.backbone.defaults(), **model.backbone.options}
    wanted |= {name: getattr(model, name) for name in ("pooling", "fc_norm", "pool_include_prefix")}
    if model.pooling == "token_avg":
        raise ValueError('timm has no ViT whose head reads token and mean (pooling="token_avg").')
    theirs = {ours: name for name, ours in TIMM_ARGUMENTS.items()}
    if family == "mixer":  # whose functions in timm let no caller change these
        for fixed in ("patch_size", "embed_dim", "depth", "mlp_ratio", "init_values"):
            del theirs[fixed]
    best = None
    table = presets.families()[family]
    for name, row in table["checkpoints"].items():
        if "path" in row:
            continue
        own = presets.expand(table, table["architectures"][row["arch"]])
        own = {"pooling": "token", **model.backbone.defaults(), "fc_norm": False, **own}
        own |= {
            "image_size": (row["size"],) * 2,
            "pool_include_prefix": own.get("pool_include_prefix", False),
        }
        training = ("drop_rate", "attn_drop_rate", "drop_path", "drop_path_rate", "pos_drop_rate")
        changed = {k: v for k, v in wanted.items() if k not in training and own.get(k) != v}
        # No argument of timm, and nothing that a loaded model computes: the best has it, too.
        rank = (changed.pop("resample", None) is not None, len(changed))
        if all(k in theirs for k in changed) and (best is None or rank < best[0]):
            best = (rank, name.partition(".")[0], changed)
    if best is None:
        raise ValueError(
            f"No architecture of timm is this {type(model).__name__}: its structure is none of "
            "timm's."
        )
    _, architecture, changed = best
    arguments = {theirs[k]: list(v) if isinstance(v, tuple) else v for k, v in changed.items()}
    return architecture, arguments


def transformers(model):
    kind, table = transformers_kind(model)
    options = {**model.backbone.defaults(), **model.backbone.options}
    labels = model.labels or [f"LABEL_{i}" for i in range(model.num_classes)]
    teacher = getattr(model, "distilled_head", False)
    heads = "ForImageClassification" + ("WithTeacher" if teacher else "")
    name = {"vit": "ViT", "deit": "DeiT"}[kind]
    height, width = model.image_size
    config = {
        "architectures": [name + (heads if model.num_classes else "Model")],
        "model_type": kind,
        **{theirs: options[ours] for ours, theirs in table["options"].items()},
        "intermediate_size": int(options["embed_dim"] * options["mlp_ratio"]),
        "hidden_act": {v: k for k, v in reversed(ACTIVATIONS.items())}[options["activation"]],
        "image_size": height if height == width else [height, width],
        "patch_size": options["patch_size"],
        "num_channels": options["in_channels"],
        "hidden_dropout_prob": options["drop_rate"],
        "attention_probs_dropout_prob": options["attn_drop_rate"],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    rename = presets.families()[family_of(model)].get("rename", {})
    prefix = table["prefix"][0] if model.num_classes else ""
    tensors = {}
    for key, tensor in weights.export(model, rename).items():
        keys = spellings(key, table["rename"])[0]
        head = key.startswith("head")
        if key.startswith("head.") and teacher:
            keys = [k.replace("classifier", "cls_classifier", 1) for k in keys]
        parts = [(("" if head else prefix) + k) for k in keys]
        tensors |= weights.parts(tensor, parts)
    return config, {"preprocessor_config.json": processor(model)}, tensors


def transformers_kind(model):
    """`"vit"` or `"deit"` and its table; an error where transformers' class could not compute the
    same."""
    if family_of(model) not in ("vit", "deit"):
        raise ValueError(
            f"transformers has no class for a {type(model).__name__}. save_to_timm() keeps all of "
            "it."
        )
    options = {**model.backbone.defaults(), **model.backbone.options}
    kind = "deit" if options.get("distillation_token") else "vit"
    table = presets.transformers()[kind]
    plain = {**type(model.backbone).defaults(), **{k: options[k] for k in table["options"]}}
    free = {*table["options"], "image_size", "patch_size", "in_channels", "mlp_ratio", "activation",
            "distillation_token", "drop_rate", "attn_drop_rate", "drop_path", "drop_path_rate",
            "pos_drop_rate", "resample"}  # fmt: skip
    odd = sorted(k for k in plain if k not in free and options[k] != plain[k])
    odd += [k for k in ("fc_norm", "representation_size") if getattr(model, k)]
    odd += ["pooling"] * (model.pooling != "token")
    if odd:
        raise ValueError(
            f"transformers has no class for this {type(model).__name__}: {', '.join(odd)} differ "
            "from a plain ViT's. "
            "save_to_timm() keeps all of it."
        )
    return kind, table


def numbers(model):
    """The arguments of the model's ImageConverter; an error if there is none."""
    if model.preprocessor is None:
        raise ValueError(
            "The model has no preprocessor: set model.preprocessor before it is saved."
        )
    return model.preprocessor.image_converter.get_config()


def processor(model):
    """preprocessor_config.json of the model's preprocessing numbers."""
    images = numbers(model)
    height, width = model.image_size
    full = [int(size / images["crop_pct"] + 1e-6) for size in (height, width)]
    center = images["crop_mode"] == "center"
    cropped = center or full != [height, width]
    kind = (
        "CLIPImageProcessor" if center else "DeiTImageProcessor" if cropped else "ViTImageProcessor"
    )
    size = {"shortest_edge": full[0]} if center else {"height": full[0], "width": full[1]}
    config = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "resample": PIL_RESAMPLE[images["interpolation"]],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": images["mean"],
        "image_std": images["std"],
    }
    if cropped:
        config |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    return config


def card(model, layout):
    """A model card: what the model is, where it comes from, how it was trained."""
    height, width = model.image_size
    source = getattr(model, "source", None)
    head, began = origin(model)
    lines = [
        "---",
        f"library_name: {layout}",
        "pipeline_tag: image-classification",
        "tags: [keras_vit]",
        *head,
        "---",
        "",
    ]
    lines += [f"# {type(model).__name__}, {model.count_params():,} parameters", ""]
    lines += [f"Image size {height} x {width}, {model.num_classes} classes, written by keras_vit."]
    if source:
        lines += ["", f"It began as {source}.{began}"]
    history = getattr(model, "history", None)
    if history is not None and history.history:
        # With validation_freq= some columns have fewer rows than there were epochs: left out.
        full = {k: v for k, v in history.history.items() if len(v) == len(history.epoch)}
        lines += ["", "## Training", "", "| epoch | " + " | ".join(full) + " |"]
        lines += ["|--:|" + "--:|" * len(full)]
        for epoch, *row in zip(history.epoch, *full.values(), strict=True):
            lines.append(f"| {epoch + 1} | " + " | ".join(f"{value:.4g}" for value in row) + " |")
    if model.labels:
        shown = ", ".join(model.labels[:20]) + (", ..." if len(model.labels) > 20 else "")
        lines += ["", "## Classes", "", shown]
    return "\n".join(lines) + "\n"


def origin(model):
    """What the preset that a model began as adds to its card: lines of the YAML head, and a
    sentence.

    Nothing for a model without one, or whose weights came from elsewhere than the preset's place.
    """
    name = getattr(model, "preset", None)
    row = presets.checkpoints().get(name)
    if row is None:
        return [], ""
    repository = row.get("hub", f"timm/{name}")
    if row.get("path", repository) not in (getattr(model, "source", None) or ""):
        return [], ""
    license = row["license"]
    head = [f"license: {license}"]
    if license == "nvidia-open-model-license":  # none of the Hub's names of licences
        head = ["license: other", f"license_name: {license}"]
    if "path" not in row:
        head.append(f"base_model: {repository}")
    top1 = f"; its top-1 on ImageNet-1k is {row['top1']:.2f} %" if "top1" in row else ""
    return head, f" This is the preset {name}, of the licence {license}{top1}."


LAYOUTS = {"timm": timm, "transformers": transformers}
ImageClassifier.write = write

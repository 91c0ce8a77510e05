"""transformers' layout: config.json as a `Spec`, and a model as files that transformers loads."""

import functools
from typing import Any

import keras_vit_presets as presets
from keras_vit import checks, models, weights
from keras_vit.hub import CONFIG, Repository
from keras_vit.keys import key_of, spellings
from keras_vit.layouts import card, convert, heads, processor
from keras_vit.layouts.spec import (
    ACTIVATIONS,
    Spec,
    activation,
    checked,
    family_of,
    images_of,
    spec_of,
)
from keras_vit.models.classifier import ImageClassifier
from keras_vit.text import printable
from keras_vit.types import Path
from keras_vit.weights import Tensor

# What every config can express, besides the table's own options, and what matters in training only.
COMMON = (
    "image_size", "patch_size", "in_channels", "mlp_ratio", "activation", "norm_eps", "drop_rate",
    "attn_drop_rate", "drop_path", "drop_path_rate", "pos_drop_rate", "patch_drop_rate", "resample",
    "grid_size",
)  # fmt: skip

PROBLEMS = {  # `problem_type` of a config: the classifier's activation
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": None,
}


def read_config(
    config: dict[str, Any], repository: Repository, processors: tuple[Repository, ...] = ()
) -> Spec:
    """The spec of a transformers config of one of the types in transformers.toml.

    Args:
        config: config.json.
        repository: where it is.
        processors: where to look for preprocessor_config.json first.
    """
    kind, table = _type(config, repository)
    architecture = str((config.get("architectures") or [""])[0])
    vision = _vision(config, table)
    options = _options(vision, table)
    names = heads.names_of_ids(config)
    swiglu = table.get("rename_swiglu", {}) if vision.get("use_swiglu_ffn") else {}
    images = processor.read_processor(
        (*processors, repository), table.get("processor", {}), options["image_size"]
    )

    def spec(head: heads.Head | None, classes: int) -> Spec:
        rename = {**table["rename"], **swiglu}
        if head is not None:
            rename[key_of("head", presets.families()[_family(table)].rename)] = head.key
        return spec_of(
            _family(table),
            {**options, **(head.options if head else {})},
            images=images,
            source=repository,
            names=rename,
            prefix=tuple(table["prefix"]),
            ignore=(*table["ignore"], *_other_heads(table, head)),
            convert=functools.partial(convert.tensors, rows=table.get("convert", {})),
            num_classes=classes,
            heads=_all_heads(table),
            labels=None if head is None or head.width else heads.labels(names, classes),
            activation=PROBLEMS.get(config.get("problem_type", ""), "auto"),
            name=str(repository),
        )

    def in_file(tensors: dict[str, Tensor]) -> Spec:
        name, head = heads.in_file(table, architecture, tensors)
        rows = head.rows(tensors) if head else 0
        found = spec(head, rows or _classes(config, vision, head, names))
        if head is not None and name != architecture:
            found.note = _note(repository, architecture, kind, name, head)
        return found

    head = heads.named(table, architecture)
    found = spec(head, _classes(config, vision, head, names))
    found.with_tensors = in_file
    return found


def _type(config, repository):
    """The type of a config's model, and its table."""
    kind = checks.kind(config["model_type"], "model_type", str)
    tables = presets.layout("transformers")
    if kind not in tables:
        raise ValueError(
            f"{repository} has a transformers model of type {kind!r}, which is not supported. "
            f"Supported: {', '.join(tables)}."
        )
    return kind, tables[kind]


def _note(repository, architecture, kind, name, head):
    """What to say where a file has another head than the class that its config names."""
    named = f"the class {printable(architecture)}" if architecture else "no class"
    like = f"an image classifier of type {kind}" if name == heads.SUFFIX else name
    return (
        f"{CONFIG} of {repository} names {named}, but the file has a head, {head.key}, which is "
        f"read as that of {like}. Compare a few outputs with the source's."
    )


def _classes(config, vision, head, names):
    """The number of outputs that a config says."""
    if head is None:
        return 0
    if head.width:
        width = config.get(head.width, vision.get(head.width))
        return checks.count(width, head.width, 1, checks.CLASSES)
    if names is not None:
        return len(names)
    return checks.count(config.get("num_labels", 2), "num_labels", most=checks.CLASSES)


def _all_heads(table):
    """The names, in a file, of all dense layers that may give logits."""
    cls = getattr(models, table["class"])
    names = [key_of(name, family_of(cls).rename) for name in cls.head_names]
    return tuple(k for name in names for (k,) in spellings(name, table["rename"]))


def _other_heads(table, head):
    """Patterns of the tensors of heads that are not used."""
    keys = {other.key for other in heads.heads(table).values()} - {head.key if head else ""}
    return [f"{key}.*" for key in sorted(keys)]


def _family(table):
    return family_of(getattr(models, table["class"])).name


def _vision(config, table):
    """The config of the vision tower, with defaults for omitted fields."""
    nested = table.get("nested")
    if nested:
        # A config of 4.x may have both; the second is what its user passed, and wins.
        both = [config.get(name) or {} for name in (nested, f"{nested}_dict")]
        config = {k: v for part in both for k, v in checks.kind(part, nested, dict).items()}
    return {**table.get("defaults", {}), **config}


def _options(config, table):
    """The hyper-parameters of a transformers config, under our names."""
    _check_assumed(config, table)
    needed = ("embed_dim", "depth", "num_heads")
    options = {
        ours: config[theirs]
        for ours, theirs in table["options"].items()
        if theirs in config or ours in needed
    }
    options |= {
        "image_size": checks.pair(config.get("image_size", 224), "image_size"),
        "in_channels": config.get("num_channels", 3),
    }
    options |= _of_stages(config) if table.get("stages") else _of_blocks(config)
    for field, (off, on) in table.get("switches", {}).items():
        options |= on if config.get(field) else off
    if "bit" in table:
        options["stages"] = _stages(config.get(table["bit"]) or {})
    names = {"in_channels": "num_channels", **table["options"]}
    return {**checked(_family(table), options, names), **table.get("fixed", {})}


def _check_assumed(config, table):
    """Refuse what transformers' class could be told, but no checkpoint needs."""
    for field, value in table.get("assumed", {}).items():
        if config.get(field, value) != value:
            raise checks.WrongValue(
                f"{field} must be {value}; other values are not supported. "
                f"Received: {config[field]!r:.80}"
            )


def _of_blocks(config):
    """The options of equal blocks."""
    return {
        **_mlp(config, checks.count(config["hidden_size"], "hidden_size", 1)),
        "patch_size": config.get("patch_size", 16),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    }


def _of_stages(config):
    """The options, besides those of the table, of a model with stages of several widths."""
    return {"activation": activation(config.get("hidden_act", "gelu"), "hidden_act")}


def _mlp(config, width):
    """The MLP's options. DINOv2 has a ratio; SwiGLU takes two thirds of it, in steps of 8."""
    act = activation(config.get("hidden_act", "gelu"), "hidden_act")
    if "use_swiglu_ffn" not in config:
        hidden = checks.count(config.get("intermediate_size", 3072), "intermediate_size", 1)
        gate = {"gate": "split"} if config.get("use_gated_mlp") else {}
        return {"mlp_ratio": checks.ratio(hidden, width), "activation": act, **gate}
    hidden = int(width * checks.positive(config["mlp_ratio"], "mlp_ratio"))
    checks.count(hidden, "hidden_size * mlp_ratio", 1)
    if not config["use_swiglu_ffn"]:
        return {"mlp_ratio": checks.ratio(hidden, width), "activation": act}
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return {"mlp_ratio": checks.ratio(2 * hidden, width), "activation": "silu", "gate": "packed"}


def _stages(config):
    """The stages of a BiT backbone, of the one kind that is supported."""
    checks.kind(config, "backbone_config", dict)
    checks.word(config.get("layer_type", "bottleneck"), "layer_type", ("bottleneck",))
    padding = checks.kind(config.get("global_padding") or "same", "global_padding", str)
    checks.word(padding.lower(), "global_padding", ("same",))
    depths = config.get("depths", [3, 4, 9])
    if not isinstance(depths, list) or len(depths) > 8:
        raise checks.WrongValue(f"depths must be a list of numbers. Received: {depths!r:.80}")
    return tuple(checks.count(d, "depths", 1, checks.DEEPEST) for d in depths)


def write_model(model: ImageClassifier, directory: Path) -> None:
    """Write a directory that transformers loads, see `ImageClassifier.save_to_transformers`."""
    kind, table = _kind(model)
    options, task = model.backbone.options, _task(model, table)
    labels = model.labels or [f"LABEL_{i}" for i in range(model.num_classes)]
    images = images_of(model)
    height, width = images["image_size"]
    config = {
        "architectures": [task],
        "model_type": kind,
        **{theirs: options[ours] for ours, theirs in table["options"].items()},
        "intermediate_size": int(options["embed_dim"] * options["mlp_ratio"]),
        "hidden_act": {v: k for k, v in reversed(ACTIVATIONS.items())}[options["activation"]],
        "image_size": height if height == width else [height, width],
        "patch_size": options["patch_size"],
        "num_channels": options["in_channels"],
        "hidden_dropout_prob": options["drop_rate"],
        "attention_probs_dropout_prob": options["attn_drop_rate"],
        "problem_type": _problem(model),
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    files = {CONFIG: config, processor.FILE: processor.processor_config(images)}
    card.write_directory(directory, model, "transformers", files, _tensors(model, table, task))


def _problem(model):
    known = {activation: problem for problem, activation in PROBLEMS.items()}
    return known[model.activation] if model.num_classes else None


def _kind(model):
    """The `model_type` for a model, and its table.

    Raises:
        ValueError: there is none; the differences from the nearest one are listed.
    """
    tables = presets.layout("transformers")
    odd = {
        kind: _odd(model, table)
        for kind, table in tables.items()
        if "writes" in table and isinstance(model, getattr(models, table["class"]))
    }
    kind = min(odd, key=lambda kind: len(odd[kind]), default=None)
    if kind is None or odd[kind]:
        differing = f": {', '.join(odd[kind])} differ from a plain one's" if kind else ""
        raise ValueError(
            f"transformers has no class for a {type(model).__name__} like this{differing}. "
            "save_to_preset() keeps everything."
        )
    return kind, tables[kind]


def _odd(model, table):
    """The arguments of a model that a type's config cannot express."""
    plain = getattr(models, table["class"]).backbone_cls.defaults()
    plain |= {"pooling": "token", "fc_norm": False, "representation_size": None}
    plain |= table.get("fixed", {}) | _task_options(model, table)
    head = {name: getattr(model, name) for name in plain if name not in model.backbone.options}
    free = {*COMMON, *table["options"]}
    options = {**model.backbone.options, **head}
    return sorted(k for k in options if k not in free and options[k] != plain.get(k, KeyError))


def _task(model, table):
    """The name of the class in `architectures`."""
    if not model.num_classes:
        return table["writes"]["model"]
    for name in table.get("tasks", {}):
        if _is(model, _head_options(table, name)):
            return name
    return table["writes"]["head"]


def _task_options(model, table):
    name = _task(model, table)
    return _head_options(table, name) if name in table.get("tasks", {}) else {}


def _head_options(table, task):
    return {k: v for k, v in table["tasks"][task].items() if k not in ("classes", "head")}


def _is(model, options):
    return bool(options) and all(getattr(model, k, None) == v for k, v in options.items())


def _tensors(model, table, task):
    """The tensors under the file's keys."""
    prefix = table["prefix"][0] if model.num_classes else ""
    own = (
        table.get("tasks", {}).get(task, {}).get("head")
    )  # the key of the head, where it has its own
    found = {}
    for key, tensor in weights.export(model, family_of(type(model)).rename).items():
        keys = spellings(key, table["rename"])
        if own and key.startswith("head."):
            keys = [[k] for (k,) in keys if k.startswith(f"{own}.")]
        of_trunk = not key.startswith("head")
        found |= weights.parts(tensor, [(prefix if of_trunk else "") + k for k in keys[0]])
    return found

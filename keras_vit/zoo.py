"""Presets by name, and models from them: here name, family, weights and preprocessing meet."""

import difflib
import logging
import pathlib
from typing import Any, Unpack

import keras_vit_presets as presets
from keras_vit import checks, hub, layouts, weights
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.keys import key_of, spellings
from keras_vit.layouts import Spec
from keras_vit.layouts.saved import Saved
from keras_vit.layouts.spec import BUILDING
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Path, PresetOptions

log = logging.getLogger("keras_vit")
CHECKPOINT = "checkpoint"  # the size of the checkpoint itself
# The arguments of from_preset, by what they change:
BACKBONE = ("image_size", "in_channels", "patch_size", "drop_path_rate", "patch_drop_rate")
HEAD = ("pooling", "drop_rate", "labels")
IMAGES = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
PLACE = ("revision", "token", "cache_dir", "local_files_only")
DIRECTORY = "a directory with a config.json"


def list_presets(pattern: str = "*") -> list[str]:
    """The names of all presets that match a pattern, whatever its case.

    Args:
        pattern: `"deit*"`, where `*` stands for any text, `?` for one character; or, without
            these, a part of the name: `"tiny"`.
    """
    return presets.matching(pattern)


def preset_info(name: str) -> dict[str, Any]:
    """Facts about a preset.

    Returns:
        A dict: name, class, source (the Hub's repository), image_size (pixels), num_classes,
        params, top1 and top5 (ImageNet-1k, per cent, or None), license, and the settings of its
        preprocessing.

    Raises:
        ValueError: an unknown name; the message lists the nearest ones.
    """
    row = presets.checkpoints().get(name)
    if row is None:
        raise ValueError(unknown(name))
    return {
        "name": name,
        "class": row.cls,
        "source": row.repository or "in this package",
        "num_classes": row.num_classes,
        "params": row.params,
        "top1": row.top1,
        "top5": row.top5,
        "license": row.license,
        **row.images,
    }


def unknown(name: str) -> str:
    """The message for a name that is not a preset."""
    why = presets.unsupported().get(name)
    if why:
        return f"{name} is not supported: {why}."
    if name.endswith(layouts.SUFFIXES):
        return f"There is no file {name}."
    if name.startswith((".", "/", "~")) or pathlib.Path(name).is_file():
        return (
            f"{name} is not a directory. A preset on disk is {DIRECTORY}, or a weights file "
            f"({', '.join(layouts.SUFFIXES)})."
        )
    stem, _, tag = name.lower().replace("-", "_").partition(".")
    stems = dict.fromkeys(n.partition(".")[0] for n in presets.checkpoints())
    near = [s for s in stems if stem and s.startswith(stem)][:4]
    near = near or difflib.get_close_matches(stem, stems, n=4, cutoff=0.5)
    near = [n for s in near for n in presets.checkpoints() if n.partition(".")[0] == s]
    if tag:
        near = difflib.get_close_matches(name.lower(), near, n=4, cutoff=0)
    hint = f"The nearest names are: {', '.join(near[:6])}. " if near else ""
    return (
        f"Unknown preset {name!r}. {hint}A preset is a name of keras_vit.list_presets() or "
        f'`keras-vit list`, a repository of the Hub ("hf://org/name"), {DIRECTORY}, or a weights '
        f"file ({', '.join(layouts.SUFFIXES)}). There is no directory or file of this name."
    )


def from_preset(preset: Path, **options: Unpack[PresetOptions]) -> ImageClassifier:
    """A classifier with the weights of a checkpoint; its class follows from the checkpoint.

    Arguments and errors as in `ViT.from_preset`.
    """
    return load_classifier(ImageClassifier, preset, **options)


def load_classifier(
    cls: type[ImageClassifier], preset: Path, **options: Unpack[PresetOptions]
) -> ImageClassifier:
    """`from_preset` of all classes; see `ImageClassifier.from_preset`."""
    checks.known(options, PresetOptions.__annotations__)
    load_weights, dtype = options.get("load_weights", True), options.get("dtype")
    size = options.pop("image_size", CHECKPOINT)
    if size != CHECKPOINT:
        options["image_size"] = size
    asked = checks.requests(dict(options))
    backbone, head, images, place = (_chosen(asked, n) for n in (BACKBONE, HEAD, IMAGES, PLACE))
    if size is None:
        backbone["image_size"] = None
    spec = find_spec(preset, place, load_weights, asked)
    made = _class_to_make(cls, spec, preset)
    _check_heads(spec, asked.get("num_heads"), preset)
    classes = asked.get("num_classes")
    changed = backbone or head or images or classes is not None or made is not spec.cls
    if spec.restore and not changed:
        model = spec.restore(dtype, load_weights)
    else:
        tensors = spec.tensors() if load_weights else None
        if tensors is not None and spec.with_tensors:
            spec = spec.with_tensors(tensors)
        if images:
            channels = backbone.get("in_channels", spec.backbone["in_channels"])
            spec.images = _prepared(spec.images, images, channels)
        if spec.note:
            log.warning(spec.note)
        with BUILDING:
            model = build_classifier(spec, tensors, backbone, head, classes, dtype, made)
        if isinstance(spec.source, Saved):
            spec.source.freeze(model.backbone)
        model.preset = spec.name or None
    model.source = spec.source.uri if load_weights and spec.source else None
    return model


def _chosen(options, names):
    return {name: options[name] for name in names if name in options}


def _class_to_make(cls, spec, preset):
    """The checkpoint's class, or one that a user derived from it."""
    if issubclass(cls, spec.cls) and layouts.family_of(cls).name == spec.family:
        return cls
    if not issubclass(spec.cls, cls):
        raise ValueError(
            f"{preset} is a checkpoint of {spec.cls.__name__}, not of {cls.__name__}. "
            f"Use keras_vit.{spec.cls.__name__}.from_preset or keras_vit.from_preset."
        )
    return spec.cls


def _check_heads(spec, num_heads, preset):
    """The argument is for files that do not say it."""
    own = spec.backbone.get("num_heads")
    if num_heads not in (None, own):
        raise ValueError(
            f"{preset} has {own or 'no'} attention heads. Received: num_heads={num_heads}"
        )


def _prepared(images, given, channels):
    """Arguments of `ImageConverter` with those of a caller, one number of each per channel."""
    for name in ("mean", "std"):
        if name in given and len(given[name]) not in (1, channels):
            raise checks.WrongValue(
                f"{name} must be one number, or one for each of {channels} channels. "
                f"Received: {len(given[name])}"
            )
    if not images and not ("mean" in given and "std" in given):
        raise checks.WrongValue("The preset has no preprocessing. Pass both mean= and std=.")
    full = {
        k: v * channels if k in ("mean", "std") and len(v) == 1 else v for k, v in given.items()
    }
    return {**(for_channels(images, channels) if images else {}), **full}


def find_spec(
    preset: Path,
    source_options: dict[str, Any],
    load_weights: bool = True,
    given: dict[str, Any] | None = None,
) -> Spec:
    """The `Spec` of a preset; no weights are read, nothing is built.

    Args:
        preset: as in `from_preset`.
        source_options: arguments of `hub.Repository`.
        load_weights: False: the name of an architecture is accepted, too.
        given: as in `layouts.spec_of_file`.
    """
    preset = str(preset)
    row = presets.checkpoints().get(preset)
    if row is not None:
        return layouts.from_checkpoint(row, hub.Repository(row.place, **source_options))
    architecture = None if load_weights else layouts.from_architecture(preset)
    if architecture:
        return architecture
    if preset.endswith(layouts.SUFFIXES) and pathlib.Path(preset).is_file():
        return layouts.spec_of_file(preset, given)
    is_directory = preset and pathlib.Path(preset).is_dir()
    is_name = preset.count("/") == 1 and not preset.startswith((".", "/", "~"))
    is_name &= not preset.endswith(layouts.SUFFIXES)
    if not is_directory and not is_name and not preset.startswith("hf://"):
        raise ValueError(unknown(preset))
    return layouts.from_repository(hub.Repository(preset, **source_options))


def build_classifier(
    spec: Spec,
    tensors: dict[str, weights.Tensor] | None,
    backbone: dict[str, Any],
    head: dict[str, Any],
    num_classes: int | None,
    dtype: Any,
    cls: type[ImageClassifier] | None = None,
) -> ImageClassifier:
    """The model of a spec, with changes of its backbone and head, and with the tensors loaded, if
    given."""
    cls = cls or spec.cls
    trunk = cls.backbone_cls.changed(spec.backbone, backbone)
    if trunk["image_size"] is None and "grid_size" in trunk:  # the table keeps the spec's grid
        trunk["grid_size"] = cls.backbone_cls.grid(spec.backbone)
    kept = num_classes is None
    classes = spec.num_classes if num_classes is None else num_classes
    heads = [f"{name}/{leaf}" for name in cls.head_names for leaf in ("kernel", "bias")]
    fresh = [] if kept else heads
    changed = {**spec.head, **head}
    if changed.get("pooling") != spec.head.get("pooling") and head.get("pooling"):
        fresh += ["attn_pool/*", "seq_pool/*", "fc_norm/*"]
    representation = representation_width(spec, tensors)
    # Where a trained head stands on this layer, both stay.
    stays = cls.keeps_pre_logits or (kept and spec.head.get("representation_size"))
    if representation and (stays or not classes):
        changed["representation_size"] = representation
    else:
        changed["representation_size"] = None
        fresh.append("pre_logits/*")
    changed.setdefault("labels", spec.labels if kept else None)
    changed["activation"] = spec.activation if kept else "auto"
    # Inside, variables get no initial values: `weights.load_tensors` sets them.
    with weights.deferred():
        trunk = cls.backbone_cls(**trunk, dtype=dtype)
        preprocessor = _preprocessor(spec.images, trunk)
        model = cls(trunk, classes, preprocessor=preprocessor, compile=False, **changed)
        checks.size(model, spec.source, tensors)
        if tensors is not None:
            weights.load_tensors(
                model,
                tensors,
                spec.table.rename,
                names=spec.names,
                fresh=fresh,
                ignore=spec.ignore,
                optional=spec.optional,
                resizers=trunk.resizers(spec.backbone) if backbone else None,
                where=str(spec.source or spec.name),
            )
    model.compile()
    return model


def _preprocessor(images, backbone):
    """The preprocessor with those arguments of `ImageConverter`; None: there are none."""
    if not images:
        return None
    size = backbone.image_size or images.get("image_size") or backbone.example_size
    images = {**images, "image_size": size}
    converter = ImageConverter(**for_channels(images, backbone.options["in_channels"]))
    return ImagePreprocessor(converter)


def representation_width(spec: Spec, tensors: dict[str, weights.Tensor] | None) -> int | None:
    """The width of the checkpoint's pre-logits layer (transformers: the pooler); None: there is
    none."""
    key = key_of("pre_logits/kernel", spec.table.rename)
    for (name,) in spellings(key, spec.names or {}):
        if tensors and name in tensors:
            return tensors[name].shape[0]
    return spec.head.get("representation_size") if tensors is None else None


def for_channels(images: dict[str, Any], channels: int) -> dict[str, Any]:
    """Mean and std for another number of channels: one channel takes the average, more channels
    repeat them in turn."""
    count = len(images["mean"])
    if channels == count:
        return images
    if channels == 1:
        means = {k: [sum(images[k]) / count] for k in ("mean", "std")}
    else:
        means = {k: [images[k][i % count] for i in range(channels)] for k in ("mean", "std")}
    return {**images, **means}

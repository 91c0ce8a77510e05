"""The only place where name, family, weights and preprocessing meet."""

import contextlib
import difflib
import fnmatch
import pathlib

import keras

from keras_vit import checks, hub, layouts, models, presets, weights
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.keys import spellings
from keras_vit.layers.patches import pair
from keras_vit.layouts import kerashub, saved
from keras_vit.models.classifier import ImageClassifier
from keras_vit.resize import Resize

CHECKPOINT = "checkpoint"  # the size of the checkpoint itself
DIRECTORY = "a directory that holds config.json"


def list_presets(pattern="*"):
    """The names of all presets that match, `*` and `?` standing for anything:
    `list_presets("deit*")`."""
    return [name for name in presets.checkpoints() if fnmatch.fnmatch(name, pattern)]


def preset_info(name):
    """What is known of a preset.

    Returns:
        A dict: name, class, source (the Hub's repository), image_size (pixels), num_classes,
            params, top1 and top5
        (ImageNet-1k, per cent, or None), license, and the numbers of its preprocessing.

    Raises:
        ValueError: an unknown name; the nearest ones are said.
    """
    row = presets.checkpoints().get(name)
    if row is None:
        raise ValueError(unknown(name))
    table = presets.families()[row["family"]]
    return {
        "name": name,
        "class": table["class"],
        "source": row.get("hub", f"timm/{name}") if "path" not in row else "in this package",
        "image_size": row["size"],
        "num_classes": row["classes"],
        "params": row["params"],
        "top1": row.get("top1"),
        "top5": row.get("top5"),
        "license": row["license"],
        **table["norms"][row["norm"]],
        "crop_pct": row["crop"],
        "crop_mode": row.get("crop_mode", "center"),
        "interpolation": row.get("interpolation", "bicubic"),
    }


def unknown(name):
    """What to say of a name that is none."""
    why = presets.unsupported().get(name)
    if why:
        return f"{name} is not supported: {why}."
    if name.endswith(layouts.SUFFIXES):
        return f"There is no file {name}."
    if name.startswith((".", "/", "~")) or pathlib.Path(name).is_file():
        return (
            f"{name} is not a directory. A preset on disk is {DIRECTORY}, or a file of weights "
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
        f'`keras-vit list`, a repository of the Hub ("hf://org/name"), {DIRECTORY}, or a file of '
        f"weights ({', '.join(layouts.SUFFIXES)}); of the last two none is called so here."
    )


def from_preset(preset, **options):
    """A classifier with the weights of a checkpoint; its class follows from the checkpoint.

    Arguments and errors as in `ViT.from_preset`.
    """
    return load(ImageClassifier, preset, **options)


def load(
    cls,
    preset,
    *,
    num_classes=None,
    image_size=CHECKPOINT,
    in_channels=None,
    patch_size=None,
    pooling=None,
    drop_rate=None,
    drop_path_rate=None,
    dtype=None,
    load_weights=True,
    **source_options,
):
    """`from_preset` of all classes; see `ImageClassifier.from_preset`."""
    checks.known(source_options, load, hub.Repository.__init__)
    any_size = image_size is None
    backbone = {
        "image_size": None if image_size == CHECKPOINT else image_size,
        "in_channels": in_channels,
        "patch_size": patch_size,
        "drop_path_rate": drop_path_rate,
    }
    backbone = checks.wishes(backbone)
    head = checks.wishes({"pooling": pooling, "drop_rate": drop_rate})
    num_classes = checks.wishes({"num_classes": num_classes})["num_classes"]
    changes = [{k: v for k, v in d.items() if v is not None} for d in (backbone, head)]
    if any_size:
        changes[0]["image_size"] = None
    spec, tensors = find(
        preset, source_options, load_weights, dtype, any((*changes, num_classes is not None))
    )
    if isinstance(spec, keras.Model):
        check_class(cls, type(spec), preset)
        return spec
    check_class(cls, getattr(models, spec.cls), preset)
    if tensors is None and load_weights:
        tensors = without_prefix(spec.source.tensors(), spec.prefix)
        tensors = spec.prepare(tensors) if spec.prepare else tensors
        checks.depth(spec, tensors)
    model = build(spec, tensors if load_weights else None, *changes, num_classes, dtype)
    model.source = spec.source.uri if load_weights else None
    model.preset = spec.name or None
    return model


def find(preset, source_options, load_weights, dtype, changed):
    """Where a preset's numbers come from.

    Returns:
        (spec, None) where the tensors are still to be read; (spec, tensors) for a Keras directory
        that is to be changed; (model, None) for one that is taken as it is.
    """
    preset = str(preset)
    row = presets.checkpoints().get(preset)
    if row is not None:
        place = (
            presets.FOLDER / row["path"]
            if "path" in row
            else f"hf://{row.get('hub', f'timm/{preset}')}"
        )
        return layouts.from_row(preset, hub.Repository(place, **source_options)), None
    if not load_weights and presets.architecture(preset):
        return layouts.from_architecture(preset), None
    if preset.endswith(layouts.SUFFIXES) and pathlib.Path(preset).is_file():
        return layouts.spec_of_file(preset), None
    is_directory = preset and pathlib.Path(preset).is_dir()
    is_name = preset.count("/") == 1 and not preset.startswith((".", "/", "~"))
    is_name &= not preset.endswith(layouts.SUFFIXES)
    if not is_directory and not is_name and not preset.startswith("hf://"):
        raise ValueError(unknown(preset))
    repository = hub.Repository(preset, **source_options)
    config = repository.json(hub.CONFIG)
    if "registered_name" not in config or kerashub.is_preset(config):
        return layouts.from_repository(repository), None
    model = saved.load(repository, dtype, load_weights)
    if not changed:
        return model, None
    spec = saved.spec_of_model(model, repository)
    return spec, weights.export(model, spec.rename)


def check_class(cls, found, preset):
    if not issubclass(found, cls):
        raise ValueError(
            f"{preset} is a checkpoint of {found.__name__}, not of {cls.__name__}. "
            f"Use keras_vit.{found.__name__}.from_preset or keras_vit.from_preset."
        )


def build(spec, tensors, backbone, head, num_classes, dtype):
    """The model of a spec, with changes of its backbone and head, and with its tensors loaded, if
    there are any."""
    cls = getattr(models, spec.cls)
    new = {**spec.backbone, **backbone}
    if new["image_size"] is None:  # any size: the table keeps the checkpoint's grid
        if cls.backbone_cls.fixed_size:
            raise ValueError(one_size(cls.backbone_cls, pair(spec.backbone["image_size"]), None))
        new["grid_size"] = grid(spec, cls.backbone_cls)
    kept = num_classes is None
    classes = spec.num_classes if kept else num_classes
    head = {**spec.head, **head, "labels": spec.labels if kept else None}
    optional = [] if kept and classes else ["head", "head_dist"]
    if "pooling" in backbone | head and head.get("pooling", "token") != spec.head.get(
        "pooling", "token"
    ):
        optional += ["attn_pool", "fc_norm"]
    representation = representation_width(spec, tensors)
    # Where a trained head stands on this layer, both stay.
    under_head = kept and spec.head.get("representation_size")
    if representation and (not classes or under_head):
        head["representation_size"] = representation
    else:
        optional.append("pre_logits")
    # In the scope variables wait for their values: `weights.load` says where these come from.
    with weights.deferred() if tensors is not None else contextlib.nullcontext():
        trunk = cls.backbone_cls(**new, dtype=dtype)
        images = {**spec.images, "image_size": trunk.image_size or spec.images["image_size"]}
        images = ImageConverter(**for_channels(images, new.get("in_channels", 3)))
        model = cls(trunk, classes, preprocessor=ImagePreprocessor(images), compile=False, **head)
        if tensors is not None:
            weights.load(
                model,
                tensors,
                spec.rename,
                names=spec.names,
                optional=tuple(optional),
                ignore=spec.ignore,
                adapt=resize(spec, trunk) if backbone else None,
                where=str(spec.source or spec.name),
            )
    model.compile()
    return model


def representation_width(spec, tensors):
    """The width of the checkpoint's pre-logits layer (transformers: the pooler), None where there
    is none."""
    for (key,) in spellings("pre_logits.weight", spec.names or {}):
        if tensors and key in tensors:
            return tensors[key].shape[0]
    return spec.head.get("representation_size") if tensors is None else None


def for_channels(images, channels):
    """Preprocessing numbers for another number of channels: grey takes the mean, more repeat in
    turn."""
    count = len(images["mean"])
    if channels == count:
        return images
    if channels == 1:
        means = {k: [sum(images[k]) / count] for k in ("mean", "std")}
    else:
        means = {k: [images[k][i % count] for i in range(channels)] for k in ("mean", "std")}
    return {**images, **means}


def grid(spec, backbone_cls):
    """(rows, columns) of patches of the checkpoint."""
    stride = backbone_cls.stride(spec.backbone)
    return tuple(size // stride for size in pair(spec.backbone["image_size"]))


def resize(spec, trunk):
    """How the checkpoint's tables and kernels become those of the backbone."""
    size = pair(spec.backbone["image_size"])
    if trunk.fixed_size and size != trunk.image_size:
        raise ValueError(one_size(type(trunk), size, trunk.image_size))
    prefix = 0 if trunk.options.get("no_embed_class") else trunk.num_prefix_tokens
    patch = spec.backbone["patch_size"]
    resample = trunk.options.get("resample", "bicubic")
    return Resize(grid(spec, type(trunk)), trunk.grid_size, prefix, patch, resample=resample)


def one_size(backbone_cls, size, wanted):
    """What to say where the weights fit images of one size only."""
    return (
        f"The weights of a {backbone_cls.__name__} fit images of {size[0]} x {size[1]} pixels "
        f"only. Received: image_size={wanted}"
    )


def without_prefix(tensors, prefixes):
    """Tensors under the keys of the trunk: what a layout puts before them is cut off."""
    for prefix in prefixes:
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


ImageClassifier.load = load

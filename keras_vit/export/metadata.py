"""What a TFLite file says of itself: its tensors, the names of its classes, its preset.

The standard is TensorFlow's, https://ai.google.dev/edge/litert/conversion/tensorflow/metadata: a
flatbuffer in a buffer of the model, and a ZIP archive behind the model. MediaPipe, Android Studio
and Netron read it; the interpreter passes over it.
"""

import json
import mmap
import pathlib
import zipfile

import keras_vit
from keras_vit import presets
from keras_vit.export import common, flatbuffer, schema
from keras_vit.labels import imagenet_labels

BUFFER = "TFLITE_METADATA"
LABELS, PRESET = "labels.txt", "preset.json"


def write(content, model, preprocessing=True, quantize=None):
    """A TFLite file that says what it is.

    Args:
        content: bytes of a file with one input of images and one output.
        model: the model that it was made from.
        preprocessing, quantize: as they were for `to_tflite`.

    Returns:
        bytes: the file with TensorFlow's metadata, and behind it, as an archive, labels.txt (one
        name per line, where the classes have names) and preset.json.

    Raises:
        ValueError: not a TFLite file, or one that has metadata.
    """
    if flatbuffer.buffer(content, BUFFER) is not None:
        raise ValueError("This TFLite file has metadata already.")
    preset = {**about(model), "preprocessing": preprocessing, "quantize": quantize}
    labels = class_names(model)
    fields = _model(preset, _input(model, preset), _output(model, preset, labels))
    data = flatbuffer.pack(schema.SCHEMA, "ModelMetadata", fields, schema.IDENTIFIER)
    file = flatbuffer.with_buffer(content, BUFFER, data)
    texts = {PRESET: json.dumps(preset, indent=2) + "\n"}
    if labels:
        texts[LABELS] = "".join(f"{label}\n" for label in labels)
    with zipfile.ZipFile(file, "w") as archive:  # not compressed: else MediaPipe refuses it
        for name, text in texts.items():  # without a date: equal models make equal files
            archive.writestr(zipfile.ZipInfo(name), text)
    return file.getvalue()


def about(model):
    """What preset.json says of a model: where it comes from, what it wants to be fed with.

    Mean and standard deviation are per channel, for pixels in 0..1.
    """
    preset, source = (getattr(model, name, None) or "" for name in ("preset", "source"))
    revision = ""
    if source.startswith("hf://"):
        source, _, revision = source.partition("@")
    else:  # a place on this machine is nobody's business
        source = pathlib.PurePath(source).name
    numbers = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
    converter = common.converter(model)
    return {
        "name": pathlib.PurePath(preset).name or type(model).__name__,
        "source": source or None,
        "revision": revision or None,
        "license": presets.checkpoints().get(preset, {}).get("license"),
        "class": type(model).__name__,
        "num_classes": getattr(model, "num_classes", None),
        "image_size": list(model.inputs[0].shape[1:3]),
        **{name: getattr(converter, name, None) for name in numbers},
        "keras_vit": keras_vit.__version__,
    }


def class_names(model):
    """The names of the classes, one line each, or None."""
    labels = getattr(model, "labels", None)
    if labels is None and getattr(model, "num_classes", None) == 1000:
        labels = imagenet_labels()
    return labels and [" ".join(label.split()) for label in labels]


def _model(preset, images, output):
    height, width = preset["image_size"]
    kind = f"{preset['num_classes']} classes" if preset["num_classes"] else "features"
    return {
        "name": preset["name"],
        "description": f"{preset['class']}, {kind}, for images of {height} x {width} pixels.",
        "version": preset["revision"],
        "author": preset["source"] and f"the authors of {preset['source']}",
        "license": preset["license"],
        "subgraph_metadata": [
            {"input_tensor_metadata": [images], "output_tensor_metadata": [output]}
        ],
        "associated_files": [_file(PRESET, "Source and preprocessing.", schema.DESCRIPTIONS)],
        "min_parser_version": schema.PARSER,
    }


def _file(name, description, kind):
    return {"name": name, "description": description, "type": kind}


def _input(model, preset):
    channels, inside = model.inputs[0].shape[-1], preset["preprocessing"]
    found = {
        "name": common.RAW if inside else common.PREPARED,
        "description": _cut(preset) if preset["mean"] else "Images as the model was trained with.",
        "content": {
            "content_properties_type": schema.IMAGE,
            "content_properties": {"color_space": schema.COLOR_SPACES.get(channels, 0)},
        },
    }
    if preset["mean"]:  # what is still to be done to pixels in 0..255
        mean, std = ([255 * x for x in preset[name]] for name in ("mean", "std"))
        mean, std = ([0.0] * channels, [1.0] * channels) if inside else (mean, std)
        options = {"mean": mean, "std": std}
        found["process_units"] = [{"options_type": schema.NORMALIZATION, "options": options}]
        low, high = ([(x - m) / s for m, s in zip(mean, std, strict=True)] for x in (0, 255))
        found["stats"] = {"min": low, "max": high}
    return found


def _cut(preset):
    """How a picture becomes pixels of the file's size."""
    height, width = preset["image_size"]
    full = [int(size / preset["crop_pct"] + 1e-6) for size in (height, width)]
    goal = f"{full[0]} x {full[1]} pixels"
    goal = f"cover {goal} in its own proportions" if preset["crop_mode"] == "center" else goal
    return (
        f"Pixels in 0..255{'' if preset['preprocessing'] else ', normalized'}: a picture resized "
        f"to {goal} ({preset['interpolation']}, antialiased), of it the middle {height} x {width}."
    )


def _output(model, preset, labels):
    name = common.output_name(model, preset["preprocessing"])
    found = {
        "name": name,
        "description": "Pooled features." if name == "features" else "One number for each class.",
        "content": {"content_properties_type": schema.FEATURE, "content_properties": {}},
    }
    if name == "probabilities":
        found["stats"] = {"min": [0.0], "max": [1.0]}
    if labels:
        found["associated_files"] = [_file(LABELS, "Class names.", schema.TENSOR_AXIS_LABELS)]
    return found


def read(path):
    """What a TFLite file says of itself.

    Args:
        path: the file, of this package or another program's.

    Returns:
        A dict: `metadata`, nested, in the words of TensorFlow's schema; `labels`, the names of the
        classes; `preset`, what preset.json holds. What the file lacks is left out, so `{}` is of a
        file without metadata.

    Raises:
        ValueError: not a TFLite file, or a damaged one.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                data = flatbuffer.buffer(content, BUFFER)
            if data is None:
                return {}
            metadata = flatbuffer.unpack(schema.SCHEMA, "ModelMetadata", data)
            return {"metadata": metadata, **_associated(file, metadata)}
    except OSError:
        raise
    except Exception as error:  # whatever struct, zipfile, json say to bytes that are not theirs
        raise ValueError(f"{str(path)!r} is no TFLite file that can be read: {error}") from error


def _associated(file, metadata):
    """Labels and preset from the archive behind the model."""
    if not zipfile.is_zipfile(file):
        return {}
    graphs = metadata.get("subgraph_metadata", [])
    tensors = [t for g in graphs for t in g.get("output_tensor_metadata", [])]
    kinds = {f["name"]: f.get("type") for t in tensors for f in t.get("associated_files", [])}
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if kinds.get(name) == schema.TENSOR_AXIS_LABELS:
                found["labels"] = archive.read(name).decode("utf-8").splitlines()
            elif name == PRESET:
                found["preset"] = json.loads(archive.read(name))
    return found

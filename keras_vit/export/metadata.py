"""A TFLite file's metadata: its input and output, class names and preset.

The format is TensorFlow's, https://ai.google.dev/edge/litert/conversion/tensorflow/metadata: a
flatbuffer in a buffer of the model, and a ZIP archive appended to the file. MediaPipe, Android
Studio and Netron read it; the interpreter ignores it.
"""

import io
import json
import mmap
import pathlib
import zipfile
from typing import Any

import keras

import keras_vit_presets as presets
from keras_vit.export import common, flatbuffer, model_file, schema
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Path
from keras_vit.version import __version__

BUFFER = "TFLITE_METADATA"
LABELS, PRESET = "labels.txt", "preset.json"


def add_metadata(
    content: bytes, model: keras.Model, preprocessing: bool = True, quantize: str | None = None
) -> bytes:
    """Add metadata to a TFLite file.

    Args:
        content: bytes of a file with one input of images and one output.
        model: the model it was made from.
        preprocessing, quantize: as passed to `to_tflite`.

    Returns:
        bytes: the file with TensorFlow's metadata and an appended archive of preset.json and, if
        the classes have names, labels.txt (one name per line).

    Raises:
        ValueError: not a TFLite file, or one with metadata.
    """
    if model_file.buffer(content, BUFFER) is not None:
        raise ValueError("This TFLite file already has metadata.")
    preset = {**about(model), "preprocessing": preprocessing, "quantize": quantize}
    labels = class_names(model)
    fields = _model(preset, _input(model, preset), _output(model, preset, labels))
    data = flatbuffer.pack(schema.SCHEMA, "ModelMetadata", fields, schema.IDENTIFIER)
    file = io.BytesIO(model_file.with_buffer(content, BUFFER, data))
    texts = {PRESET: json.dumps(preset, indent=2) + "\n"}
    if labels:
        texts[LABELS] = "".join(f"{label}\n" for label in labels)
    with zipfile.ZipFile(file, "a") as archive:  # uncompressed: MediaPipe needs it so
        for name, text in texts.items():  # without a date: equal models give equal files
            archive.writestr(zipfile.ZipInfo(name), text)
    return file.getvalue()


def about(model: keras.Model) -> dict[str, Any]:
    """The contents of preset.json: the model's source and its preprocessing.

    Mean and standard deviation are per channel, for pixels in 0..1.
    """
    own = isinstance(model, ImageClassifier)
    preset, source = (model.preset or "", model.source or "") if own else ("", "")
    revision = ""
    if source.startswith("hf://"):
        source, _, revision = source.partition("@")
    else:  # do not publish paths of this machine
        source = pathlib.PurePath(source).name
    row = presets.checkpoints().get(preset)
    converter = common.converter(model)
    images = {} if converter is None else converter.get_config()
    numbers = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
    return {
        "name": pathlib.PurePath(preset).name or type(model).__name__,
        "source": source or None,
        "revision": revision or None,
        "license": row and row.license,
        "class": type(model).__name__,
        "num_classes": model.num_classes if own else None,
        "activation": common.activation(model),
        "image_size": list(model.inputs[0].shape[1:3]),
        **{name: images.get(name) for name in numbers},
        "keras_vit": __version__,
    }


def class_names(model: keras.Model) -> list[str] | None:
    """The class names, each on a single line, or None."""
    labels = model.class_names if isinstance(model, ImageClassifier) else None
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
        "name": common.PIXELS if inside else common.NORMALIZED,
        "description": _cut(preset) if preset["mean"] else "Images as the model was trained with.",
        "content": {
            "content_properties_type": schema.IMAGE,
            "content_properties": {"color_space": schema.COLOR_SPACES.get(channels, 0)},
        },
    }
    if preset["mean"]:  # what the caller must do to pixels in 0..255
        mean, std = ([255 * x for x in preset[name]] for name in ("mean", "std"))
        mean, std = ([0.0] * channels, [1.0] * channels) if inside else (mean, std)
        options = {"mean": mean, "std": std}
        found["process_units"] = [{"options_type": schema.NORMALIZATION, "options": options}]
        low, high = ([(x - m) / s for m, s in zip(mean, std, strict=True)] for x in (0, 255))
        found["stats"] = {"min": low, "max": high}
    return found


def _cut(preset):
    """How to resize and crop an image to the file's size."""
    height, width = preset["image_size"]
    full = [int(size / preset["crop_pct"] + 1e-6) for size in (height, width)]
    cover = f"{full[0]} x {full[1]} pixels"
    cover = f"cover {cover}, aspect ratio kept" if preset["crop_mode"] == "center" else cover
    return (
        f"Pixels in 0..255{'' if preset['preprocessing'] else ', normalized'}: an image resized "
        f"to {cover} ({preset['interpolation']}, antialiased), then cropped to its central "
        f"{height} x {width}."
    )


def _output(model, preset, labels):
    name = common.output_name(model, preset["preprocessing"])
    found = {
        "name": name,
        "description": "Pooled features." if name == "features" else _meaning(model, name),
        "content": {"content_properties_type": schema.FEATURE, "content_properties": {}},
    }
    if name == "probabilities":
        found["stats"] = {"min": [0.0], "max": [1.0]}
    if labels:
        found["associated_files"] = [_file(LABELS, "Class names.", schema.TENSOR_AXIS_LABELS)]
    return found


def _meaning(model, name):
    activation = common.activation(model)
    if activation is None:
        return "Numbers, as the model computes them."
    each = "Classes exclude each other" if activation == "softmax" else "Each stands for itself"
    what = "Probabilities" if name == "probabilities" else "Logits"
    return f"{what} of the classes ({activation}). {each}."


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a TFLite file.

    Args:
        path: the file, written by this package or any other program.

    Returns:
        A dict: `metadata`, nested, with the names of TensorFlow's schema; `labels`, the class
        names; `preset`, the contents of preset.json. What the file lacks is left out: a file
        without metadata gives `{}`.

    Raises:
        ValueError: not a TFLite file, or a damaged one.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                data = model_file.buffer(content, BUFFER)
            if data is None:
                return {}
            metadata = flatbuffer.unpack(schema.SCHEMA, "ModelMetadata", data)
            return {"metadata": metadata, **_associated(file, metadata)}
    except OSError:
        raise
    except Exception as error:  # of struct, zipfile or json: the bytes are not what they expect
        raise ValueError(f"{str(path)!r} is not a readable TFLite file: {error}") from error


def _associated(file, metadata):
    """Labels and preset from the appended archive."""
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

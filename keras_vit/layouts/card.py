"""Writes a model's directory: weights, JSON files and model card."""

import json
import pathlib
from typing import Any

from huggingface_hub import ModelCardData

import keras_vit_presets as presets
from keras_vit import hub, tensor_files
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Path
from keras_vit.weights import Tensor

SHOWN = 20  # names of classes
NAMED = ("dinov3-license", "nvidia-open-model-license")  # not among the Hub's names of licenses


def write_directory(
    directory: Path,
    model: ImageClassifier,
    library: str,
    files: dict[str, Any],
    tensors: dict[str, Tensor],
) -> None:
    """A model's directory in another library's layout.

    Args:
        directory: created if it does not exist.
        model: the model that the card describes.
        library: the Hub's name of the library that loads it.
        files: {name: content of a JSON file}.
        tensors: the weights, under that library's keys.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensor_files.write_safetensors(directory / hub.WEIGHTS, tensors)
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    (directory / "README.md").write_text(card(model, library), "utf-8")


def card(model: ImageClassifier, library: str) -> str:
    """A model card: the model, its origin, its training."""
    began = origin(model)
    data = ModelCardData(
        library_name=library,
        pipeline_tag="image-classification",
        tags=["keras_vit"],
        **licence(began),
    )
    height, width = model.backbone.example_size
    lines = ["---", data.to_yaml(), "---", ""]
    lines += [f"# {type(model).__name__}, {model.count_params():,} parameters", ""]
    lines += [f"Image size {height} x {width}, {model.num_classes} classes, written by keras_vit."]
    if model.source:
        lines += ["", f"Based on {model.source}.{told(began)}"]
    return "\n".join([*lines, *_training(model), *_classes(model)]) + "\n"


def origin(model: ImageClassifier) -> presets.Checkpoint | None:
    """The preset whose weights a model started from; None: they came from elsewhere."""
    row = presets.checkpoints().get(model.preset or "")
    if row is None:
        return None
    where = str(row.folder) if row.folder else row.repository
    return row if where and where in (model.source or "") else None


def licence(row: presets.Checkpoint | None) -> dict[str, Any]:
    """A preset's fields of a model card's metadata: license, and the base model."""
    if row is None:
        return {}
    found = {"license": row.license}
    if row.license in NAMED:
        found = {"license": "other", "license_name": row.license}
    return found | ({"base_model": row.repository} if row.folder is None else {})


def told(row: presets.Checkpoint | None) -> str:
    """A sentence about the preset, with a space before it; nothing for None."""
    if row is None:
        return ""
    top1 = "" if row.top1 is None else f"; its top-1 on ImageNet-1k is {row.top1:.2f} %"
    return f" This is the preset {row.name}, license {row.license}{top1}."


def _training(model):
    history = model.history
    if history is None or not history.history:
        return []
    # With validation_freq=, some columns have fewer rows than epochs: left out.
    full = {k: v for k, v in history.history.items() if len(v) == len(history.epoch)}
    lines = ["", "## Training", "", "| epoch | " + " | ".join(full) + " |"]
    lines += ["|--:|" + "--:|" * len(full)]
    for epoch, *row in zip(history.epoch, *full.values(), strict=True):
        lines.append(f"| {epoch + 1} | " + " | ".join(f"{value:.4g}" for value in row) + " |")
    return lines


def _classes(model):
    if not model.labels:
        return []
    more = ", ..." if len(model.labels) > SHOWN else ""
    return ["", "## Classes", "", ", ".join(model.labels[:SHOWN]) + more]

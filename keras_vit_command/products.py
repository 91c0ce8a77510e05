"""What `finetune` writes beside the model: how well it does, drawings of it, a model card."""

import importlib.util
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from huggingface_hub import ModelCardData

from keras_vit import train
from keras_vit.layouts.card import licence, origin, told
from keras_vit.models.activation import apply
from keras_vit.version import __version__

STEP = 32  # images at once


def write_products(
    model: Any,
    folder: pathlib.Path,
    history: Mapping[str, list[float]],
    sides: Mapping[str, tuple[list[pathlib.Path], np.ndarray]],
    settings: Mapping[str, Any],
) -> dict[str, train.Evaluation]:
    """Write evaluation.json, README.md and, with matplotlib, curves.png and confusion.png.

    A full disk gives a warning: the model is there.

    Args:
        model: the trained model.
        folder: where it lies.
        history: of all epochs.
        sides: images and labels of `"training"`, `"validation"` and perhaps `"test"`.
        settings: the options of the command.

    Returns:
        The evaluations of the validation and of the test.
    """
    found = {
        name: evaluation(model, *sides[name]) for name in ("validation", "test") if name in sides
    }
    last = found.get("test", found["validation"])
    try:
        (folder / "evaluation.json").write_text(last.to_json() + "\n", "utf-8")
        text = card(model, found, sides, settings)
        (folder / "README.md").write_text(text, "utf-8")
        if importlib.util.find_spec("matplotlib"):
            train.learning_curves(history).savefig(folder / "curves.png", dpi=100)
            last.figure().savefig(folder / "confusion.png", dpi=100)
    except OSError as error:
        warnings.warn(f"Not everything beside the model is written: {error}", stacklevel=2)
    return found


def evaluation(model: Any, paths: list[pathlib.Path], labels: np.ndarray) -> train.Evaluation:
    """Of a model on images."""
    outputs = [
        np.asarray(apply(model.predict(paths[i : i + STEP], verbose=0), model.activation))
        for i in range(0, len(paths), STEP)
    ]
    return train.evaluate(np.concatenate(outputs), labels, model.class_names)


def card(
    model: Any,
    found: Mapping[str, train.Evaluation],
    sides: Mapping[str, tuple[list[pathlib.Path], np.ndarray]],
    settings: Mapping[str, Any],
) -> str:
    """A model card: where the model comes from, how it was trained, how well it does."""
    started = pathlib.PurePath(str(settings["preset"])).name
    names = ", ".join(model.class_names[:20]) + (" ..." if len(model.class_names) > 20 else "")
    began = origin(model)
    data = ModelCardData(
        library_name="keras",
        pipeline_tag="image-classification",
        tags=["keras_vit"],
        **licence(began),
    )
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {type(model).__name__} for {len(model.class_names)} classes",
        "",
        f"Fine-tuned from `{started}` with keras-vit {__version__}.{told(began)}",
        "",
        f"Classes: {names}.",
        "",
        "| images | count | top-1 | top-5 | calibration error |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, (paths, _) in sides.items():
        row = found.get(name)
        figures = " | " if row is None else f"{row.top1:.1%} | {row.top5:.1%}"
        error = "" if row is None else f"{row.calibration_error:.1%}"
        lines.append(f"| {name} | {len(paths)} | {figures} | {error} |")
    if "test" not in found:
        lines += ["", "The epoch was chosen by these images for validation."]
    lines += ["", "| option | value |", "|---|---|"]
    given = {name: value for name, value in settings.items() if value not in (None, False)}
    given["preset"] = started
    lines += [f"| {name} | {value} |" for name, value in given.items()]
    source = train.RECIPES[settings["recipe"]].source
    lines += ["", f"Recipe `{settings['recipe']}`: {source}.", "", "```python"]
    lines += ["import keras_vit", "", 'model = keras_vit.from_preset("FOLDER")']
    lines += ['model.classify("image.jpg")', "```", ""]
    return "\n".join(lines)

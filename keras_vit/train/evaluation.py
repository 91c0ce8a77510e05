"""What a classifier is worth: accuracies, calibration, which classes it confuses; and drawings."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vit.explain import matplotlib_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15
DRAWN = 60  # classes; more are not readable


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Predictions compared with labels, by `evaluate`.

    Attributes:
        images: how many.
        top1, top5: the part of them whose class is the most probable, is among the five most.
        calibration_error: as `calibration_error` has it.
        confusion: `(classes, classes)` ints: how many images of a class (row) are taken for another
            (column).
        class_names: of the classes.
    """

    images: int
    top1: float
    top5: float
    calibration_error: float
    confusion: np.ndarray
    class_names: list[str]

    def per_class(self) -> list[tuple[str, int, float, float]]:
        """(name, images, recall, precision) of each class; NaN where there are none."""
        right = np.diag(self.confusion)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = right / self.confusion.sum(1)
            precision = right / self.confusion.sum(0)
        counts = self.confusion.sum(1)
        return [
            (name, int(n), float(r), float(p))
            for name, n, r, p in zip(self.class_names, counts, recall, precision, strict=True)
        ]

    def to_json(self) -> str:
        """All of it, as JSON."""
        per_class = {
            name: {"images": n, "recall": _number(r), "precision": _number(p)}
            for name, n, r, p in self.per_class()
        }
        fields = {k: v for k, v in vars(self).items() if k not in ("confusion", "class_names")}
        return json.dumps(
            {**fields, "per_class": per_class, "confusion": self.confusion.tolist()}, indent=2
        )

    def figure(self) -> "Figure":
        """The confusion matrix drawn, each row in parts of its class's images."""
        count = len(self.class_names)
        side = min(3 + 0.35 * count, 16)
        figure = matplotlib_figure()(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        with np.errstate(invalid="ignore"):
            parts = np.nan_to_num(self.confusion / self.confusion.sum(1, keepdims=True))
        axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if count <= DRAWN:
            axes.set_xticks(range(count), self.class_names, rotation=90)
            axes.set_yticks(range(count), self.class_names)
        if count <= 20:
            for (row, column), n in np.ndenumerate(self.confusion):
                colour = "white" if parts[row, column] > 0.5 else "black"
                if n:
                    axes.text(column, row, str(n), ha="center", va="center", color=colour, size=8)
        return figure


def _number(value):
    return None if np.isnan(value) else value


def evaluate(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None = None
) -> Evaluation:
    """Compare predictions with labels.

    Args:
        probabilities: `(B, classes)`.
        labels: ints `(B,)`.
        class_names: of the classes; None: their numbers.

    Raises:
        ValueError: lengths differ, or a label is no class.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    count = probabilities.shape[-1]
    if len(probabilities) != len(labels) or not len(labels):
        raise ValueError(
            f"There must be as many labels as predictions. Received: {len(labels)} and "
            f"{len(probabilities)}"
        )
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(f"Labels must be from 0 to {count - 1}. Received: {np.unique(labels)}")
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    hits = order == labels[:, None]
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (labels, order[:, 0]), 1)
    return Evaluation(
        images=len(labels),
        top1=float(hits[:, 0].mean()),
        top5=float(hits[:, :5].any(1).mean()),
        calibration_error=calibration_error(probabilities, labels),
        confusion=confusion,
        class_names=list(class_names or map(str, range(count))),
    )


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error (https://arxiv.org/abs/1706.04599, equation 3): how far the
    largest probability is from the accuracy, on average over `bins` equal intervals of it."""
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    gaps = np.bincount(places, confidence, bins) - np.bincount(places, right, bins)
    return float(np.abs(gaps).sum() / counts.sum())


def learning_curves(history: Mapping[str, Sequence[float]]) -> "Figure":
    """Loss and accuracy by epoch, of the training and of the validation.

    Args:
        history: as Keras' `History` has it.
    """
    names = [name for name in history if not name.startswith("val_")]
    figure = matplotlib_figure()(figsize=(4.5 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in history:
                epochs: Any = range(1, len(history[key]) + 1)
                axes.plot(epochs, history[key], marker="." if len(epochs) < 20 else "", label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.legend()
    return figure

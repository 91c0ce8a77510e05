"""Names of classes."""

import functools
import importlib.resources
from collections.abc import Sequence

import numpy as np


@functools.cache
def imagenet_labels() -> list[str]:
    """The 1000 class names of ImageNet-1k, in the order of the logits."""
    text = (importlib.resources.files("keras_vit") / "imagenet1k.txt").read_text("utf-8")
    return text.splitlines()


def top_labels(
    probabilities: np.ndarray, labels: Sequence[str] | None = None, top: int = 5
) -> list[list[tuple[str, float]]]:
    """The `top` most probable classes of each row: `(B, K)` -> B lists of (name, probability)."""
    order = np.argsort(-probabilities, axis=-1)[:, :top]
    return [
        [(labels[i] if labels else f"class {i}", float(row[i])) for i in best]
        for row, best in zip(probabilities, order, strict=True)
    ]

"""Which checkpoint suits some images: classifiers on its frozen features."""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from keras_vit.explain import matplotlib_figure
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import ImageSet, Path
from keras_vit.zoo import from_preset

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a checkpoint's features are worth.

    Attributes:
        name: of the checkpoint.
        linear: accuracy of a linear classifier on them.
        neighbours: accuracy of the nearest neighbours.
        seconds: per image, for the features, decoding included.
        width: numbers per image.
        parameters: of the model.
    """

    name: str
    linear: float
    neighbours: float
    seconds: float
    width: int
    parameters: int


def probe(
    preset: Path | ImageClassifier,
    train: tuple[ImageSet, ArrayLike],
    validation: tuple[ImageSet, ArrayLike],
    batch_size: int = 32,
    **options: Any,
) -> Probe:
    """Accuracy of a linear and a nearest-neighbour classifier on the features of a checkpoint.

    Args:
        preset: as in `from_preset`, or a model with `num_classes=0`.
        train, validation: (images, labels), as in `finetune`.
        batch_size: images per step.
        options: of `from_preset`: `image_size`, `dtype` ...
    """
    model = preset
    if not isinstance(model, ImageClassifier):
        model = from_preset(preset, num_classes=0, **options)
    model.predict(train[0][:1], verbose=0)  # its graph is made now
    start = time.perf_counter()
    features = [
        model.predict(images, batch_size=batch_size, verbose=0) for images, _ in (train, validation)
    ]
    labels = [np.asarray(side[1]) for side in (train, validation)]
    seconds = (time.perf_counter() - start) / sum(map(len, features))
    return Probe(
        name=model.name if preset is model else str(preset),
        linear=float((linear(features[0], labels[0], features[1]) == labels[1]).mean()),
        neighbours=float((neighbours(features[0], labels[0], features[1]) == labels[1]).mean()),
        seconds=seconds,
        width=features[0].shape[1],
        parameters=model.count_params(),
    )


def linear(
    x: np.ndarray, labels: np.ndarray, queries: np.ndarray, penalty: float = 1e-3, steps: int = 300
) -> np.ndarray:
    """Classes `(Q,)` of queries `(Q, D)` by logistic regression on features `(N, D)` that have mean
    0 and variance 1.

    Args:
        x, labels: training features, and their classes as ints.
        queries: other features.
        penalty: half the factor of the squared weights in the mean loss.
        steps: of Nesterov's method, with the step that the largest eigenvalue allows.
    """
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x, queries = (np.c_[(a - mean) / deviation, np.ones(len(a))] for a in (x, queries))
    classes, y = np.unique(labels, return_inverse=True)
    target = np.eye(len(classes))[y]
    # The loss is smooth with half the largest eigenvalue of the second moments.
    step = 1 / (np.linalg.norm(x, 2) ** 2 / (2 * len(x)) + penalty)
    weights = ahead = np.zeros((x.shape[1], len(classes)))
    for i in range(steps):
        logits = x @ ahead
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        new = ahead - step * (x.T @ (p - target) / len(x) + penalty * ahead)
        ahead = new + i / (i + 3) * (new - weights)
        weights = new
    return classes[(queries @ weights).argmax(1)]


def neighbours(
    x: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int = 20, temperature: float = 0.07
) -> np.ndarray:
    """Classes `(Q,)` by the k nearest of the features `(N, D)` in cosine similarity s, which vote
    with exp(s / temperature), as in DINO (https://arxiv.org/abs/2104.14294, appendix F.1)."""
    x, queries = (a / (np.linalg.norm(a, axis=1, keepdims=True) + 1e-12) for a in (x, queries))
    classes, y = np.unique(labels, return_inverse=True)
    target, k = np.eye(len(classes)), min(k, len(x))
    found = []
    for start in range(0, len(queries), 1024):
        similarity = queries[start : start + 1024] @ x.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similarity, nearest, 1) / temperature)
        found.append((weights[..., None] * target[y[nearest]]).sum(1).argmax(1))
    return classes[np.concatenate(found)]


def probe_figure(probes: Sequence[Probe]) -> "Figure":
    """Accuracy against time per image, a point for each checkpoint."""
    figure = matplotlib_figure()(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for one in probes:
        axes.plot(one.seconds * 1e3, one.linear, "o", color="C0")
        axes.annotate(one.name, (one.seconds * 1e3, one.linear), fontsize=7)
    axes.set_xlabel("ms per image")
    axes.set_ylabel("accuracy of a linear classifier")
    return figure

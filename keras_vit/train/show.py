"""Pictures as the model will see them in training."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from keras_vit.explain import matplotlib_figure
from keras_vit.models.classifier import ImageClassifier
from keras_vit.train.batches import TrainingBatches
from keras_vit.train.mae import MAE
from keras_vit.train.recipes import Recipe
from keras_vit.train.recipes import recipe as named
from keras_vit.train.simmim import SimMIM
from keras_vit.types import ImageSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_batch(
    model: ImageClassifier,
    images: ImageSet,
    labels: ArrayLike,
    recipe: str | Recipe = "finetune",
    count: int = 16,
    seed: int = 0,
) -> "Figure":
    """Draw the first batch that a recipe makes of images, with its labels.

    Args:
        model: its preprocessor gives size and normalisation, its labels the names.
        images, labels: as in `finetune`.
        recipe: as in `finetune`.
        count: how many.
        seed: int; that of `finetune` shows its first batch if `count` is its batch size.

    Returns:
        A matplotlib figure: `show_batch(...).savefig("batch.png")`.
    """
    converter = model.preprocessor.image_converter
    labels = np.asarray(labels)
    batches = TrainingBatches(
        images, labels, model.num_classes, count, converter, named(recipe), seed=seed
    )
    x, y = batches[0]
    columns = math.ceil(math.sqrt(len(x)))
    rows = math.ceil(len(x) / columns)
    figure = matplotlib_figure()(figsize=(1.8 * columns, 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place in axes:
        place.set_axis_off()
    for place, picture, label in zip(axes, x, y, strict=False):
        scale, offset = converter.scale_and_offset()
        pixels = np.clip((picture - offset) / scale / 255, 0, 1)
        place.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., :1].mean(-1), cmap="gray")
        place.set_title(label_text(label, model.class_names), fontsize=7)
    return figure


def show_reconstruction(model: MAE | SimMIM, images: ImageSet) -> "Figure":
    """Draw pictures, what a pre-trained model sees of them, and what it makes of that, in rows.

    Args:
        model: a `MAE` or `SimMIM`.
        images: as in `pretrain`; a few.
    """
    views = model.reconstruct(images)
    count = len(views[0])
    figure = matplotlib_figure()(figsize=(1.5 * count, 4.5), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    for row, pictures in zip(axes, views, strict=True):
        for place, picture in zip(row, pictures, strict=True):
            place.set_axis_off()
            grey = picture.shape[-1] != 3
            place.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=1)
    return figure


def label_text(label: Any, names: Any) -> str:
    """A label, hard or soft, in words: the two largest parts of a mixture."""
    name = (lambda i: str(names[i])) if names else str
    if np.ndim(label) == 0:
        return name(int(label))
    best = [i for i in np.argsort(label)[::-1][:2] if label[i] > 1.5 / len(label) or i == 0]
    return "\n".join(f"{name(int(i))} {label[i]:.0%}" for i in best)

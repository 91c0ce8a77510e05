"""Pre-training without labels: the methods by name, and `pretrain`."""

import dataclasses
from collections.abc import Iterable

import keras
import numpy as np

from keras_vit.train.batches import TrainingBatches
from keras_vit.train.mae import MAE
from keras_vit.train.masked_patches import MaskedPatches
from keras_vit.train.masking import Pretraining
from keras_vit.train.recipe import jit_compile, optimizer_for
from keras_vit.train.recipes import Recipe
from keras_vit.train.recipes import recipe as named
from keras_vit.train.simmim import SimMIM
from keras_vit.types import ImageSet, Progress

METHODS: dict[str, type[Pretraining]] = {
    "mae": MAE,
    "simmim": SimMIM,
    "masked_patches": MaskedPatches,
}


class Unlabelled(TrainingBatches):
    """Augmented pictures without labels."""

    def __getitem__(self, index):
        return super().__getitem__(index)[:1]


def pretrain(
    model: Pretraining,
    images: ImageSet,
    epochs: int,
    *,
    recipe: str | Recipe | None = None,
    batch_size: int = 64,
    learning_rate: float | None = None,
    flip: bool = True,
    seed: int = 0,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    progress: Progress | None = None,
    verbose: int | str = "auto",
) -> keras.callbacks.History:
    """Pre-train the backbone of `MAE`, `SimMIM` or `MaskedPatches`, by the method's own recipe.

    Args:
        model: it is compiled and trained in place; take `model.backbone` afterwards.
        images: an array `(B, H, W, C)` or a list of paths.
        epochs: how many times each image is seen.
        recipe: a name of `RECIPES` or a `Recipe`; None: the method's.
        batch_size: images per step; the learning rate is proportional to it.
        learning_rate: the peak; None: the recipe's.
        flip: whether to mirror half of the images.
        seed: int, for the order, the views and the masks.
        callbacks, progress, verbose: as in `finetune`.

    Returns:
        Keras' `History`.

    Raises:
        FloatingPointError: the loss has become NaN or infinite.
    """
    row = named(recipe or model.recipe)
    row = dataclasses.replace(row, flip=row.flip if flip else 0.0)
    nothing = np.zeros(len(images), int)
    converter = model.preprocessor.image_converter
    batches = Unlabelled(
        images, nothing, 1, batch_size, converter, row, seed=seed, progress=progress
    )
    steps = epochs * len(batches)
    made = optimizer_for(model, row, steps, batch_size, learning_rate)
    model.compile(made, jit_compile=jit_compile())
    return model.fit(batches, epochs=epochs, callbacks=callbacks, seed=seed, verbose=verbose)

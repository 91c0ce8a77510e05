"""Batches for training: augmented pictures, soft labels, weights for rare classes."""

import concurrent.futures
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.arrays import ArrayBatches
from keras_vit.images import ImageConverter
from keras_vit.layers.base import register
from keras_vit.pixels import to_array
from keras_vit.train.augment import Augmentation, erase, mix, one_hot
from keras_vit.train.pictures import Pictures, crop, wider
from keras_vit.train.recipes import Recipe
from keras_vit.types import ImageSet, Tensor

MEMORY = 2e9  # bytes of decoded pictures of any size to keep


class Originals:
    """Pictures of any size, decoded as they are: kept while they fit into `memory` bytes."""

    def __init__(self, images: ImageSet, channels: int, memory: float = MEMORY):
        self.images, self.channels, self.free = images, channels, memory
        self.kept: dict[int, np.ndarray] = {}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        found = self.kept.get(row)
        if found is None:
            found = to_array(self.images[row], self.channels)
            if found.dtype != np.uint8:
                found = np.clip(np.round(found), 0, 255).astype("uint8")
            if found.nbytes <= self.free and not isinstance(self.images, np.ndarray):
                self.free -= found.nbytes
                self.kept[row] = found
        return found


class TrainingBatches(ArrayBatches):
    """Batches of augmented pictures, by a recipe.

    What is random in a batch follows from the seed, the epoch and the batch's index.

    Args:
        images: an array `(B, H, W, C)`, or a list of paths, PIL images, arrays.
        labels: int array `(B,)`.
        classes: how many there are.
        batch_size: pictures per batch.
        converter: the model's `ImageConverter`: size and normalisation.
        recipe: a row of `RECIPES`.
        weights: the weight of each class in the loss `(classes,)`, or None.
        balanced: draw each class equally often; an epoch has as many pictures as otherwise.
        seed: int.
        progress: as in `read_folder`, for decoding.
    """

    def __init__(
        self,
        images: ImageSet,
        labels: np.ndarray,
        classes: int,
        batch_size: int,
        converter: ImageConverter,
        recipe: Recipe,
        weights: np.ndarray | None = None,
        balanced: bool = False,
        seed: int = 0,
        progress: Any = None,
    ):
        super().__init__((np.arange(len(images)), labels), batch_size, shuffle=True, seed=seed)
        self.labels, self.classes, self.converter = labels, classes, converter
        self.recipe, self.weights, self.balanced = recipe, weights, balanced
        self.soft = recipe.soft or weights is not None
        fill = tuple(round(255 * m) for m in converter.mean)
        known = ("bilinear", "bicubic", "lanczos", "nearest")
        how = converter.interpolation if converter.interpolation in known else "bicubic"
        self.pictures: Any
        if recipe.scale == "margin":
            self.pictures = Pictures(images, wider(converter), progress=progress)
            scale: Any = (1.0, 1.0)
        else:
            self.pictures = Originals(images, len(converter.mean))
            scale = recipe.scale
        self.augmentation = Augmentation(
            converter.image_size,
            scale,
            flip=0.0 if recipe.scale == "margin" else recipe.flip,
            rand_augment=recipe.rand_augment,
            three=recipe.three,
            jitter=recipe.jitter,
            interpolation=how,
            fill=fill,
        )

    def order(self) -> np.ndarray:
        """The pictures of this epoch: in random order, repeated, or of each class equally many."""
        random = np.random.default_rng((self.seed, self.epoch))
        count = -(-self.size // self.recipe.repeats)
        if self.balanced:
            of_class = [np.flatnonzero(self.labels == c) for c in np.unique(self.labels)]
            each = -(-count // len(of_class))
            drawn = [_in_turn(rows, each, random) for rows in of_class]
            rows = random.permutation(np.concatenate(drawn))[:count]
        else:
            rows = random.permutation(self.size)[:count]
        return np.repeat(rows, self.recipe.repeats)[: self.size]

    def views(self, rows: np.ndarray, index: int, random: np.random.Generator) -> np.ndarray:
        """The augmented pictures, uint8 `(B, height, width, C)`."""
        recipe, plain = self.recipe, ("", False, 0.0)
        if recipe.scale == "margin":
            x = crop(self.pictures[rows], self.converter.image_size, recipe.flip > 0, random)
            if (recipe.rand_augment, recipe.three, recipe.jitter) == plain:
                return x
            sources = list(x)
        else:
            sources = None

        def view(i):
            own = np.random.default_rng((self.seed, self.epoch, index, i, 1))
            picture = sources[i] if sources else self.pictures[rows[i]]
            return self.augmentation(picture, own)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack([*pool.map(view, range(len(rows)))])

    def __getitem__(self, index):
        rows = self.order()[index * self.batch_size : (index + 1) * self.batch_size]
        random = np.random.default_rng((self.seed, self.epoch, index))
        x = self.converter.normalize(self.views(rows, index, random))
        if self.recipe.erasing:
            x = erase(x, random, self.recipe.erasing)
        y = self.labels[rows]
        if not self.soft:
            return x, y
        x, y = mix(
            x,
            one_hot(y, self.classes, self.recipe.smoothing),
            random,
            self.recipe.mixup,
            self.recipe.cutmix,
        )
        if self.recipe.binary:
            y = (y > 0).astype("float32")
        return x, y if self.weights is None else y * self.weights


def _in_turn(rows, count, random):
    """`count` of the rows, each as often as the others, give or take one."""
    rounds = [random.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count]


def class_weights(
    kind: None | str | Mapping[int, float], labels: np.ndarray, classes: int, power: float = 1.0
) -> np.ndarray | None:
    """The weight of each class in the loss, `(classes,)` float32.

    Args:
        kind: None: equal; `"auto"`: proportional to (1 / number of pictures)^power, with a mean of
            1 over the pictures; a dict: {class: weight}, 1 for classes that are not in it.
        labels: ints `(B,)`.
        classes: how many there are.
        power: of `"auto"`, 0 to 1.

    Raises:
        ValueError: it is none of these, or a class is unknown.
    """
    if kind is None:
        return None
    if isinstance(kind, Mapping):
        unknown = [c for c in kind if c not in range(classes)]
        if unknown:
            raise ValueError(f"class_weights names classes that do not exist: {unknown}")
        return np.array([kind.get(c, 1.0) for c in range(classes)], "float32")
    if kind != "auto":
        raise ValueError(f'class_weights is None, "auto" or a dict. Received: {kind!r}')
    counts = np.bincount(labels, minlength=classes)
    weights = np.where(counts, np.maximum(counts, 1.0) ** -power, 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).astype("float32")


@register
class SoftCrossEntropy(keras.losses.Loss):
    """-sum y log softmax(x) over the classes, for logits x and labels y that need not sum to 1: the
    labels of weighted classes do not, and Keras' own gradient supposes it."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_pred = ops.cast(y_pred, "float32")
        log = ops.log_softmax(y_pred, axis=-1)
        return -ops.sum(ops.cast(y_true, "float32") * log, axis=-1)

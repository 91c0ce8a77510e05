"""Is a map true? Deletion and insertion: what the model says as the patches of a map go or come."""

import dataclasses
from typing import Literal

import keras
import numpy as np
from keras import ops

from keras_vit.explain.classes import Classes, class_indices
from keras_vit.explain.maps import classifier, grid_of, no_gradient, preprocessed
from keras_vit.images import listed
from keras_vit.models.activation import apply
from keras_vit.types import Images

Baseline = Literal["mean", "blur"]


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """The curves of `faithfulness`, and the areas under them.

    Attributes:
        shares: `(steps + 1,)`: which share of the patches is deleted or inserted, 0 to 1.
        deletion_curve, insertion_curve: `(B, steps + 1)`: the probability of the class.
    """

    shares: np.ndarray
    deletion_curve: np.ndarray
    insertion_curve: np.ndarray

    @property
    def deletion(self) -> np.ndarray:
        """The area under the deletion curve, `(B,)`, 0 to 1; lower is better."""
        return _area(self.deletion_curve)

    @property
    def insertion(self) -> np.ndarray:
        """The area under the insertion curve, `(B,)`, 0 to 1; higher is better."""
        return _area(self.insertion_curve)

    def __str__(self) -> str:
        return f"deletion {self.deletion.mean():.3f}, insertion {self.insertion.mean():.3f}"


def _area(curve):
    return (curve[:, 1:] + curve[:, :-1]).mean(axis=1) / 2


def faithfulness(
    model: keras.Model,
    images: Images,
    maps: np.ndarray,
    classes: Classes = None,
    steps: int = 10,
    baselines: tuple[Baseline, Baseline] = ("mean", "blur"),
) -> Faithfulness:
    """Deletion and insertion (RISE, https://arxiv.org/abs/1806.07421, section 3.3) by patches.

    Deletion: the patches of an image are replaced, those with the highest values of the map first.
    Insertion: they are put in place of a replaced image in the same order. If the map is true, the
    probability of the class falls, or rises, early. Compare with a random map and with rollout: a
    map that does not beat them says nothing of the class.

    Args:
        model, images: as in `attention_maps`.
        maps: one map per image, `(B, rows, columns)`, of any resolution: on the grid of patches, of
            pixels, or of anyone's own. Finer maps are averaged over each patch.
        classes: one class for all images, or an array `(B, 1)` of indices; by default the most
            probable class of each image.
        steps: into how many steps the patches are divided; `2 * (steps + 1)` runs of the model.
        baselines: what takes the place of a patch in deletion and in insertion: `"mean"`, the mean
            colour of the preprocessing, or `"blur"`, a Gaussian blur whose deviation is the edge of
            a patch.

    Raises:
        ValueError: the model has no head; a map for each image is expected; more than one class;
            an unknown baseline.
    """
    model, several = classifier(model), listed(images)
    maps = np.asarray(maps, "float32")
    if maps.ndim != 3 or len(maps) != len(several):
        raise ValueError(
            f"maps must be (B, rows, columns), one for each of the {len(several)} images. "
            f"Received: shape {maps.shape}"
        )
    unknown = [name for name in baselines if name not in ("mean", "blur")]
    if unknown or steps < 1:
        raise ValueError(
            "baselines are 'mean' and 'blur', and steps at least 1. "
            f"Received: baselines={baselines}, steps={steps}"
        )
    ids, _ = class_indices(model, several, classes)
    if ids.shape[1] != 1:
        raise ValueError(f"One class per image is expected. Received: {ids.shape[1]} of them")
    grid, curves = grid_of(model), []
    for i, values in enumerate(maps):
        (x,) = preprocessed(model, several[i : i + 1])
        x = ops.convert_to_numpy(x)[0]
        curves.append(_curves(model, x, on_patches(values, grid), int(ids[i, 0]), steps, baselines))
    shares = np.linspace(0, 1, steps + 1)
    return Faithfulness(shares, *(np.stack(curve) for curve in zip(*curves, strict=True)))


def _curves(model, x, values, cls, steps, baselines):
    """The deletion and the insertion curve of one image, (steps + 1,) each."""
    order = np.argsort(-values.ravel(), kind="stable")
    rank = np.empty(len(order), "int64")
    rank[order] = np.arange(len(order))
    rows, columns = values.shape
    masks = []
    for share in np.linspace(0, 1, steps + 1):
        chosen = (rank < round(share * len(order))).reshape(rows, columns)
        masks.append(resized(chosen, x.shape[:2]))
    masks = np.stack(masks)[..., None]
    gone, base = (x * 0 if name == "mean" else blurred(x, rows) for name in baselines)
    return (
        _probabilities(model, np.where(masks, gone, x), cls),
        _probabilities(model, np.where(masks, x, base), cls),
    )


def _probabilities(model, x, cls):
    with no_gradient():
        logits = ops.convert_to_numpy(model(ops.convert_to_tensor(x), training=False))
    return apply(logits, model.activation)[:, cls]


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map at another resolution: each pixel takes the nearest value."""
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old // new, old - 1).astype("int64")
        for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def on_patches(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A map on a grid: the mean of the values in each cell; the nearest one of a coarser map."""
    fine = [-(-size // cells) * cells for size, cells in zip(values.shape, grid, strict=True)]
    values = resized(values, (max(fine[0], grid[0]), max(fine[1], grid[1])))
    rows, columns = (size // cells for size, cells in zip(values.shape, grid, strict=True))
    return values.reshape(grid[0], rows, grid[1], columns).mean(axis=(1, 3))


def blurred(x: np.ndarray, rows: int) -> np.ndarray:
    """A Gaussian blur of an image `(H, W, C)`, with a deviation of the edge of one of `rows`
    patches."""
    deviation = max(x.shape[0] / rows, 1.0)
    radius = round(3 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        widths = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
        padded, size = np.pad(x, widths, mode="edge"), x.shape[axis]
        x = sum(
            weight * padded[(slice(None),) * axis + (slice(i, i + size),)]
            for i, weight in enumerate(kernel.astype(x.dtype))
        )
    return x


def random_map(count: int, grid: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random maps, as a control: `(count, rows, columns)` float32, 0 to 1."""
    return np.random.default_rng(seed).random((count, *grid), dtype="float32")

"""One sheet with all analyses of a model."""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_vit.explain.analysis import (
    attention_entropy,
    block_distances,
    head_diversity,
    patch_filters,
    position_similarity,
    token_norms,
)
from keras_vit.explain.canvas import SMALL, matplotlib_figure
from keras_vit.explain.maps import attention_maps, chosen_blocks, classifier
from keras_vit.types import Images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def analyse(model: keras.Model, images: Images | None = None) -> "Figure":
    """A figure of what a model has learned, as figure 7 of https://arxiv.org/abs/2010.11929.

    Filters of the patch embedding, similarity of the positions; with images also the mean attention
    distance and the entropy of every head, the diversity of the heads, and the lengths of the
    tokens that leave the last block. What a model does not have is left out.

    Args:
        model: as in `attention_maps`.
        images: raw images, for what depends on them; a handful is enough.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the model has nothing of it.
    """
    figure_class, model = matplotlib_figure(), classifier(model)
    panels = _panels(model, images)
    if not panels:
        raise ValueError(f"There is nothing to analyse in a {type(model).__name__} without images.")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = figure_class(figsize=(3.4 * columns, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, draw, values) in zip(axes.flat, panels, strict=False):
        axis.set_title(title, fontsize=SMALL + 1)
        axis.tick_params(labelsize=SMALL - 1)
        draw(axis, values)
    return figure


def _panels(model, images):
    """(title, function of axis and values, values) of each panel that the model has."""
    panels: list[tuple[str, Any, Any]] = []
    if model.backbone.first_projection is not None:
        panels.append(("filters of the patches", _filters, patch_filters(model)))
    try:
        panels.append(("similarity of the positions", _positions, position_similarity(model)))
    except ValueError:  # it has no positions of its own
        pass
    if images is None:
        return panels
    if any(block.scores for block in model.backbone.blocks):
        away, spread, apart = _by_block(model, images)
        panels += [
            ("attention distance, pixels", _points, away),
            ("attention entropy, share of maximum", _points, spread),
            ("diversity of the heads", _line, apart),
        ]
    panels.append(("lengths of the tokens, last block", _counts, token_norms(model, images)[0]))
    return panels


def _by_block(model, images):
    """Distances and entropies of each block's heads, and their diversity; one map at a time."""
    away, spread, apart = [], [], []
    maps = attention_maps(model, images, lazy=True)
    for block, attention in zip(chosen_blocks(model), maps, strict=True):
        away.append(block_distances(model, block, attention))
        spread += attention_entropy([attention])
        apart.append(head_diversity([attention])[0])
    return away, spread, np.array(apart)


def tiles(arrays: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Small pictures side by side: `(count, h, w, ...) -> (H, W, ...)`, NaN between them."""
    count, height, width = arrays.shape[:3]
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *arrays.shape[3:])
    sheet = np.full(shape, np.nan, "float32")
    for i, array in enumerate(arrays):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = array
    return sheet


def _filters(axis: "Axes", values: np.ndarray) -> None:
    sheet = tiles(values if values.shape[-1] == 3 else values.mean(-1, keepdims=True), 7)
    alpha = ~np.isnan(sheet[..., :1])
    rgba = np.concatenate([np.nan_to_num(np.broadcast_to(sheet, (*sheet.shape[:2], 3))), alpha], -1)
    axis.imshow(rgba)
    axis.set_axis_off()


def _positions(axis: "Axes", values: np.ndarray) -> None:
    rows, columns = values.shape[:2]
    chosen = [
        np.unique(np.linspace(0, n - 1, min(n, 7)).round().astype(int)) for n in (rows, columns)
    ]
    few = values[np.ix_(*chosen)].reshape(-1, rows, columns)
    sheet = tiles(few, len(chosen[1]), max(1, columns // 8))
    drawn = axis.imshow(sheet, cmap="viridis", vmin=min(0.0, float(few.min())), vmax=1)
    axis.figure.colorbar(drawn, ax=axis, shrink=0.7).ax.tick_params(labelsize=SMALL - 2)
    axis.set_axis_off()


def _points(axis: "Axes", values: list[np.ndarray]) -> None:
    for i, heads in enumerate(values):
        axis.scatter([i] * len(heads), heads, s=8, c=range(len(heads)), cmap="viridis")
    axis.plot([heads.mean() for heads in values], color="0.6", linewidth=1, zorder=0)
    _blocks(axis, max(heads.max() for heads in values))


def _line(axis: "Axes", values: np.ndarray) -> None:
    axis.plot(values, marker="o", markersize=3, linewidth=1)
    _blocks(axis, values.max())


def _blocks(axis, largest):
    axis.set_xlabel("block", fontsize=SMALL)
    axis.set_ylim(0, 1.08 * max(float(largest), 1e-9))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.spines[["top", "right"]].set_visible(False)


def _counts(axis: "Axes", values: np.ndarray) -> None:
    axis.hist(values.ravel(), bins=40, color="0.4")
    axis.set_xlabel("length of a patch token", fontsize=SMALL)
    axis.set_ylabel("patches", fontsize=SMALL)
    axis.set_yscale("log")
    axis.spines[["top", "right"]].set_visible(False)

"""Figures of explanations, in one style: a picture in grey, a map in colours over it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_vit.explain.canvas import (
    best_classes,
    class_names,
    file_name,
    frame,
    matplotlib_figure,
    percent,
    pixels,
    probabilities,
    sheet_of,
    short,
    show_map,
    show_picture,
    under,
)
from keras_vit.explain.classes import Classes, class_indices, top_classes
from keras_vit.explain.maps import attention_maps, chosen_blocks, classifier, grid_of
from keras_vit.explain.methods import caption_of, method_named, rollout_of_each
from keras_vit.explain.rollouts import head_weights, on_grid
from keras_vit.images import listed
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Image as AnyImage
from keras_vit.types import Images

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def overlay(
    model: keras.Model,
    images: Images,
    alpha: float = 0.6,
    cmap: str | None = None,
    maps: np.ndarray | None = None,
    method: str = "rollout",
    caption: str | None = None,
) -> "Figure":
    """A figure of each image as the model sees it, with a map drawn over a grey copy.

    The colours span the 1st to the 99th percentile of each map, so they compare patches of one
    image, not two images: the bar beside the map has its numbers. Under an image stand the most
    probable class, if the model has a head, and the name of the file.

    Args:
        model, images: as in `attention_maps`.
        alpha: opacity of the map, 0 to 1.
        cmap: the name of a matplotlib colour map; by default `"inferno"`, and for maps with values
            below 0 blue to red, with nothing at 0.
        maps: maps of your own, `(B, rows, columns)` of any resolution, one for each image.
        method: which map to draw otherwise: `"rollout"`, which is `relevance`; of the most probable
            class: `"relevance"` (`class_relevance`), `"gradient_rollout"`, `"grad_cam"`,
            `"input_x_gradient"`, `"integrated_gradients"`.
        caption: the title of the figure; by default what it shows.

    Returns:
        A `matplotlib.figure.Figure`: `figure.savefig("seen.png")`, or `.svg`, `.pdf`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: as the function that makes the maps; not one map for each image.
    """
    figure_class, model = matplotlib_figure(), classifier(model)
    several = listed(images)
    if maps is None:
        caption = caption or caption_of(model, method)
    maps = _maps(model, several, method, maps)
    pictures, best = pixels(model, several), best_classes(model, several)
    figure, axes = sheet_of(figure_class, pictures, len(pictures), 2, caption)
    for row, picture, values, words in zip(axes, pictures, maps, best, strict=True):
        show_picture(row[0], picture)
        show_map(row[1], picture, values, alpha, cmap)
        if words:
            under(row[0], words)
    return figure


def _maps(
    model: ImageClassifier, images: Sequence, method: str, maps: np.ndarray | None
) -> np.ndarray:
    """The maps that a method makes, or those that are given: `(B, rows, columns)` float32."""
    if maps is None:
        maps = method_named(method)(model, images)
    maps = np.asarray(maps, "float32")
    if maps.ndim != 3 or len(maps) != len(images):
        raise ValueError(
            f"maps must be (B, rows, columns), one for each of the {len(images)} images. "
            f"Received: shape {maps.shape}"
        )
    return maps


def overlay_classes(
    model: keras.Model,
    images: Images,
    classes: Classes = None,
    top: int = 3,
    method: str = "relevance",
    shared: bool = False,
) -> "Figure":
    """A figure with the maps of several classes side by side, one row for each image.

    Args:
        model, images: as in `attention_maps`.
        classes: as in `class_relevance`; by default the `top` most probable ones of each image.
        top: how many classes, if `classes` is None.
        method: as in `overlay`, but not `"rollout"`, which is the same for every class.
        shared: whether the maps of a row share one scale of colours; otherwise each has its own,
            as in `overlay`.
    """
    figure_class, model = matplotlib_figure(), classifier(model)
    if method_named(method) is rollout_of_each:
        raise ValueError("Rollout is the same for every class. Choose another method.")
    several = listed(images)
    if classes is None:
        classes = top_classes(model, several, top)
    ids, _ = class_indices(model, several, classes)
    maps = method_named(method)(model, several, ids)
    chances = probabilities(model, several)
    pictures, names = pixels(model, several), class_names(model)
    figure, axes = sheet_of(
        figure_class, pictures, len(pictures), 1 + ids.shape[1], caption_of(model, method)
    )
    for i, row in enumerate(axes):
        show_picture(row[0], pictures[i])
        if name := file_name(several[i]):
            under(row[0], name)
        scale = tuple(np.percentile(maps[i], [1, 99])) if shared else None
        for axis, cls, values in zip(row[1:], ids[i], maps[i], strict=True):
            show_map(axis, pictures[i], values, scale=scale, bar=not shared or axis is row[-1])
            under(axis, f"{short(names[cls])}, {percent(chances[i, cls])}")
    return figure


def overlay_heads(
    model: keras.Model, image: AnyImage, block: int = -1, query: tuple[int, int] | None = None
) -> "Figure":
    """A figure with the attention of every head of a block, for one image.

    Args:
        model: as in `attention_maps`.
        image: a raw image.
        block: index of the block.
        query: (row, column) of the patch whose attention is drawn, which is framed; by default
            what the head reads: the class token, or the mean of all patches.

    Raises:
        ValueError: as `attention_maps`; the patch does not exist.
    """
    figure_class, model = matplotlib_figure(), classifier(model)
    maps, rows = attention_maps(model, [image], blocks=block)[0][0], grid_of(model)
    block %= len(chosen_blocks(model))
    count, first = maps.shape[1], model.backbone.num_prefix_tokens
    if maps.shape[1] != maps.shape[2] or count != first + rows[0] * rows[1]:
        raise ValueError(
            f"The block's map has {maps.shape[1]} x {maps.shape[2]} tokens, not those of the "
            "last grid. Choose a block of the last stage."
        )
    if query is None:
        weights = head_weights(model, [image], count)[0]
        reads = model.pool.reads
    else:
        if not all(0 <= i < n for i, n in zip(query, rows, strict=True)):
            raise ValueError(f"query is a patch of {rows[0]} x {rows[1]}. Received: {query}")
        weights = np.eye(count)[first + query[0] * rows[1] + query[1]]
        reads = f"the patch in row {query[0]}, column {query[1]}"
    values = on_grid(model, np.einsum("n,hnm->hm", weights, maps)[None], [image])[0]
    picture, heads = pixels(model, [image])[0], len(values)
    columns = min(4, heads)
    caption = f"attention of {reads}, block {block}"
    figure, axes = sheet_of(figure_class, [picture], -(-heads // columns), columns, caption)
    for i, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if i < heads:
            show_map(axis, picture, values[i])
            under(axis, f"head {i}")
            if query is not None:
                frame(axis, picture, query, rows)
    return figure


def gallery(
    model: keras.Model,
    images: Images,
    method: str = "relevance",
    columns: int = 4,
    maps: np.ndarray | None = None,
) -> "Figure":
    """A figure of many images in a grid, each with its map over it, its class and its file's name.

    Args:
        model, images, method, maps: as in `overlay`.
        columns: images per row.
    """
    figure_class, model = matplotlib_figure(), classifier(model)
    several = listed(images)
    caption = None if maps is not None else caption_of(model, method)
    maps = _maps(model, several, method, maps)
    pictures, best = pixels(model, several), best_classes(model, several)
    columns = min(columns, len(pictures))
    figure, axes = sheet_of(figure_class, pictures, -(-len(pictures) // columns), columns, caption)
    for i, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if i < len(pictures):
            show_map(axis, pictures[i], maps[i], bar=False)
            under(axis, best[i])
    return figure

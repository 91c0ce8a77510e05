"""Figures of explanations, in one style: a picture in grey, a map in colours over it."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from PIL import Image

from keras_vit.explain.maps import attention_maps, classifier, grid_of
from keras_vit.explain.relevance import (
    CAPTIONS,
    Classes,
    class_indices,
    method_named,
    rollout_of_each,
    top_classes,
)
from keras_vit.explain.rollout import head_weights, on_grid, shown
from keras_vit.images import listed, to_array
from keras_vit.models.activation import apply
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Image as AnyImage
from keras_vit.types import Images, Size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SIDE = 2.4  # inches, the longer edge of a picture
SMALL = 8  # points, the captions


def overlay(
    model: keras.Model,
    images: Images,
    alpha: float = 0.6,
    cmap: str = "inferno",
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
        cmap: the name of a matplotlib colour map.
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
        maps = method_named(method)(model, several)
        caption = caption or caption_of(model, method)
    maps = np.asarray(maps, "float32")
    if maps.ndim != 3 or len(maps) != len(several):
        raise ValueError(
            f"maps must be (B, rows, columns), one for each of the {len(several)} images. "
            f"Received: shape {maps.shape}"
        )
    pictures, best = pixels(model, several), best_classes(model, several)
    figure, axes = _sheet(figure_class, pictures, len(pictures), 2, caption)
    for row, picture, values, words in zip(axes, pictures, maps, best, strict=True):
        show_picture(row[0], picture)
        show_map(row[1], picture, values, alpha, cmap)
        if words:
            under(row[0], words)
    return figure


def overlay_classes(
    model: keras.Model,
    images: Images,
    classes: Classes = None,
    top: int = 3,
    method: str = "relevance",
) -> "Figure":
    """A figure with the maps of several classes side by side, one row for each image.

    All maps of a row share one scale, so that they can be compared.

    Args:
        model, images: as in `attention_maps`.
        classes: as in `class_relevance`; by default the `top` most probable ones of each image.
        top: how many classes, if `classes` is None.
        method: as in `overlay`, but not `"rollout"`, which is the same for every class.
    """
    figure_class, model = matplotlib_figure(), classifier(model)
    several = listed(images)
    if classes is None:
        classes = top_classes(model, several, top)
    ids, _ = class_indices(model, several, classes)
    maps = method_named(method)(model, several, ids)
    if method == "rollout":
        raise ValueError("Rollout is the same for every class. Choose another method.")
    chances = probabilities(model, several)
    pictures, names = pixels(model, several), class_names(model)
    figure, axes = _sheet(
        figure_class, pictures, len(pictures), 1 + ids.shape[1], caption_of(model, method)
    )
    for i, row in enumerate(axes):
        show_picture(row[0], pictures[i])
        if name := file_name(several[i]):
            under(row[0], name)
        scale = tuple(np.percentile(maps[i], [1, 99]))
        for axis, cls, values in zip(row[1:], ids[i], maps[i], strict=True):
            show_map(axis, pictures[i], values, scale=scale, bar=axis is row[-1])
            under(axis, f"{short(names[cls])}, {chances[i, cls]:.0%}")
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
    values = on_grid(model, np.einsum("n,hnm->hm", weights, maps))
    picture, heads = pixels(model, [image])[0], len(values)
    columns = min(4, heads)
    caption = f"attention of {reads}, block {block}"
    figure, axes = _sheet(figure_class, [picture], -(-heads // columns), columns, caption)
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
    maps = method_named(method)(model, several) if maps is None else np.asarray(maps)
    pictures, best = pixels(model, several), best_classes(model, several)
    columns = min(columns, len(pictures))
    figure, axes = _sheet(figure_class, pictures, -(-len(pictures) // columns), columns, caption)
    for i, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if i < len(pictures):
            show_map(axis, pictures[i], maps[i], bar=False)
            under(axis, best[i])
    return figure


def visualize_patches(image: AnyImage, patch_size: Size = 16) -> "Figure":
    """A figure of an image, cut into the patches that a model embeds one by one.

    Args:
        image: a raw image: a path, a PIL image or an array `(H, W, C)`.
        patch_size: int or (height, width), in pixels. What does not fill a patch is left out.

    Raises:
        ValueError: the image is smaller than a patch.
    """
    figure_class = matplotlib_figure()
    picture = np.asarray(to_array(image), "uint8")
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    if not rows * columns:
        raise ValueError(
            f"The image is smaller than a patch of {height} x {width} pixels. Received: "
            f"{picture.shape[0]} x {picture.shape[1]}"
        )
    gap = max(1, max(height, width) // 8)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    apart = np.full((*shape, 4), (255, 255, 255, 0), "uint8")
    colours = np.broadcast_to(picture, (*picture.shape[:2], 3))
    for row in range(rows):
        for column in range(columns):
            y, x = row * (height + gap), column * (width + gap)
            part = colours[row * height : (row + 1) * height, column * width : (column + 1) * width]
            apart[y : y + height, x : x + width, :3] = part
            apart[y : y + height, x : x + width, 3] = 255
    side = 2 * SIDE / max(shape)
    figure = figure_class(figsize=(shape[1] * side, shape[0] * side + 0.3), layout="constrained")
    axis = figure.subplots()
    axis.imshow(apart, interpolation="nearest")
    axis.set_axis_off()
    size = f"{height} x {width} pixels"
    under(axis, f"{rows} x {columns} patches of {size}")
    return figure


# --- Parts of a figure ---


def matplotlib_figure() -> type["Figure"]:
    """matplotlib's Figure class, which needs no window and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('Drawing needs matplotlib: pip install "keras-vit-zoo[demo]"') from None
    return Figure


def _sheet(
    figure_class: Any, pictures: Any, rows: int, columns: int, caption: str | None
) -> tuple["Figure", Any]:
    """A figure with room for so many pictures, and its axes, (rows, columns)."""
    height, width = pictures[0].shape[:2]
    side = SIDE / max(height, width)
    size = (columns * (width * side + 0.3) + 0.3, rows * (height * side + 0.4) + 0.3)
    figure = figure_class(figsize=size, layout="constrained")
    if caption:
        figure.suptitle(caption, fontsize=SMALL + 1)
    return figure, figure.subplots(rows, columns, squeeze=False)


def show_picture(axis: "Axes", picture: np.ndarray) -> None:
    """Draw a picture `(H, W, C)` of 0..255."""
    axis.imshow(picture.squeeze(), extent=extent(picture), cmap="gray", vmin=0, vmax=255)
    axis.set_axis_off()


def show_map(
    axis: "Axes",
    picture: np.ndarray,
    values: np.ndarray,
    alpha: float = 0.6,
    cmap: str = "inferno",
    scale: tuple[float, float] | None = None,
    bar: bool = True,
) -> "AxesImage":
    """Draw a map over a grey copy of a picture, with a bar of its colours at the right."""
    low, high = scale or np.percentile(values, [1, 99])
    grey = picture.mean(-1)
    axis.imshow(grey, extent=extent(picture), cmap="gray", vmin=0, vmax=255)
    drawn = axis.imshow(
        values,
        extent=extent(picture),
        interpolation="bilinear",
        cmap=cmap,
        alpha=alpha,
        vmin=low,
        vmax=high,
    )
    axis.set_axis_off()
    if bar and high > low:
        inset = axis.inset_axes((1.02, 0, 0.04, 1))
        colours = axis.figure.colorbar(drawn, cax=inset, ticks=[low, high], format="%.1e")
        colours.set_alpha(1)
        colours.ax.tick_params(labelsize=SMALL - 3, length=2, pad=1)
        colours.outline.set_visible(False)
    return drawn


def frame(axis: "Axes", picture: np.ndarray, place: tuple[int, int], grid: tuple[int, int]) -> None:
    """Draw a frame around a patch."""
    from matplotlib.patches import Rectangle

    height, width = (size / n for size, n in zip(picture.shape[:2], grid, strict=True))
    corner = (place[1] * width, place[0] * height)
    axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="cyan", linewidth=1.2))


def under(axis: "Axes", text: str) -> None:
    """Write under a picture."""
    axis.set_title(text, fontsize=SMALL, y=-0.03, verticalalignment="top")


def extent(picture: np.ndarray) -> tuple[float, float, float, float]:
    """Where a map lies over a picture, in pixels: a value lies at the centre of its patch."""
    height, width = picture.shape[:2]
    return (0, width, height, 0)


# --- Words and pixels ---


def pixels(model: ImageClassifier, images: Images) -> np.ndarray:
    """The images as the model sees them, `(B, H, W, C)` uint8."""
    return np.asarray(model.preprocessor.image_converter.pixels(images)).astype("uint8")


def probabilities(model: ImageClassifier, images: Images) -> np.ndarray:
    """What the model says, by its activation, `(B, num_classes)`."""
    return apply(model.predict(images, verbose=0), model.activation)


def class_names(model: ImageClassifier) -> Sequence[str]:
    """The names of the classes, or their numbers."""
    return model.class_names or [str(i) for i in range(model.num_classes)]


def best_classes(model: ImageClassifier, images: Any) -> list[str]:
    """The most probable class of each image and its probability, and the file's name, as text."""
    files = [file_name(image) for image in images]
    if not model.num_classes:
        return files
    words = []
    for best, name in zip(model.classify(images, top=1), files, strict=True):
        (label, value), *_ = best
        said = (
            f"{short(label)}, {value:.0%}" if model.activation else f"{short(label)}: {value:.4g}"
        )
        words.append(f"{said}\n{name}" if name else said)
    return words


def file_name(image: Any) -> str:
    """The name of an image's file, if it has one."""
    if isinstance(image, Image.Image):
        image = getattr(image, "filename", "")
    return os.path.basename(image) if isinstance(image, (str, os.PathLike)) else ""


def short(text: str) -> str:
    """A name of a class that fits under a picture."""
    return text if len(text) < 28 else text[:25].rstrip() + "..."


def caption_of(model: ImageClassifier, method: str) -> str:
    """What a method's maps show."""
    if method_named(method) is rollout_of_each:
        return shown(model)
    return CAPTIONS[method]

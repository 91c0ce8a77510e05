"""Parts of the figures: pictures, maps over them, and the words below."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from keras_vit.explain.classes import logits_of
from keras_vit.models.activation import apply
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SIDE = 2.4  # inches, the longer edge of a picture
SMALL = 8  # points, the captions


def matplotlib_figure() -> type["Figure"]:
    """matplotlib's Figure class, which needs no window and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('Drawing needs matplotlib: pip install "keras-vit-zoo[demo]"') from None
    return Figure


def sheet_of(
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
    cmap: str | None = None,
    scale: tuple[float, float] | None = None,
    bar: bool = True,
) -> "AxesImage":
    """Draw a map over a grey copy of a picture, with a bar of its colours at the right."""
    values = np.asarray(values)
    opacity: float | np.ndarray = alpha
    if values.min() < 0:  # nothing is drawn where the map is 0
        cmap, high = cmap or "bwr", max(float(np.percentile(np.abs(values), 99)), 1e-30)
        low, opacity = -high, alpha * np.minimum(np.abs(values) / high, 1)
    else:
        low, high = scale or np.percentile(values, [1, 99])
    axis.imshow(picture.mean(-1), extent=extent(picture), cmap="gray", vmin=0, vmax=255)
    drawn = axis.imshow(
        values,
        extent=extent(picture),
        interpolation="bilinear",
        cmap=cmap or "inferno",
        alpha=opacity,
        vmin=low,
        vmax=high,
    )
    axis.set_axis_off()
    if bar and high > low:
        inset = axis.inset_axes((1.02, 0, 0.04, 1))
        colours = axis.figure.colorbar(drawn, cax=inset, ticks=[low, high])
        colours.ax.set_yticklabels([f"{x:.2g}" for x in (low, high)])
        colours.set_alpha(1)
        colours.ax.tick_params(labelsize=SMALL - 2, length=0, pad=2)
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
    axis.set_title(text, fontsize=SMALL, y=-0.04, verticalalignment="top")


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
    return apply(logits_of(model, images), model.activation)


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
            f"{short(label)}, {percent(value)}"
            if model.activation
            else f"{short(label)}: {value:.4g}"
        )
        words.append(f"{said}\n{name}" if name else said)
    return words


def percent(value: float) -> str:
    """A probability as text."""
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def file_name(image: Any) -> str:
    """The name of an image's file, if it has one."""
    if isinstance(image, Image.Image):
        image = getattr(image, "filename", "")
    return os.path.basename(image) if isinstance(image, (str, os.PathLike)) else ""


def short(text: str) -> str:
    """A name of a class that fits under a picture."""
    return text if len(text) < 28 else text[:25].rstrip() + "..."

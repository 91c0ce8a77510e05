"""A figure of what a model embeds as one token each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vit.explain.canvas import SIDE, matplotlib_figure, under
from keras_vit.images import to_array
from keras_vit.layers import AdaptivePatches, HybridPatches, OverlappingPatches
from keras_vit.layers.adaptive import tokens_of_patches
from keras_vit.layers.patch_kinds import PATCHES, kind_of
from keras_vit.layers.split import pair
from keras_vit.types import Image as AnyImage
from keras_vit.types import Size

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def visualize_patches(
    image: AnyImage, patch_size: Size = 16, patches: str | Mapping[str, Any] = "plain"
) -> "Figure":
    """A figure of an image, cut into the patches that a model embeds one by one.

    Overlapping patches, and the fields of view of a convolutional stem, are drawn whole; what lies
    outside the image is left white. Whole cells of adaptive patches have the resolution in which
    they are embedded.

    Args:
        image: a raw image: a path, a PIL image or an array `(H, W, C)`.
        patch_size: int or (height, width), in pixels. What does not fill a patch is left out.
        patches: a kind of patches, as in `ViTBackbone`. All but `"plain"` are square.

    Raises:
        ValueError: the image is smaller than a patch, the kind is unknown, or the patches must be
            square.
    """
    figure_class = matplotlib_figure()
    kind, options = kind_of(patches)
    picture, (height, width) = np.asarray(to_array(image), "uint8"), pair(patch_size)
    if kind != "plain" and height != width:
        raise ValueError(f'patches="{kind}" are square. Received: {height} x {width} pixels')
    rows, columns = picture.shape[0] // height, picture.shape[1] // width
    if not rows * columns:
        raise ValueError(
            f"The image is smaller than a patch of {height} x {width} pixels. Received: "
            f"{picture.shape[0]} x {picture.shape[1]}"
        )
    colours = np.broadcast_to(picture, (*picture.shape[:2], 3))
    colours = np.dstack([colours, np.full(colours.shape[:2], 255, "uint8")])
    if kind == "adaptive":
        drawn, caption = divided(colours, height, options)
    else:
        # Of a stem: the field of view of its 3x3 convolutions of stride 2.
        wide = PATCHES[kind] in (OverlappingPatches, HybridPatches)
        side = options.get("kernel_size") or 2 * height - 1
        extent = (side, side) if wide else (height, width)
        drawn = apart(colours, (rows, columns), (height, width), extent)
        caption = f"{rows} x {columns} patches of {extent[0]} x {extent[1]} pixels"
        caption += f", {height} apart" if wide else ""
        caption += " and their coordinates" if kind == "positional" else ""
    scale = 2 * SIDE / max(drawn.shape)
    size_of = (drawn.shape[1] * scale, drawn.shape[0] * scale + 0.3)
    figure = figure_class(figsize=size_of, layout="constrained")
    axis = figure.subplots()
    axis.imshow(drawn, interpolation="nearest")
    axis.set_axis_off()
    under(axis, caption)
    return figure


def apart(
    colours: np.ndarray, grid: tuple[int, int], step: tuple[int, int], extent: tuple[int, int]
) -> np.ndarray:
    """Patches with gaps between them: `(H, W, 4) -> (H', W', 4)` uint8.

    Args:
        colours: the image, RGBA.
        grid: (rows, columns).
        step: the distance of neighbouring patches, in pixels, down and across.
        extent: the size of a patch, in pixels; of a larger one the middle lies in its step.
    """
    margin = [e // 2 if e > s else 0 for e, s in zip(extent, step, strict=True)]
    wide = np.pad(colours, [(m, e) for m, e in zip(margin, extent, strict=True)] + [(0, 0)])
    gap = max(1, max(extent) // 8)
    shape = [n * (e + gap) - gap for n, e in zip(grid, extent, strict=True)]
    drawn = np.full((*shape, 4), (255, 255, 255, 0), "uint8")
    for row in range(grid[0]):
        for column in range(grid[1]):
            (top, left), (y, x) = (
                (row * a[0], column * a[1]) for a in (step, [e + gap for e in extent])
            )
            part = wide[top : top + extent[0], left : left + extent[1]]
            drawn[y : y + extent[0], x : x + extent[1]] = part
    return drawn


def divided(
    colours: np.ndarray, patch_size: int, options: Mapping[str, Any]
) -> tuple[np.ndarray, str]:
    """An image with the borders of its adaptive patches, and a caption: `(H, W, 4) -> (H', W', 4)`
    uint8, whole cells only."""
    cell = 2 * patch_size
    rows, columns = (n // cell for n in colours.shape[:2])
    drawn = colours[: rows * cell, : columns * cell].copy()
    layer = AdaptivePatches(embed_dim=1, patch_size=patch_size, **options)
    layer.build((1, *drawn.shape[:2], 3))
    choice = np.asarray(layer.choice(drawn[None, ..., :3] / np.float32(255)))
    small = 4 * layer.count_split(rows * columns)
    token = tokens_of_patches(choice, (2 * rows, 2 * columns)).reshape(2 * rows, 2 * columns)
    token = token.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    coarse = drawn.reshape(rows * cell // 2, 2, columns * cell // 2, 2, 4).mean(axis=(1, 3))
    coarse = coarse.astype("uint8").repeat(2, axis=0).repeat(2, axis=1)
    drawn = np.where((token >= small)[..., None], coarse, drawn)
    border = np.zeros(token.shape, bool)
    for back in range(1, 1 + max(1, patch_size // 8)):
        border[back:] |= token[back:] != token[:-back]
        border[:, back:] |= token[:, back:] != token[:, :-back]
    drawn[border] = (255, 255, 255, 0)
    caption = (
        f"{choice.shape[1]} patches: {small} of {patch_size} x {patch_size} and "
        f"{choice.shape[1] - small} of {cell} x {cell} pixels"
    )
    return drawn, caption

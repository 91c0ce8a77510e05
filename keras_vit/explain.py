"""Explanation: attention maps, attention rollout, and figures of it."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
from keras import ops

from keras_vit.images import listed
from keras_vit.layers.block import Block
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Images, Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEP = 16  # images at once: the inputs of all blocks are in memory


def attention_maps(
    model: ImageClassifier, images: Images, blocks: int | Sequence[int] | None = None
) -> list[np.ndarray]:
    """The attention weights of every head, computed by the blocks themselves.

    Args:
        model: a classifier of this package, for instance from `from_preset`.
        images: raw images, as `model.predict` takes them: a path, a PIL image, an array, or a list.
        blocks: index of a block, -1 for the last, or a list of them; all by default.

    Returns:
        A list with an array `(B, heads, N, M)` float32 for each block that has attention. Row i
        holds the weights with which token i attends to each key; it sums to 1. The N tokens are the
        prefix tokens (class, distillation, register), then the patches row by row, and so are the
        M keys: M = N. In a hierarchical model N is that of the block's stage; where attention is
        local, the weights outside the window are 0; where it reads a coarser grid, the keys are
        the cells of that grid, row by row.

    Raises:
        ValueError: the model has no attention blocks or no preprocessor; no such block; no images;
            the attention weights are NaN.
    """
    scores, parts = scorer(model, blocks), []
    for x in preprocessed(model, images):
        with no_gradient():
            parts.append([ops.convert_to_numpy(s) for s in scores(x)])
    maps = [np.concatenate(block) for block in zip(*parts, strict=True)]
    if any(np.isnan(block.min(initial=0)) for block in maps):
        raise ValueError(
            "The attention weights are NaN: weights of the model are NaN or infinite, or numbers "
            "are too large for its dtype."
        )
    return maps


def scorer(
    model: ImageClassifier, blocks: int | Sequence[int] | None = None
) -> Callable[[Tensor], list[Tensor]]:
    """A function of the model's preprocessed input that returns the maps of `attention_maps` as
    tensors."""
    chosen = chosen_blocks(model, blocks)
    scores = [block.scores for block in chosen if block.scores]  # all of them have it
    features = keras.Model(model.input, [block.input for block in chosen])

    def maps(x: Tensor) -> list[Tensor]:
        inputs = features(x, training=False)
        inputs = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        return [function(i) for function, i in zip(scores, inputs, strict=True)]

    return maps


def rollout(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Attention rollout: `depth x (B, heads, N, N) -> (B, N, N)`.

    Row i says how much of each input token reaches output token i: the mean over the heads of each
    block, averaged with the identity (the skip connection), multiplied through the blocks. Rows sum
    to 1; rows and columns include the prefix tokens. Section 3 of https://arxiv.org/abs/2005.00928.

    Args:
        maps: the blocks' maps in order, from `attention_maps`.

    Raises:
        ValueError: no maps, maps of different sizes, or maps that are not square, as those of a
            hierarchical model are.
    """
    shapes = {np.shape(m)[:1] + np.shape(m)[2:] for m in maps}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(
            "rollout takes the maps of blocks, each (B, heads, N, N) with the same B and N. The "
            "maps of a hierarchical model differ in size: use those of single blocks, of "
            f"attention_maps(). Received: {[tuple(np.shape(m)) for m in maps]}"
        )
    means = [np.mean(block, axis=1) for block in maps]
    steps = [0.5 * mean + 0.5 * np.eye(mean.shape[-1], dtype=mean.dtype) for mean in means]
    return functools.reduce(lambda total, step: step @ total, steps)


def relevance(model: ImageClassifier, images: Images) -> np.ndarray:
    """How much of each patch reaches what the head reads, by attention rollout.

    The pooling decides which output tokens count: the class token (the mean of both with DeiT's
    distillation token), the mean of all patches, or what the pooling query attends to. Prefix
    tokens of the input are left out.

    Args:
        model, images: as in `attention_maps`.

    Returns:
        Array `(B, rows, columns)` float32, on the grid of patches; the sum over one image is at
        most 1.

    Raises:
        ValueError: as `attention_maps`; the model is hierarchical: there is no rollout of its maps.
    """
    check_same_grid(model)
    total = rollout(attention_maps(model, images))
    reached = np.einsum("bn,bnm->bm", head_weights(model, images, total.shape[1]), total)
    patches = reached[:, model.backbone.num_prefix_tokens :]
    return patches.reshape(-1, *model.backbone.grid_size).astype("float32")


def check_same_grid(model: ImageClassifier) -> None:
    """Check, before any map is computed, that all blocks attend to tokens of one grid.

    Raises:
        ValueError: the model has stages, or its attention blocks take feature maps.
    """
    shapes = {tuple(block.output.shape[1:]) for block in chosen_blocks(model)}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"{type(model).__name__} is hierarchical: the attention maps of its blocks differ in "
            "size or are local, and rollout cannot multiply them. Use the maps of single blocks: "
            "explain.attention_maps(model, images, blocks=-1)."
        )


def head_weights(model: ImageClassifier, images: Images, count: int) -> np.ndarray:
    """The weight of each of `count` output tokens in what the head reads: (B, count), rows sum to
    1."""
    output = keras.Model(model.input, model.backbone.output)
    rows = []
    for x in preprocessed(model, images):
        with no_gradient():
            tokens = functools.partial(output, x, training=False)
            rows.append(model.pool.weights((len(x), count), tokens))
    return np.concatenate(rows)


def shown(model: ImageClassifier) -> str:
    """A caption for `relevance`."""
    return f"attention rollout of {model.pool.reads}"


def overlay(
    model: ImageClassifier, images: Images, alpha: float = 0.6, cmap: str = "inferno"
) -> "Figure":
    """A figure of each image as the model sees it, with `relevance` drawn over a grey copy.

    The colours span the 1st to the 99th percentile of each map, so they compare patches of one
    image, not two images. The title is the most probable class, if the model has a head.

    Args:
        model, images: as in `attention_maps`.
        alpha: opacity of the map, 0 to 1.
        cmap: the name of a matplotlib colour map.

    Returns:
        A `matplotlib.figure.Figure`: `figure.savefig("seen.png")`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: as `relevance`.
    """
    figure_class = matplotlib_figure()
    several = listed(images)
    count = len(several)
    maps = relevance(model, several)
    pictures = model.preprocessor.image_converter.pixels(several).astype("uint8")
    height, width = pictures.shape[1:3]
    names = model.classify(several, top=1) if model.num_classes else [None] * count
    side = 3.0 / max(height, width)
    figure = figure_class(
        figsize=(2 * width * side + 0.4, count * (height * side + 0.4) + 0.3),
        layout="constrained",
    )
    figure.suptitle(shown(model), fontsize=9)
    axes = figure.subplots(count, 2, squeeze=False)
    for row, picture, weights, best in zip(axes, pictures, maps, names, strict=True):
        extent = (0, width, height, 0)  # pixels: a value lies at the centre of its patch
        low, high = np.percentile(weights, [1, 99])
        row[0].imshow(picture.squeeze(), extent=extent, cmap="gray", vmin=0, vmax=255)
        row[1].imshow(picture.mean(-1), extent=extent, cmap="gray", vmin=0, vmax=255)
        row[1].imshow(
            weights,
            extent=extent,
            interpolation="bilinear",
            cmap=cmap,
            alpha=alpha,
            vmin=low,
            vmax=high,
        )
        for axis in row:
            axis.set_axis_off()
        if best:
            row[0].set_title(f"{best[0][0]}, {best[0][1]:.0%}", fontsize=9)
    return figure


def matplotlib_figure() -> type["Figure"]:
    """matplotlib's Figure class, which needs no window and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('Drawing needs matplotlib: pip install "keras-vit-zoo[demo]"') from None
    return Figure


def chosen_blocks(model: ImageClassifier, blocks: int | Sequence[int] | None = None) -> list[Block]:
    """The selected blocks of a model, by their index among those that have attention."""
    every = list(model.backbone.blocks) if isinstance(model, ImageClassifier) else []
    every = [block for block in every if block.scores]
    if not every:
        raise ValueError(
            "Attention maps need a classifier with attention blocks, such as ViT or DeiT. "
            f"Received: {type(model).__name__}"
        )
    if blocks is None:
        return every
    blocks = [blocks] if isinstance(blocks, (int, np.integer)) else blocks
    wrong = [i for i in blocks if not -len(every) <= i < len(every)]
    if wrong or not len(blocks):
        raise ValueError(
            f"blocks must be indices from {-len(every)} to {len(every) - 1}. "
            f"Received: {list(blocks)}"
        )
    return [every[i] for i in blocks]


def preprocessed(model: ImageClassifier, images: Images) -> Iterator[Tensor]:
    """Batches of the model's input, from raw images."""
    preprocessor = model.preprocessor
    if preprocessor is None:
        raise ValueError("The model has no preprocessor, so it cannot take raw images.")
    several = listed(images)
    for start in range(0, len(several), STEP):
        yield preprocessor(several[start : start + STEP])


def no_gradient() -> contextlib.AbstractContextManager:
    """On the torch backend `torch.no_grad()`, else a context that does nothing."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()

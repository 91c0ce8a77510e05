"""What a model looks at: attention maps, their rollout through the blocks, and a picture of it."""

import contextlib

import keras
import numpy as np
from keras import ops

STEP = 16  # images at once: all blocks' inputs are kept


def attention_maps(model, images, blocks=None):
    """The attention of every head, from the blocks themselves.

    Args:
        model: a classifier of this package, for instance from `from_preset`.
        images: raw images, as `model.predict` takes them: a path, a PIL image, an array, or a list.
        blocks: indices of the blocks to look at, -1 for the last; all by default.

    Returns:
        A list with an array `(B, heads, N, N)` float32 for each block: row i tells how much token i
        takes from each token, and sums to 1. N counts the prefix tokens (class, distillation,
        register), which come first, and the patches row by row.

    Raises:
        ValueError: the model has no attention blocks or no preprocessor; no such block; no image.
    """
    maps, parts = scorer(model, blocks), []
    for x in prepared(model, images):
        with no_gradient():
            parts.append([ops.convert_to_numpy(s) for s in maps(x)])
    return [np.concatenate(maps) for maps in zip(*parts, strict=True)]


def scorer(model, blocks=None):
    """A function of the model's prepared input that gives the maps of `attention_maps`, as
    tensors."""
    chosen = chosen_blocks(model, blocks)
    features = keras.Model(model.input, [block.input for block in chosen])

    def maps(x):
        inputs = features(x, training=False)
        inputs = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        return [block.scores(i) for block, i in zip(chosen, inputs, strict=True)]

    return maps


def rollout(maps):
    """Attention rollout: `depth x (B, heads, N, N) -> (B, N, N)`.

    Row i tells how much of each input token reaches output token i: the heads' mean of each block,
    averaged with the identity (the skip connection), multiplied through the blocks. Rows sum to 1;
    prefix tokens are among rows and columns. Section 3 of https://arxiv.org/abs/2005.00928.

    Args:
        maps: the blocks' maps in order, from `attention_maps`.

    Raises:
        ValueError: no map, or maps of different sizes.
    """
    shapes = {np.shape(m)[:1] + np.shape(m)[2:] for m in maps}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise ValueError(
            "rollout takes the maps of blocks, each (B, heads, N, N) with the same B and N. "
            f"Received: {[tuple(np.shape(m)) for m in maps]}"
        )
    total = None
    for block in maps:
        block = np.mean(block, axis=1)
        block = 0.5 * block + 0.5 * np.eye(block.shape[-1], dtype=block.dtype)
        total = block if total is None else block @ total
    return total


def relevance(model, images):
    """How much of each patch reaches what the head reads, by attention rollout.

    The head's own pooling says which output tokens count: the class token (with DeiT's distillation
    token, the mean of both), the mean of all patches, or those that the pooling query attends to.
    Of the input tokens, the prefix is left out.

    Args:
        model, images: as in `attention_maps`.

    Returns:
        Array `(B, rows, columns)` float32, on the grid of patches; each image's sums to at most 1.
    """
    total = rollout(attention_maps(model, images))
    reached = np.einsum("bn,bnm->bm", head_weights(model, images, total.shape), total)
    patches = reached[:, model.backbone.num_prefix_tokens :]
    return patches.reshape(-1, *model.backbone.grid_size).astype("float32")


def head_weights(model, images, shape):
    """The part of each output token in what the head reads: (B, N), rows sum to 1."""
    prefix, pooling = model.backbone.num_prefix_tokens, model.pooling
    first = prefix if pooling != "token" and not model.pool_include_prefix else 0
    weights = np.zeros(shape[:2], "float32")
    if pooling == "token":
        count = 2 if getattr(model, "distilled_head", False) else 1
        weights[:, :count] = 1 / count
    elif pooling == "avg":
        weights[:, first:] = 1 / (shape[1] - first)
    else:
        pool = model.get_layer("attn_pool")
        tokens = keras.Model(model.input, pool.input)
        rows = []
        for x in prepared(model, images):
            with no_gradient():
                rows.append(ops.convert_to_numpy(pool.scores(tokens(x, training=False))))
        weights[:, first:] = np.concatenate(rows).mean(axis=1)[:, 0]
    return weights


def shown(model):
    """What `relevance` shows, in words."""
    if model.pooling == "token":
        both = getattr(model, "distilled_head", False)
        return "attention rollout of the " + (
            "class and distillation tokens" if both else "class token"
        )
    if model.pooling == "map":
        return "attention rollout of the pooling query"
    return "attention rollout, mean over all patches' queries (the head averages the patches)"


def overlay(model, images, alpha=0.6, cmap="inferno"):
    """A figure: each picture as the model sees it, and beside it in grey, with `relevance` over it.

    Each map is stretched from its 1st to its 99th percentile: colours compare the patches of one
    picture, not two pictures. Above it stands the most probable class, if the model has a head.

    Args:
        model, images: as in `attention_maps`.
        alpha: opacity of the map, 0 to 1.
        cmap: a colour map of matplotlib.

    Returns:
        A `matplotlib.figure.Figure`: `figure.savefig("seen.png")`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure_class = matplotlib_figure()
    images = listed(images)
    maps = relevance(model, images)
    pictures = model.preprocessor.image_converter.pixels(images).astype("uint8")
    height, width = pictures.shape[1:3]
    names = model.classify(images, top=1) if model.num_classes else [None] * len(images)
    side = 3.0 / max(height, width)
    figure = figure_class(
        figsize=(2 * width * side + 0.4, len(images) * (height * side + 0.4) + 0.3),
        layout="constrained",
    )
    figure.suptitle(shown(model), fontsize=9)
    axes = figure.subplots(len(images), 2, squeeze=False)
    for row, picture, weights, best in zip(axes, pictures, maps, names, strict=True):
        extent = (0, width, height, 0)  # pixels: a patch's value stands in its middle
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


def matplotlib_figure():
    """matplotlib's Figure class; no window and no global state come with it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('Drawing needs matplotlib: pip install "matplotlib>=3.11"') from None
    return Figure


def chosen_blocks(model, blocks):
    """The blocks of a model that are asked for."""
    backbone = getattr(model, "backbone", None)
    every = getattr(backbone, "blocks", None)
    if not every or not all(hasattr(block, "scores") for block in every):
        raise ValueError(
            "Attention maps need a classifier with attention blocks, such as ViT or DeiT. "
            f"Received: {type(model).__name__}"
        )
    if blocks is None:
        return every
    wrong = [i for i in blocks if not -len(every) <= i < len(every)]
    if wrong or not len(blocks):
        raise ValueError(
            f"blocks must be indices from {-len(every)} to {len(every) - 1}. "
            f"Received: {list(blocks)}"
        )
    return [every[i] for i in blocks]


def listed(images):
    """One image or several as something that has a length and slices."""
    if not isinstance(images, (list, tuple)) and getattr(images, "ndim", 3) < 4:
        images = [images]
    if not len(images):
        raise ValueError("There is no image to look at. Received: an empty list")
    return images


def prepared(model, images):
    """Raw images as batches of the model's input."""
    if getattr(model, "preprocessor", None) is None:
        raise ValueError("The model has no preprocessor, so raw images mean nothing to it.")
    images = listed(images)
    for start in range(0, len(images), STEP):
        yield model.preprocessor(images[start : start + STEP])


def no_gradient():
    """Where torch computes, without the record that a gradient would need."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()

"""Attention rollout: where information can come from, the same for every class.

"Quantifying Attention Flow in Transformers" (https://arxiv.org/abs/2005.00928), section 3.
"""

import functools
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_vit.explain.maps import (
    adaptive,
    attention_maps,
    chosen_blocks,
    classifier,
    fused,
    grid_of,
    no_gradient,
    preprocessed,
)
from keras_vit.layers.adaptive import tokens_of_patches
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Images


def rollout(maps: Sequence[np.ndarray], fusion: str = "mean", discard: float = 0.0) -> np.ndarray:
    """Attention rollout: `depth x (B, heads, N, N) -> (B, N, N)`.

    Row i says how much of each input token reaches output token i: the mean over the heads of each
    block, plus the identity (the skip connection), with rows scaled to a sum of 1, multiplied
    through the blocks. Rows sum to 1; rows and columns include the prefix tokens. Section 3 of
    https://arxiv.org/abs/2005.00928; `fusion` and `discard` are additions of
    https://github.com/jacobgil/vit-explain, which scales columns instead of rows and discards in
    the first image only.

    Args:
        maps: the blocks' maps in order, from `attention_maps`.
        fusion: `"mean"`, `"max"` or `"min"` over the heads.
        discard: the share of each block's weights, the lowest of each image, to set to 0.

    Raises:
        ValueError: no maps, or maps of different sizes; an unknown fusion; `discard` is not in
            [0, 1).
    """
    check_share(discard)
    check_square(maps)
    return combined((fused(block, fusion) for block in maps), discard)


def check_share(discard: float) -> None:
    if not 0 <= discard < 1:
        raise ValueError(f"discard must be in the range [0, 1). Received: discard={discard}")


def check_square(maps: Sequence[np.ndarray], name: str = "rollout") -> None:
    """Raise ValueError unless all maps have the same tokens as queries and as keys."""
    shapes = [np.shape(m) for m in maps]
    found = {shape[:1] + shape[2:] for shape in shapes if len(shape) == 4}
    if len(found) == 1 and all(len(shape) == 4 and shape[2] == shape[3] for shape in shapes):
        return
    raise ValueError(
        f"{name} takes the maps of blocks, each (B, heads, N, N) with the same B and N. The "
        "maps of a hierarchical model differ in size: use those of single blocks, of "
        f"attention_maps(), or grad_cam. Received: {shapes}"
    )


def check_same_grid(model: ImageClassifier) -> None:
    """Check, before any map is computed, that all blocks attend to tokens of one grid.

    Raises:
        ValueError: the model has stages, or its attention blocks take feature maps.
    """
    shapes = {tuple(block.output.shape[1:]) for block in chosen_blocks(model)}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"{type(model).__name__} is hierarchical: the attention maps of its blocks differ in "
            "size or are local, and cannot be multiplied. Use explain.grad_cam(model, images), or "
            "the maps of single blocks: explain.attention_maps(model, images, blocks=-1)."
        )


def combined(steps: Iterable[np.ndarray], discard: float = 0.0) -> np.ndarray:
    """The product of fused maps `(B, N, N)`, each with its skip connection; later ones stand
    left."""
    kept = (with_skip(without_lowest(step, discard)) for step in steps)
    return functools.reduce(lambda total, step: step @ total, kept)


def with_skip(attention: np.ndarray) -> np.ndarray:
    """Add the identity, and scale rows to a sum of 1: `(B, N, N) -> (B, N, N)`."""
    total = attention + np.eye(attention.shape[-1], dtype=attention.dtype)
    return total / total.sum(axis=-1, keepdims=True)


def without_lowest(attention: np.ndarray, share: float) -> np.ndarray:
    """Set that share of the weights to 0, the lowest of each image, but not the first token's
    weight for itself."""
    flat = attention.reshape(len(attention), -1)
    count = int(flat.shape[1] * share)
    if not count:
        return attention
    lowest = np.argpartition(flat, count - 1, axis=1)[:, :count]
    flat, first = flat.copy(), flat[:, 0]
    np.put_along_axis(flat, lowest, 0, axis=1)
    flat[:, 0] = first
    return flat.reshape(attention.shape)


def relevance(
    model: keras.Model, images: Images, fusion: str = "mean", discard: float = 0.0
) -> np.ndarray:
    """How much of each patch reaches what the head reads, by attention rollout.

    The pooling decides which output tokens count: the class token (the mean of both with DeiT's
    distillation token), the mean of all patches, or what the pooling query attends to. Prefix
    tokens of the input are left out. The map is the same for every class; `class_relevance` is not.

    Args:
        model, images: as in `attention_maps`.
        fusion, discard: as in `rollout`.

    Returns:
        Array `(B, rows, columns)` float32, on the grid of patches; the sum over one image is at
        most 1.

    Raises:
        ValueError: as `attention_maps` and `rollout`; the model is hierarchical: there is no
            rollout of its maps.
    """
    model = classifier(model)
    check_same_grid(model)
    total = rollout(attention_maps(model, images), fusion, discard)
    reached = np.einsum("bn,bnm->bm", head_weights(model, images, total.shape[1]), total)
    return on_grid(model, reached, images)


def on_grid(model: ImageClassifier, rows: np.ndarray, images: Images) -> np.ndarray:
    """Values of all tokens as a map of the patches: `(B, ..., N) -> (B, ..., rows, columns)`
    float32. An adaptive patch gives its value to all cells that it covers."""
    patches = rows[..., model.backbone.num_prefix_tokens :]
    if layer := adaptive(model):
        grid = model.backbone.grid_size
        with no_gradient():
            found = [
                keras.ops.convert_to_numpy(layer.choice(x)) for x in preprocessed(model, images)
            ]
        places = tokens_of_patches(np.concatenate(found), grid)
        places = places.reshape(len(places), *(1,) * (patches.ndim - 2), -1)
        places = np.broadcast_to(places, (*patches.shape[:-1], places.shape[-1]))
        patches = np.take_along_axis(patches, places, axis=-1)
    else:
        grid = grid_of(model)
    return patches.reshape(*rows.shape[:-1], *grid).astype("float32")


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

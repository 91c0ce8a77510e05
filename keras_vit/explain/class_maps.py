"""Maps for a class: what in an image speaks for it.

Each function takes any classes, and gives a map for each. Gradients are those of logits.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.explain.classes import STEP, Classes, asked, in_steps, result
from keras_vit.explain.gradients import Gradients, gradients
from keras_vit.explain.maps import (
    chosen_blocks,
    grid_of,
    no_gradient,
    preprocessed,
    tensors,
)
from keras_vit.explain.rollouts import (
    check_same_grid,
    check_share,
    combined,
    head_weights,
    on_grid,
)
from keras_vit.images import listed
from keras_vit.layers.watch import watched
from keras_vit.models.classifier import ImageClassifier
from keras_vit.models.head import Token
from keras_vit.types import Images, Tensor

PARTS = 4  # and so many inputs on the way to each of them


def class_relevance(model: keras.Model, images: Images, classes: Classes = None) -> np.ndarray:
    """Relevance by attention and its gradients: "Generic Attention-model Explainability"
    (https://arxiv.org/abs/2103.15679), equations 5 to 7.

    Starting with R = I, each block adds A R to R, where A is the mean over the heads of the
    positive part of (gradient of the class's logit by the attention probabilities) * (these
    probabilities). The map is the row of R that the head reads: see `relevance` for the poolings.
    A pooling query is a block of its own.

    Args:
        model, images: as in `attention_maps`.
        classes: a class, by index or name, for all images: `(B, rows, columns)`; a list of K
            classes: `(B, K, rows, columns)`; an array `(B, K)` of indices, one row per image, for
            instance from `top_classes`. By default the most probable class of each image.

    Returns:
        Float32 maps on the grid of patches, not negative.

    Raises:
        ValueError: the model has no head or no attention; its blocks do not have the same tokens
            (use `grad_cam`); an unknown class.
    """
    return _by_attention(model, images, classes, _relevance_rows)


def gradient_rollout(
    model: keras.Model, images: Images, classes: Classes = None, discard: float = 0.0
) -> np.ndarray:
    """Attention rollout with each block's map weighted by the gradient of the class's logit: the
    mean over the heads of gradient * map, its positive part, is what `rollout` multiplies.

    From https://github.com/jacobgil/vit-explain, with rows normalised as in `rollout`.

    Args:
        model, images, classes: as in `class_relevance`.
        discard: as in `rollout`.

    Returns, Raises:
        As `class_relevance`.
    """
    check_share(discard)
    return _by_attention(model, images, classes, functools.partial(_rollout_rows, discard=discard))


def grad_cam(model: keras.Model, images: Images, classes: Classes = None) -> np.ndarray:
    """Grad-CAM (https://arxiv.org/abs/1610.02391), equations 1 and 2: the positive part of the sum
    of the feature maps, weighted by the means of their gradients.

    The features are the model's last map, where the head pools it. A head on the class token does
    not read that; there they are what the attention of the last block reads (its `norm1`). The
    gradient by anything later is zero for all patches.

    Args:
        model, images, classes: as in `class_relevance`. Any model with a head, also without
            attention and with several stages.

    Returns:
        Float32 maps on the grid of patches, or of the last feature map; not negative.

    Raises:
        ValueError: the model has no head; an unknown class.
    """
    model, ids, single = asked(model, images, classes)
    read = _last_map(model)
    maps = []
    for x, chosen in zip(preprocessed(model, images, STEP), in_steps(ids), strict=True):
        found = gradients(functools.partial(read, x), {"norm1", "map"}, chosen)
        features = found.values[-1]
        weights = [_patches(model, by[-1]).mean(axis=(1, 2)) for by in found.by]
        patches = _patches(model, features)
        sums = [np.einsum("bhwc,bc->bhw", patches, weight) for weight in weights]
        maps.append(np.maximum(np.stack(sums, axis=1), 0))
    return result(maps, single)


def input_x_gradient(model: keras.Model, images: Images, classes: Classes = None) -> np.ndarray:
    """Input times gradient (https://arxiv.org/abs/1605.01713), summed over the channels: a plain
    baseline.

    Args:
        model, images, classes: as in `class_relevance`. The input is the normalised image, so a
            value of 0 is the mean colour.

    Returns:
        Float32 maps `(B, height, width)`, or `(B, K, height, width)`, one value per pixel of the
        model's input, positive where the pixel raises the logit.
    """
    return _by_input(model, images, classes, np.ones(1))


def integrated_gradients(
    model: keras.Model, images: Images, classes: Classes = None, steps: int = 32
) -> np.ndarray:
    """Integrated gradients (https://arxiv.org/abs/1703.01365), equation 1, from the mean colour,
    summed over the channels: a plain baseline.

    The sum of a map is the logit's difference to that of the mean colour, up to the error of
    `steps` midpoints.

    Args:
        model, images, classes: as in `class_relevance`.
        steps: how many gradients to average; their time is `steps` times that of one.

    Returns:
        As `input_x_gradient`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1. Received: steps={steps}")
    return _by_input(model, images, classes, (np.arange(steps) + 0.5) / steps)


# --- By the attention probabilities ---


def _by_attention(model, images, classes, rows_of: Callable[..., np.ndarray]):
    """Maps from the attention probabilities and their gradients, one image batch at a time."""
    model, ids, single = asked(model, images, classes)
    check_same_grid(model)
    depth, maps = len(chosen_blocks(model)), []
    several = listed(images)
    for start, chosen in zip(range(0, len(ids), STEP), in_steps(ids), strict=True):
        part = several[start : start + STEP]
        (x,) = preprocessed(model, part, STEP)
        found = gradients(functools.partial(model, x, training=False), {"attention"}, chosen)
        _check_tokens(found, depth, len(chosen))
        count = found.values[0].shape[-1]
        weights = head_weights(model, part, count)
        rows = []
        for by in found.by:
            steps = [_weighted(a, g) for a, g in zip(found.values, by, strict=True)]
            rows.append(rows_of(steps, depth, weights))
        maps.append(on_grid(model, np.stack(rows, axis=1), part))
    return result(maps, single)


def _check_tokens(found: Gradients, depth, count):
    """Raise ValueError unless each block's attention is over the same tokens."""
    shapes = [a.shape for a in found.values]
    blocks = shapes[:depth]
    same = len({shape[-1] for shape in blocks}) == 1
    known = depth <= len(shapes) <= depth + 1  # and a pooling query
    if not (known and same and all(shape[0] == count for shape in shapes)):
        raise ValueError(
            "Relevance by attention needs blocks that attend to the same tokens. The stages of "
            "this model have different numbers of tokens, or it attends in windows: use grad_cam."
        )


def _weighted(attention, gradient):
    """The positive part of gradient * map, mean over the heads: `(B, heads, Q, N) -> (B, Q, N)`."""
    return np.maximum(attention * gradient, 0).mean(axis=1)


def _square(step, count):
    """A block that computed the first queries alone: the others have no gradient."""
    missing = count - step.shape[1]
    return np.pad(step, ((0, 0), (0, missing), (0, 0))) if missing else step


def _read(total, steps, depth, weights):
    """The row that the head reads, of a matrix of all tokens: `(B, N, N) -> (B, N)`."""
    if len(steps) > depth:  # the pooling query attends to tokens; maybe not to the prefix
        query = steps[depth][:, 0]
        query = np.pad(query, ((0, 0), (total.shape[1] - query.shape[1], 0)))
        return np.einsum("bn,bnm->bm", query, total)
    return np.einsum("bn,bnm->bm", weights, total)


def _relevance_rows(steps, depth, weights):
    count = steps[0].shape[-1]
    total = np.tile(np.eye(count, dtype="float32"), (len(weights), 1, 1))
    for step in steps[:depth]:
        total[:, : step.shape[1]] += step @ total  # equation 6
    return _read(total, steps, depth, weights)


def _rollout_rows(steps, depth, weights, discard):
    count = steps[0].shape[-1]
    total = combined([_square(step, count) for step in steps[:depth]], discard)
    return _read(total, steps, depth, weights)


# --- By feature maps ---


def _last_map(model: ImageClassifier) -> Callable[[Tensor], Tensor]:
    """A function of the input that gives logits, and passes the last map that the head reads to
    `watched` as the last of its values."""
    backbone = model.backbone
    if isinstance(model.pool, Token):
        last = backbone.blocks[-1].input
    else:
        last = backbone.output
    inputs = list(last) if isinstance(last, (list, tuple)) else [last]  # tokens, rotations ...
    begin, end = tensors(model, inputs), keras.Model(inputs, model.output)

    def run(x: Tensor) -> Tensor:
        with no_gradient():
            features, *others = begin(x)
        return end([watched("map", features), *others], training=False)

    return run


def _patches(model, values):
    """Tokens or a feature map as a map of the patches: `-> (B, rows, columns, D)`."""
    if values.ndim == 4:
        return values
    patches = values[:, model.backbone.num_prefix_tokens :]
    return patches.reshape(len(values), *grid_of(model), -1)


# --- By the input ---


def _by_input(model, images, classes, positions) -> np.ndarray:
    """The input times the mean of the gradients at these parts of the way to it, from 0."""
    model, ids, single = asked(model, images, classes)
    maps = []
    for x, chosen in zip(preprocessed(model, images, STEP), in_steps(ids), strict=True):
        x = ops.convert_to_numpy(x)
        total: Any = 0.0
        for start in range(0, len(positions), PARTS):
            part = np.asarray(positions[start : start + PARTS], "float32")
            way = np.concatenate([x * position for position in part])
            found = gradients(
                functools.partial(_whole, model, ops.convert_to_tensor(way)),
                {"input"},
                np.tile(chosen, (len(part), 1)),
            )
            by = np.stack([by[0] for by in found.by], axis=1)
            total = total + by.reshape(len(part), len(x), *by.shape[1:]).sum(axis=0)
        maps.append((x[:, None] * total / len(positions)).sum(axis=-1))
    return result(maps, single)


def _whole(model, x):
    return model(watched("input", x), training=False)

"""Analyses of the ViT paper and others: what blocks, heads, positions and filters do."""

import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_vit.explain.maps import attention_maps, chosen_blocks, classifier, features, grid_of
from keras_vit.layers.block import Block
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Images


def attention_distance(
    model: keras.Model, images: Images, blocks: int | Sequence[int] | None = None
) -> list[np.ndarray]:
    """The mean attention distance of each head, in pixels of the model's input.

    The distance between a query patch and each other patch, weighted by the attention, averaged
    over the queries and the images: figures 7 (right) and 11 of https://arxiv.org/abs/2010.11929.
    Prefix tokens are left out, and rows are scaled to a sum of 1 without them.

    Args:
        model, images, blocks: as in `attention_maps`.

    Returns:
        For each block an array `(heads,)` float32.
    """
    model = classifier(model)
    maps = attention_maps(model, images, blocks, lazy=True)
    chosen = chosen_blocks(model, blocks)
    return [block_distances(model, block, m) for block, m in zip(chosen, maps, strict=True)]


def block_distances(model: ImageClassifier, block: Block, attention: np.ndarray) -> np.ndarray:
    """The mean attention distance of each head of a block, from its map: `(heads,)`."""
    queries, keys, first = map_grids(model, block, attention.shape)
    size = model.preprocessor.image_converter.image_size
    return distances(attention[:, :, first:, first:], queries, keys, size)


def distances(
    maps: np.ndarray, queries: tuple[int, int], keys: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The mean distance of each head, of a map without prefix tokens: `(B, heads, N, M) ->
    (heads,)`.

    Args:
        maps: the map.
        queries, keys: (rows, columns) of the N queries and the M keys.
        size: (height, width) of the image, in pixels.
    """
    starts, ends = (_centres(grid, size) for grid in (queries, keys))
    length = np.linalg.norm(starts[:, None] - ends[None], axis=-1)
    sums = maps.sum(axis=-1)
    by_query = np.einsum("bhnm,nm->bhn", maps, length) / np.maximum(sums, 1e-9)
    return by_query.mean(axis=(0, 2)).astype("float32")


def _centres(grid, size):
    """The centres of cells of an image, row by row, in pixels: `(cells, 2)`."""
    edges = [(np.arange(n) + 0.5) * s / n for n, s in zip(grid, size, strict=True)]
    return np.stack(np.meshgrid(*edges, indexing="ij"), axis=-1).reshape(-1, 2)


def map_grids(
    model: ImageClassifier, block: Block, shape: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(rows, columns) of the queries and of the keys of a block's map `(B, heads, N, M)`, and how
    many prefix tokens stand before them.

    Raises:
        ValueError: the keys do not lie on a grid.
    """
    rows, columns = grid_of(model)
    x = block.output  # some blocks reduce their input before they attend to it
    if len(x.shape) == 4:
        rows, columns = x.shape[1] or rows, x.shape[2] or columns
    first = shape[2] - rows * columns
    if shape[2] == shape[3]:
        return (rows, columns), (rows, columns), first
    reduction = (shape[2] / shape[3]) ** 0.5
    keys = (max(round(rows / reduction), 1), max(round(columns / reduction), 1))
    if keys[0] * keys[1] != shape[3]:
        side = math.isqrt(shape[3])  # pooled to a square of one size
        keys = (side, shape[3] // side)
    if keys[0] * keys[1] != shape[3]:
        raise ValueError(
            f"The {shape[3]} keys of a block with {rows} x {columns} queries do not lie on a "
            "grid, so they have no distances."
        )
    return (rows, columns), keys, 0


def attention_entropy(maps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The entropy of each head's attention, as a share of its maximum, log M.

    0: each query attends to a single token; 1: to all alike. The mean over queries and images.

    Args:
        maps: the blocks' maps, `(B, heads, N, M)`, from `attention_maps`.

    Returns:
        For each block an array `(heads,)` float32.
    """
    found = []
    for m in maps:
        bits = -(m * np.log(np.maximum(m, 1e-12))).sum(axis=-1) / np.log(max(m.shape[-1], 2))
        found.append(bits.mean(axis=(0, 2)).astype("float32"))
    return found


def head_diversity(maps: Sequence[np.ndarray]) -> np.ndarray:
    """How much the heads of each block differ: 1 minus the mean cosine similarity of their rows.

    The mean over all pairs of heads, queries and images. 0: all heads attend alike.

    Args:
        maps: the blocks' maps, `(B, heads, N, M)`, from `attention_maps`.

    Returns:
        Array `(blocks,)` float32; 0 for a block of a single head.
    """
    found = []
    for m in maps:
        heads = m.shape[1]
        unit = m / np.maximum(np.linalg.norm(m, axis=-1, keepdims=True), 1e-12)
        total = np.square(unit.sum(axis=1)).sum(axis=-1)  # of all pairs, a head with itself too
        pairs = max(heads * (heads - 1), 1)
        found.append(1 - ((total - heads) / pairs).mean() if heads > 1 else 0.0)
    return np.array(found, "float32")


def position_similarity(model: keras.Model) -> np.ndarray:
    """Cosine similarity of each position embedding with all others: figure 7 (centre) of
    https://arxiv.org/abs/2010.11929.

    Returns:
        Array `(rows, columns, rows, columns)` float32, -1 to 1: `[i, j]` is the map of patch
        (i, j).

    Raises:
        ValueError: the model has no learned embedding with one vector per patch.
    """
    table = positions(classifier(model))
    unit = table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-12)
    return np.einsum("ijd,kld->ijkl", unit, unit).astype("float32")


def positions(model: ImageClassifier) -> np.ndarray:
    """The position embeddings of the patches, `(rows, columns, D)`."""
    backbone = model.backbone
    (rows, columns), found = backbone.grid_size, []
    for variable in backbone.variables:
        if variable.path.endswith("pos_embed") and len(variable.shape) == 3:
            table = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))[0]
            if len(table) - rows * columns in (0, backbone.num_prefix_tokens):
                found.append(table[len(table) - rows * columns :].reshape(rows, columns, -1))
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has no learned position embedding with one vector per patch."
        )
    return found[0]


def patch_filters(model: keras.Model, count: int = 28) -> np.ndarray:
    """The first principal components of the patch embedding's filters: figure 7 (left) of
    https://arxiv.org/abs/2010.11929.

    Args:
        model: as in `attention_maps`.
        count: how many; fewer if there are fewer.

    Returns:
        Array `(count, P, P, C)` float32; each component is scaled to 0..1 by itself.

    Raises:
        ValueError: the model does not begin with one projection of patches.
    """
    model = classifier(model)
    layer = model.backbone.first_projection
    if layer is None:
        raise ValueError(f"{type(model).__name__} does not begin with a projection of patches.")
    kernel = keras.ops.convert_to_numpy(keras.ops.cast(layer.kernel, "float32"))
    filters = kernel.reshape(-1, kernel.shape[-1]).T  # (D, P * P * C)
    components = np.linalg.svd(filters - filters.mean(axis=0), full_matrices=False)[2][:count]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(len(components)), largest])[:, None]
    low, high = components.min(axis=1)[:, None], components.max(axis=1)[:, None]
    scaled = (components - low) / np.maximum(high - low, 1e-12)
    return scaled.reshape(-1, *kernel.shape[:3]).astype("float32")


def token_norms(
    model: keras.Model, images: Images, blocks: int | Sequence[int] = -1
) -> list[np.ndarray]:
    """The lengths of the patch tokens after some blocks.

    In large models a few patches of plain background grow ten times as long as others: artefacts
    that register tokens avoid (https://arxiv.org/abs/2309.16588, section 2.1).

    Args:
        model, images: as in `attention_maps`.
        blocks: index of a block, -1 for the last, or a list of them.

    Returns:
        For each block an array `(B, rows, columns)` float32.
    """
    model = classifier(model)
    found, norms = features(model, images, blocks), []
    for x in found.values():
        if x.ndim == 3:
            x = x[:, model.backbone.num_prefix_tokens :]
            x = x.reshape(len(x), *grid_of(model), -1)
        norms.append(np.linalg.norm(x.astype("float32"), axis=-1))
    return norms

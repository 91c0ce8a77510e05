"""Attention maps of any block and head, and intermediate features."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.images import listed
from keras_vit.layers.adaptive import AdaptivePatches
from keras_vit.layers.block import Block
from keras_vit.models.base import PyramidBackbone
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Images, Tensor

STEP = 16  # images at once: the inputs of all blocks are in memory
FUSIONS = ("mean", "max", "min")


def attention_maps(
    model: keras.Model,
    images: Images,
    blocks: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | str | None = None,
    lazy: bool = False,
) -> Sequence[np.ndarray]:
    """The attention weights of every head, computed by the blocks themselves.

    Args:
        model: a classifier of this package, for instance from `from_preset`, or a model that
            contains one.
        images: raw images, as `model.predict` takes them: a path, a PIL image, an array, or a list.
        blocks: index of a block, -1 for the last, or a list of them; all by default.
        heads: index of a head, or a list of them; all by default. `"mean"`, `"max"` or `"min"`:
            what all heads have in common, as one head.
        lazy: keep the inputs of the blocks, which are small, and compute a block's map each time it
            is asked for. For maps that do not fit in memory together.

    Returns:
        A list with an array `(B, heads, N, M)` float32 for each block that has attention; if
        `lazy`, a sequence of them. Row i holds the weights with which token i attends to each key;
        it sums to 1. The N tokens are the prefix tokens (class, distillation, register), then the
        patches row by row, and so are the M keys: M = N. In a hierarchical model N is that of the
        block's stage; where attention is local, the weights outside the window are 0, and a row
        sums to less than 1 if its window reaches over the edge; where it reads a coarser grid, the
        keys are the cells of that grid, row by row.

    Raises:
        ValueError: the model has no attention blocks or no preprocessor; no such block or head; no
            images; the attention weights are NaN.
    """
    model = classifier(model)
    chosen = chosen_blocks(model, blocks)
    if lazy:
        return LazyMaps(model, images, chosen, heads)
    scores, parts = scorer(model, blocks), []
    for x in preprocessed(model, images):
        with no_gradient():
            parts.append([chosen_heads(ops.convert_to_numpy(s), heads) for s in scores(x)])
    return [checked(np.concatenate(block)) for block in zip(*parts, strict=True)]


class LazyMaps(Sequence):
    """The maps of `attention_maps(..., lazy=True)`: each is computed when it is asked for."""

    def __init__(
        self,
        model: ImageClassifier,
        images: Images,
        blocks: Sequence[Block],
        heads: int | Sequence[int] | str | None,
    ):
        self._blocks, self._heads = list(blocks), heads
        inputs = tensors(model, [block.input for block in blocks])
        parts = []
        for x in preprocessed(model, images):
            with no_gradient():
                parts.append(keras.tree.map_structure(ops.convert_to_numpy, inputs(x)))
        self._inputs = parts  # by image batch, then by block; an input may have several arrays

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        block, parts = self._blocks[index], []
        assert block.scores is not None  # chosen_blocks takes no others
        for inputs in self._inputs:
            with no_gradient():
                x = keras.tree.map_structure(ops.convert_to_tensor, inputs[index])
                parts.append(chosen_heads(ops.convert_to_numpy(block.scores(x)), self._heads))
        return checked(np.concatenate(parts))


def scorer(
    model: ImageClassifier, blocks: int | Sequence[int] | None = None
) -> Callable[[Tensor], list[Tensor]]:
    """A function of the model's preprocessed input that returns the maps of `attention_maps` as
    tensors."""
    chosen = chosen_blocks(model, blocks)
    scores = [block.scores for block in chosen if block.scores]  # all of them have it
    inputs = tensors(model, [block.input for block in chosen])
    return lambda x: [function(i) for function, i in zip(scores, inputs(x), strict=True)]


def features(
    model: keras.Model, images: Images, layers: int | str | Sequence[int | str] = -1
) -> dict[str, np.ndarray]:
    """Intermediate features and feature maps, by name.

    Args:
        model, images: as in `attention_maps`.
        layers: names of layers (`"patch_embed"`, `"blocks_3"`, `"norm"`, as `model.summary()` lists
            them), of feature maps (`"P2"`, `"P3"` ... of a model with several scales), indices of
            blocks, or a list of these. By default the output of the last block.

    Returns:
        {name: array}: tokens `(B, N, D)`, feature maps `(B, H, W, C)`, pooled features `(B, D)`.

    Raises:
        ValueError: no such layer (all names are listed); the model has no preprocessor; no images.
    """
    model = classifier(model)
    wanted = [layers] if isinstance(layers, (int, str, np.integer)) else list(layers)
    if not wanted:
        raise ValueError("layers must name at least one layer. Received: []")
    outputs = dict(_named(model, layer) for layer in wanted)
    function, parts = tensors(model, list(outputs.values())), []
    for x in preprocessed(model, images):
        with no_gradient():
            parts.append([ops.convert_to_numpy(t) for t in function(x)])
    arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return dict(zip(outputs, arrays, strict=True))


def _named(model, layer):
    """(name, tensor in the model's graph) of a layer, a feature map or a block's index."""
    backbone = model.backbone
    if not isinstance(layer, str):
        count = len(backbone.blocks)
        if not -count <= layer < count:
            raise ValueError(f"The model has {count} blocks. Received: layers={layer}")
        layer = backbone.blocks[layer].name
    levels = backbone.pyramid_outputs if isinstance(backbone, PyramidBackbone) else {}
    if layer in levels:
        return layer, levels[layer]
    found = {x.name: x for x in itertools.chain(backbone.layers, model.layers)}
    if layer not in found:
        names = ", ".join([*levels, *found])
        raise ValueError(f"The model has no layer {layer!r}. It has: {names}.")
    return layer, found[layer].output


def tensors(model: ImageClassifier, outputs: Sequence[Tensor]) -> Callable[[Tensor], list[Tensor]]:
    """A function of the model's preprocessed input that gives tensors of its graph."""
    structure = list(outputs)
    function = keras.Model(model.input, structure)

    def run(x: Tensor) -> list[Tensor]:  # Keras takes a list of one from around its item
        found = keras.tree.flatten(function(x, training=False))
        return keras.tree.pack_sequence_as(structure, found)

    return run


def classifier(model: keras.Model) -> ImageClassifier:
    """The classifier itself, or the one in a model around it.

    Raises:
        ValueError: there is none, or more than one.
    """
    if isinstance(model, ImageClassifier):
        return model
    inside = []
    if isinstance(model, keras.Model):
        layers = model._flatten_layers(include_self=False)
        inside = [layer for layer in layers if isinstance(layer, ImageClassifier)]
    if len(inside) != 1:
        raise ValueError(
            "An explanation needs a classifier of keras_vit, or a model that contains one. "
            f"Received: {type(model).__name__}" + (f" with {len(inside)} of them" if inside else "")
        )
    return inside[0]


def chosen_blocks(model: ImageClassifier, blocks: int | Sequence[int] | None = None) -> list[Block]:
    """The selected blocks of a model, by their index among those that have attention."""
    every = [block for block in model.backbone.blocks if block.scores]
    if not every:
        raise ValueError(
            "Attention maps need a classifier with attention blocks, such as ViT or DeiT. "
            f"Received: {type(model).__name__}"
        )
    return [every[i] for i in indices(blocks, len(every), "blocks")]


def indices(chosen: int | Sequence[int] | None, count: int, what: str) -> list[int]:
    """The chosen indices as a list; None: all.

    Raises:
        ValueError: there is none, or one is out of range.
    """
    if chosen is None:
        return list(range(count))
    several = [*chosen] if isinstance(chosen, Iterable) else [chosen]
    whole = (int, np.integer)
    wrong = [i for i in several if not isinstance(i, whole) or not -count <= i < count]
    if wrong or not several:
        raise ValueError(
            f"{what} must be indices from {-count} to {count - 1}. Received: {several}"
        )
    return several


def chosen_heads(maps: np.ndarray, heads: int | Sequence[int] | str | None) -> np.ndarray:
    """Heads of a map, or what they have in common: `(B, heads, N, M) -> (B, chosen, N, M)`."""
    if heads is None:
        return maps
    if isinstance(heads, str):
        return fused(maps, heads)[:, None]
    return maps[:, indices(heads, maps.shape[1], "heads")]


def fused(maps: np.ndarray, fusion: str) -> np.ndarray:
    """The mean, maximum or minimum over the heads: `(B, heads, N, M) -> (B, N, M)`.

    Raises:
        ValueError: another word.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"Heads are fused by {', '.join(FUSIONS)}. Received: {fusion!r}")
    return getattr(np, fusion)(maps, axis=1)


def checked(maps: np.ndarray) -> np.ndarray:
    """The maps, if they are numbers."""
    if np.isnan(maps.min(initial=0)):
        raise ValueError(
            "The attention weights are NaN: weights of the model are NaN or infinite, or numbers "
            "are too large for its dtype."
        )
    return maps


def grid_of(model: ImageClassifier, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(rows, columns) of the patches of an image of that size, in pixels; by default of the size
    that the preprocessor gives."""
    backbone = model.backbone
    if adaptive(model):
        raise ValueError(
            "There is no grid of patches: their sizes depend on the picture "
            '(patches="adaptive"). Maps by attention, such as relevance, are laid over it.'
        )
    if backbone.image_size is not None or (size is None and model.preprocessor is None):
        return backbone.grid_size
    size = size or model.preprocessor.image_converter.image_size
    return backbone.grid({**backbone.options, "image_size": tuple(size)})


def adaptive(model: ImageClassifier) -> AdaptivePatches | None:
    """The layer that cuts pictures into patches of several sizes, if there is one."""
    layers = model.backbone._flatten_layers(include_self=False)
    return next((layer for layer in layers if isinstance(layer, AdaptivePatches)), None)


def preprocessed(model: ImageClassifier, images: Images, step: int = STEP) -> Iterator[Tensor]:
    """Batches of the model's input, from raw images."""
    preprocessor = model.preprocessor
    if preprocessor is None:
        raise ValueError("The model has no preprocessor, so it cannot take raw images.")
    several = listed(images)
    for start in range(0, len(several), step):
        yield preprocessor(several[start : start + step])


def no_gradient() -> contextlib.AbstractContextManager:
    """On the torch backend `torch.no_grad()`, else a context that does nothing."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()

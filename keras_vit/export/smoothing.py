"""Outlier channels of activations moved into the weights that read them: SmoothQuant,
https://arxiv.org/abs/2211.10438.

One scale for all channels of a tensor wastes int8 on the few that are large. Dividing each channel
by a factor, and multiplying the weights that read it, gives the same products of numbers that fit
better. The division is one multiplication in the graph, of a tensor that norms and activations have
made, so it costs little.
"""

import copy
from typing import Any

import numpy as np

from keras_vit.export import graph, model_file
from keras_vit.export.products import Product

STRENGTHS = (0.5, 0.75)  # alpha of the paper's equation 4: 1 would move all into the weights
SUFFIX = "/smooth"  # of the name of a divided tensor
LARGEST = 1e3  # of factors, of which the geometric mean is 1


def factors(readers: list[Product], strength: float) -> np.ndarray:
    """What the channels of a tensor are divided by, `(I,)`, for the dense layers that read it."""
    (low, high), _ = readers[0].measured
    inputs = np.maximum(np.abs(low), np.abs(high)).astype("float64")
    weights = np.max([np.abs(product.weights).max(0) for product in readers], axis=0)
    known = (inputs > 0) & (weights > 0)
    found = np.ones_like(inputs)
    found[known] = inputs[known] ** strength / weights[known] ** (1 - strength)
    found[known] /= np.exp(np.log(found[known]).mean()) if known.any() else 1
    return np.clip(found, 1 / LARGEST, LARGEST).astype("float32")


def smoothed(product: Product, by: np.ndarray) -> Product:
    """The dense layer after its inputs were divided by these factors."""
    new = copy.copy(product)
    new.source = f"{product.source}{SUFFIX}"
    new.weights, new.inputs = product.weights * by, product.inputs / by
    sides = ((low / by, high / by) for (low, high), _ in (product.measured, product.whole))
    new.measured, new.whole = (
        (inputs, outputs)
        for inputs, (_, outputs) in zip(sides, (product.measured, product.whole), strict=True)
    )
    return new


def insert(content: bytes, chosen: dict[str, np.ndarray]) -> bytes:
    """Write the divisions into a file, and the factors into the weights.

    Args:
        content: the bytes of a float32 file whose tensors have different names.
        chosen: {name of a tensor for which `divisible` holds: its factors}.
    """
    model = model_file.unpacked(content)
    names = {tensor.name.decode(): i for i, tensor in enumerate(model.subgraphs[0].tensors)}
    for name, by in chosen.items():
        source = names[name]
        readers = graph.readers(model, source)
        target = graph.insert_multiplication(model, source, 1 / by, f"{name}{SUFFIX}")
        for op in readers:
            op.inputs = np.where(op.inputs == source, target, op.inputs).astype("int32")
            graph.set_constant(model, op, 1, graph.constant(model, op.inputs[1]) * by)
    return model_file.packed(model, len(content))


def divisible(model: Any) -> set[str]:
    """Names of the tensors that dense layers with constant weights read, and nothing else does."""
    found = set()
    for source, tensor in enumerate(model.subgraphs[0].tensors):
        readers = graph.readers(model, source)
        dense = [
            op
            for op in readers
            if graph.name_of(model, op) == "FULLY_CONNECTED"
            and op.inputs[0] == source
            and graph.constant(model, op.inputs[1]) is not None
        ]
        if dense and len(dense) == len(readers) and source not in model.subgraphs[0].outputs:
            found.add(tensor.name.decode())
    return found

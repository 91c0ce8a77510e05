"""Layouts of the weights over several devices, for `keras.distribution` on JAX."""

import re
from typing import Any

import keras

ROWS = ("proj", "fc2")  # they read what a layer before them has split


def layout_map(model: keras.Model, mesh: Any, axis: str = "model") -> Any:
    """How `keras.distribution.ModelParallel` divides the weights of a model, of any family.

    Megatron's division (https://arxiv.org/abs/1909.08053, section 3): the outputs of the first
    dense layer of a pair are split (qkv, fc1), and the inputs of the second (proj, fc2);
    convolutions and the head by their outputs. A kernel whose width the axis does not divide, and
    all vectors but the biases of split outputs, are copied to each device.

    Args:
        model: a model with the structure of the one to train: it is read, not changed. The model
            itself must be made after `keras.distribution.set_distribution`.
        mesh: a `keras.distribution.DeviceMesh`.
        axis: the name of its axis for the weights.

    Returns:
        A `keras.distribution.LayoutMap`.

    Raises:
        ValueError: the mesh has no such axis.
    """
    if axis not in mesh.axis_names:
        raise ValueError(
            f"The mesh has no axis {axis!r}. It has: {', '.join(map(str, mesh.axis_names))}"
        )
    parts = mesh.shape[list(mesh.axis_names).index(axis)]
    layouts = keras.distribution.LayoutMap(mesh)
    for variable in model.weights:
        layer, _, name = variable.path.rpartition("/")
        if not name.endswith("kernel") or len(variable.shape) < 2:
            continue
        rank = len(variable.shape)
        rows = rank == 2 and layer.rpartition("/")[2] in ROWS
        place = 0 if rows else rank - 1
        if variable.shape[place] % parts:
            continue
        layout: list[str | None] = [None] * rank
        layout[place] = axis
        layouts[f"^{re.escape(variable.path)}$"] = tuple(layout)
        if not rows:
            layouts[f"^{re.escape(layer)}/bias$"] = (axis,)
    return layouts

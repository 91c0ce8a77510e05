"""Gradient checkpointing: memory for time (https://arxiv.org/abs/1604.06174)."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_vit.models.base import Backbone

CHECKPOINTED: Any = weakref.WeakSet()  # blocks
SAVES = ("tensorflow", "torch")  # by benchmarks/checkpointing.py; XLA needs as much on a CPU


def checkpoint_gradients(model: keras.Model) -> None:
    """Have a model's blocks computed again in the backward pass, in place of keeping what they
    compute in the forward pass: less memory, about a third more time, equal gradients, also with
    dropout.

    It is a matter of the running program, not of the model: saved files do not have it. Call it
    before `fit`.

    Args:
        model: a model of this package with blocks, or a backbone.

    Raises:
        ValueError: the model has no blocks.
        RuntimeError: on JAX, where it has not been shown to save memory.
    """
    backend = keras.backend.backend()
    if backend not in SAVES:
        raise RuntimeError(
            f"Gradient checkpointing has not been shown to save memory on the backend {backend!r}. "
            f"Set KERAS_BACKEND={' or '.join(SAVES)}, or take smaller batches and "
            "train.optimizer(accumulation=)."
        )
    backbone: Any = model if isinstance(model, Backbone) else getattr(model, "backbone", None)
    blocks = getattr(backbone, "blocks", ())
    if not blocks:
        raise ValueError(
            f"Gradient checkpointing needs a model with blocks. Received: {type(model).__name__}"
        )
    for block in blocks:
        if block not in CHECKPOINTED:
            block.call = recomputed(block)
            CHECKPOINTED.add(block)


def recomputed(block: keras.layers.Layer) -> Callable[..., Any]:
    """The function `call` of a block, with its inner values computed again for gradients.

    Its weights are inputs of what is computed twice, and its random states are outputs: both times
    dropout draws the same numbers, and JAX sees no side effect.
    """
    call = block.call

    @functools.wraps(call)
    def wrapped(x: Any, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if not training:
            return call(x, *args, training=training, **kwargs)
        weights, changing = block.trainable_variables, block.non_trainable_variables
        before = [ops.copy(v.value) for v in changing]  # a copy: torch assigns in place

        def pure(x, values):
            state = zip([*weights, *changing], [*values, *before], strict=True)
            with keras.StatelessScope(state_mapping=[*state]) as scope:
                y = call(x, *args, training=True, **kwargs)
            return y, [scope.get_current_value(v) for v in changing]

        y, after = keras.remat(pure)(x, [v.value for v in weights])
        for variable, value in zip(changing, after, strict=True):
            variable.assign(value)
        return y

    return wrapped

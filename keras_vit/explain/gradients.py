"""Gradients of logits by values inside the model, on TensorFlow, JAX and torch."""

import dataclasses
from collections.abc import Callable, Collection

import keras
import numpy as np
from keras import ops

from keras_vit.layers.watch import watching
from keras_vit.types import Tensor

Run = Callable[[], Tensor]  # gives logits (B, C); on its way it passes values to `watched`


@dataclasses.dataclass(frozen=True)
class Gradients:
    """What was watched, in order, and the gradients by it.

    Attributes:
        logits: `(B, C)`.
        values: arrays; the first axis is the batch, or its windows.
        by: `by[k][i]` is the gradient of the logit of each image's k-th class by value i.
    """

    logits: np.ndarray
    values: list[np.ndarray]
    by: list[list[np.ndarray]]


def gradients(run: Run, kinds: Collection[str], classes: np.ndarray) -> Gradients:
    """Run a model and differentiate some of its logits.

    Args:
        run: the model, applied to its input.
        kinds: which of the watched values count, see `layers.watch.watching`.
        classes: `(B, K)` int: classes of each image.

    Raises:
        NotImplementedError: Keras' backend has no gradients.
    """
    backends = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
    backend = keras.backend.backend()
    if backend not in backends:
        raise NotImplementedError(f"The {backend} backend of Keras has no gradients.")
    logits, values, by = backends[backend](run, kinds, classes)
    return Gradients(
        _array(logits), [_array(v) for v in values], [[_array(g) for g in k] for k in by]
    )


def _array(x):
    return ops.convert_to_numpy(ops.cast(x, "float32"))


def _tensorflow(run, kinds, classes):
    import tensorflow as tf

    values = []
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:

        def watcher(kind, x):
            if kind in kinds:
                tape.watch(x)
                values.append(x)
            return x

        with watching(watcher):
            logits = run()
        chosen = [tf.gather(logits, column, axis=1, batch_dims=1) for column in classes.T]
    return logits, values, [tape.gradient(y, values, unconnected_gradients="zero") for y in chosen]


def _torch(run, kinds, classes):
    import torch

    values = []

    def watcher(kind, x):
        if kind in kinds:
            x = x if x.requires_grad else x.detach().requires_grad_()
            values.append(x)
        return x

    with torch.enable_grad(), watching(watcher):
        logits = run()
    by = []
    for column in classes.T:
        index = torch.as_tensor(column, device=logits.device)[:, None]
        total = torch.take_along_dim(logits, index, dim=1).sum()
        found = torch.autograd.grad(total, values, retain_graph=True, allow_unused=True)
        pairs = zip(found, values, strict=True)
        by.append([torch.zeros_like(x) if g is None else g for g, x in pairs])
    return logits, values, by


def _jax(run, kinds, classes):
    import jax
    import jax.numpy as jnp

    def watch(deltas):  # JAX differentiates by arguments: zeros, added to the values
        values = []

        def watcher(kind, x):
            if kind in kinds:
                x = x if deltas is None else x + deltas[len(values)]
                values.append(x)
            return x

        with watching(watcher):
            logits = run()
        return logits, values

    _, shapes = jax.eval_shape(lambda: watch(None))
    zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    logits, pull, values = jax.vjp(watch, zeros, has_aux=True)
    ones = [jax.nn.one_hot(column, logits.shape[1], dtype=logits.dtype) for column in classes.T]
    return logits, values, [pull(one)[0] for one in ones]

"""The norms over the last axis: Keras' own, and what is left of them in a frozen graph."""

import keras
from keras import ops

from keras_vit.layers import frozen
from keras_vit.layers.base import register


def normalization(norm="layer", **kwargs):
    """A norm over the last axis: `"layer"` (LayerNorm) or `"rms"` (RMSNorm, https://arxiv.org/abs/1910.07467)."""
    norms = {"layer": LayerNormalization, "rms": RMSNormalization}
    if norm not in norms:
        raise ValueError(f"norm must be one of {', '.join(norms)}. Received: {norm!r}")
    return norms[norm](**kwargs)


@register
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras' LayerNormalization, on TensorFlow in as few operations as its place allows: torch has
    a kernel for it and XLA makes one, TensorFlow runs each operation over all tokens."""

    def call(self, x):
        if keras.backend.backend() != "tensorflow":
            return super().call(x)
        known = frozen.current() or frozen.Frozen()
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        if self not in known.centred:
            x = x - ops.mean(x, axis=-1, keepdims=True)
        x = unit(x, self.epsilon)
        if self not in known.folded:
            x = x * ops.cast(self.gamma, x.dtype) + ops.cast(self.beta, x.dtype)
        if self in known.recentred:
            x = x - ops.mean(x, axis=-1, keepdims=True)
        return ops.cast(x, self.compute_dtype)


@register
class RMSNormalization(keras.layers.RMSNormalization):
    """Keras' RMSNormalization; in a frozen graph without a gain that was folded away."""

    def call(self, x):
        if frozen.current() is None:
            return super().call(x)
        x = unit(x, self.epsilon)
        return x if frozen.is_folded(self) else x * self.scale


def unit(x, epsilon):
    """x over its root mean square along the last axis."""
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + epsilon)

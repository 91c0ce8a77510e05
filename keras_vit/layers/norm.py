"""LayerNorm, RMSNorm and BatchNorm: Keras' layers, with fewer operations on TensorFlow."""

from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import KeepsFrozen, Norm, register
from keras_vit.types import Tensor


def normalization(norm: str = "layer", **kwargs: Any) -> keras.layers.Layer:
    """Make a norm over the last axis.

    Args:
        norm: `"layer"` (LayerNorm, https://arxiv.org/abs/1607.06450), `"rms"` (RMSNorm,
            https://arxiv.org/abs/1910.07467) or `"batch"` (BatchNorm, over all other axes:
            https://arxiv.org/abs/1502.03167).
        **kwargs: arguments of the Keras layer.

    Raises:
        ValueError: if `norm` is unknown.
    """
    norms = {
        "layer": LayerNormalization,
        "rms": RMSNormalization,
        "batch": BatchNormalization,
    }
    if norm not in norms:
        raise ValueError(f"norm must be one of {', '.join(norms)}. Received: {norm!r}")
    return norms[norm](**kwargs)


@register
class LayerNormalization(KeepsFrozen, keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` with fewer operations on TensorFlow: `(..., D) -> (...,
    D)`.

    PyTorch has a fused kernel and XLA generates one. TensorFlow runs one operation after the other
    over all tokens, so the number of operations counts.
    """

    # Whether the input and the output have mean 0; export/fold.py sets these in exported copies.
    has_mean_0 = False
    gives_mean_0 = False

    def read_by(self, *readers: keras.layers.Layer) -> Norm:
        """This norm's gain and bias, to be folded into the dense layers, its only readers."""
        return Norm(self.gamma, self.beta, readers)

    def call(self, x: Tensor) -> Tensor:
        if keras.backend.backend() != "tensorflow":
            return super().call(x)
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        if not self.has_mean_0:
            x = centred(x)
        x = unit(x, self.epsilon) * ops.cast(self.gamma, x.dtype) + ops.cast(self.beta, x.dtype)
        return ops.cast(centred(x) if self.gives_mean_0 else x, self.compute_dtype)


@register
class RMSNormalization(KeepsFrozen, keras.layers.RMSNormalization):
    """`keras.layers.RMSNormalization` with fewer operations on TensorFlow: `(..., D) -> (...,
    D)`."""

    def read_by(self, *readers: keras.layers.Layer) -> Norm:
        """This norm's gain and bias, to be folded into the dense layers, its only readers."""
        return Norm(self.scale, None, readers)

    def call(self, x: Tensor) -> Tensor:
        if keras.backend.backend() != "tensorflow":
            return super().call(x)
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        x = unit(x, self.epsilon) * ops.cast(self.scale, x.dtype)
        return ops.cast(x, self.compute_dtype)


@register
class BatchNormalization(KeepsFrozen, keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with the moving averages of PyTorch: `(..., D) -> (...,
    D)`.

    Args:
        epsilon: added to the variance.
        momentum: part of a moving average that a training step keeps.
    """

    def __init__(self, epsilon: float = 1e-5, momentum: float = 0.9, **kwargs: Any):
        super().__init__(epsilon=epsilon, momentum=momentum, **kwargs)

    def affine(self) -> tuple[Tensor, Tensor]:
        """What the layer is in inference: the factor and the summand of each channel, float32."""
        gain = self.gamma * ops.rsqrt(self.moving_variance + self.epsilon)
        return gain, self.beta - self.moving_mean * gain


def centred(x: Tensor) -> Tensor:
    """Subtract the mean over the last axis."""
    return x - ops.mean(x, axis=-1, keepdims=True)


def unit(x: Tensor, epsilon: float) -> Tensor:
    """Divide by the root mean square over the last axis."""
    return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + epsilon)

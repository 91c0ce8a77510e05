"""Plain and gated MLPs (feed-forward networks) and their activations."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import Layer, Norm, initial, register
from keras_vit.layers.lora import Dense
from keras_vit.layers.norm import normalization
from keras_vit.types import Shape, Tensor

ACTIVATIONS = {
    "gelu": keras.activations.gelu,  # exact, with erf
    "gelu_tanh": lambda x: keras.activations.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),  # OpenAI's CLIP
    "silu": keras.activations.silu,
    "relu": keras.activations.relu,
}


GATES = ("packed", "packed_last", "split")


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Look up an activation function by its name.

    Raises:
        ValueError: if the name is not one of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}. Received: {name!r}")
    return ACTIVATIONS[name]


def as_matrix(function: Callable, x: Tensor, **options: Any) -> Tensor:
    """Apply a function of the last axis to x reshaped to a matrix: `(..., D) -> (..., K)`.

    TensorFlow fuses a matmul with its bias for matrices only. On other backends x keeps its shape.
    """
    if keras.backend.backend() != "tensorflow" or len(x.shape) == 2:
        return function(x, **options)
    outer = [known or size for known, size in zip(x.shape[1:-1], ops.shape(x)[1:-1], strict=True)]
    x = function(ops.reshape(x, (-1, x.shape[-1])), **options)
    return ops.reshape(x, (-1, *outer, x.shape[-1]))


@register
class Mlp(Layer):
    """MLP of two dense layers, plain or gated: `(..., D) -> (..., D)`.

    Args:
        ratio: hidden width divided by D; int(D * ratio) is the width of `fc1`. With a packed gate
            that includes both gate and value, as in timm.
        activation: `"gelu"` (exact), `"gelu_tanh"`, `"quick_gelu"`, `"silu"` or `"relu"`.
        gate: None for a plain MLP, `fc2(act(fc1(x)))`; otherwise a gated one, `fc2(act(gate) *
            value)` (GLU variants, https://arxiv.org/abs/2002.05202):

            - `"packed"`: one layer `fc1` for gate and value, in this order (DINOv2 giant);
            - `"packed_last"`: one layer `fc1` for value and gate, in this order (gMixer);
            - `"split"`: two layers, `fc1_g` for the gate and `fc1_x` for the value (AIMv2).
        inner_norm: LayerNorm before `fc2` (BEiT-3).
        norm_eps: epsilon of that LayerNorm.
        use_bias: whether the dense layers have biases.
        drop_rate: dropout rate after the activation and after `fc2`.

    Raises:
        ValueError: if `activation` or `gate` is unknown.
    """

    def __init__(
        self,
        ratio: float = 4.0,
        activation: str = "gelu",
        gate: str | None = None,
        inner_norm: bool = False,
        norm_eps: float = 1e-6,
        use_bias: bool = True,
        drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if gate not in (None, *GATES):
            raise ValueError(f"gate must be None or one of {', '.join(GATES)}. Received: {gate!r}")
        self.ratio = ratio
        self.activation = activation
        self.gate = gate
        self.inner_norm = inner_norm
        self.norm_eps = norm_eps
        self.use_bias = use_bias
        self.drop_rate = drop_rate

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        fc1 = int(width * self.ratio)
        hidden = fc1 // 2 if self.gate in ("packed", "packed_last") else fc1
        inside = (*input_shape[:-1], hidden)
        self.act = activation(self.activation)
        for name in self.first:
            setattr(self, name, self.dense(name, fc1, input_shape))
        self.norm = None
        if self.inner_norm:
            self.norm = self.child(normalization, inside, epsilon=self.norm_eps, name="norm")
        self.fc2 = self.dense("fc2", width, inside)
        self.drop = self.child(keras.layers.Dropout, rate=self.drop_rate, name="drop")

    @property
    def first(self) -> tuple[str, ...]:
        """The names of the dense layers that read the input."""
        return ("fc1_g", "fc1_x") if self.gate == "split" else ("fc1",)

    @property
    def readers(self) -> list[keras.layers.Dense]:
        """The dense layers that read the input; nothing else does."""
        return [getattr(self, name) for name in self.first]

    def dense(self, name: str, units: int, input_shape: Shape) -> keras.layers.Dense:
        """Make a dense layer."""
        return self.child(
            Dense,
            input_shape,
            units=units,
            use_bias=self.use_bias,
            kernel_initializer=initial(),
            name=name,
        )

    def links(self) -> Iterable[Norm]:
        if self.norm is not None:
            yield self.norm.read_by(self.fc2)

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden layer after activation and gate: `(..., D) -> (..., hidden)`."""
        if self.gate == "split":
            return self.act(self.fc1_g(x)) * self.fc1_x(x)
        if self.gate == "packed":
            gate, value = ops.split(self.fc1(x), 2, axis=-1)
            return self.act(gate) * value
        if self.gate == "packed_last":
            value, gate = ops.split(self.fc1(x), 2, axis=-1)
            return value * self.act(gate)
        return self.act(self.fc1(x))

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        return as_matrix(self.both, x, training=training)

    def both(self, x: Tensor, training: bool | None = None) -> Tensor:
        """Both layers, without the reshape of `as_matrix`. (Not `forward`, which torch calls.)"""
        x = self.drop(self.hidden(x), training=training)
        x = self.fc2(x if self.norm is None else self.norm(x))
        return self.drop(x, training=training)

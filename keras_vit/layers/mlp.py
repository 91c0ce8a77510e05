"""The feed-forward half of a block: activations and the plain and gated MLPs."""

import keras
from keras import ops

from keras_vit.layers import frozen
from keras_vit.layers.base import Layer, initial, register
from keras_vit.layers.norm import normalization

ACTIVATIONS = {
    "gelu": keras.activations.gelu,  # the exact one, by erf
    "gelu_tanh": lambda x: keras.activations.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),  # OpenAI's CLIP
    "silu": keras.activations.silu,
    "relu": keras.activations.relu,
}


GATES = ("packed", "packed_last", "split")


def activation(name):
    """The activation of that name, one of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}. Received: {name!r}")
    return ACTIVATIONS[name]


def as_matrix(function, x, **options):
    """function(x) of a function over the last axis, `(..., D) -> (..., K)`.

    Of matrices TensorFlow fuses a product with its bias, of larger tensors it does not.
    """
    if keras.backend.backend() != "tensorflow" or frozen.current() or len(x.shape) == 2:
        return function(x, **options)
    outer = [known or size for known, size in zip(x.shape[1:-1], ops.shape(x)[1:-1], strict=True)]
    x = function(ops.reshape(x, (-1, x.shape[-1])), **options)
    return ops.reshape(x, (-1, *outer, x.shape[-1]))


@register
class Mlp(Layer):
    """Two dense layers over the last axis: `(..., D) -> (..., D)`.

    Args:
        ratio: hidden width = int(D * ratio).
        activation: one of `"gelu"` (exact), `"gelu_tanh"`, `"quick_gelu"`, `"silu"`, `"relu"`.
        gate: None: `fc2(act(fc1(x)))`. `"packed"`: fc1 gives gate and value, `fc2(act(gate) *
            value)` (DINOv2 giant). `"split"`: the same with two layers `fc1_g`, `fc1_x` (SwiGLU,
                https://arxiv.org/abs/2002.05202; AIMv2).
        inner_norm: LayerNorm between activation and fc2 (BEiT-3).
        norm_eps: epsilon of that norm.
        use_bias: whether the dense layers have biases.
        drop_rate: dropout after the activation and after fc2, in training only.

    With `gate="packed"`, int(D * ratio) is the width of fc1, gate and value together, as timm
    counts it.
    """

    def __init__(
        self,
        ratio=4.0,
        activation="gelu",
        gate=None,
        inner_norm=False,
        norm_eps=1e-6,
        use_bias=True,
        drop_rate=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if gate not in (None, *GATES):
            raise ValueError(f"gate must be None, {', '.join(GATES)}. Received: {gate!r}")
        self.ratio = ratio
        self.activation = activation
        self.gate = gate
        self.inner_norm = inner_norm
        self.norm_eps = norm_eps
        self.use_bias = use_bias
        self.drop_rate = drop_rate

    def build(self, input_shape):
        width = input_shape[-1]
        fc1 = int(width * self.ratio)
        hidden = fc1 // 2 if self.gate in ("packed", "packed_last") else fc1
        self.act = activation(self.activation)
        for name in ("fc1_g", "fc1_x") if self.gate == "split" else ("fc1",):
            setattr(self, name, self.dense(name, fc1, input_shape))
        self.norm = None
        if self.inner_norm:
            self.norm = self.child(normalization, epsilon=self.norm_eps, name="norm")
            self.norm.build((*input_shape[:-1], hidden))
        self.fc2 = self.dense("fc2", width, (*input_shape[:-1], hidden))
        self.drop = self.child(keras.layers.Dropout, rate=self.drop_rate, name="drop")

    def dense(self, name, units, input_shape):
        layer = self.child(
            keras.layers.Dense,
            units=units,
            use_bias=self.use_bias,
            kernel_initializer=initial(),
            name=name,
        )
        layer.build(input_shape)
        return layer

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def hidden(self, x):
        """The activated hidden layer: (..., D) -> (..., hidden)"""
        if self.gate == "split":
            return self.act(self.fc1_g(x)) * self.fc1_x(x)
        if self.gate == "packed":
            gate, value = ops.split(self.fc1(x), 2, axis=-1)
            return self.act(gate) * value
        if self.gate == "packed_last":
            value, gate = ops.split(self.fc1(x), 2, axis=-1)
            return value * self.act(gate)
        return self.act(self.fc1(x))

    def call(self, x, training=None):
        return as_matrix(self.forward, x, training=training)

    def forward(self, x, training=None):
        x = self.drop(self.hidden(x), training=training)
        x = self.fc2(x if self.norm is None else self.norm(x))
        return self.drop(x, training=training)

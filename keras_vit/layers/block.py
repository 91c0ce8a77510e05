"""The transformer block and its two small helpers."""

import keras
from keras import ops

from keras_vit.layers import frozen
from keras_vit.layers.attention import Attention
from keras_vit.layers.base import Layer, register
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.norm import normalization


@register
class LayerScale(Layer):
    """Multiplies each channel by a learned number: `(..., D) -> (..., D)` (https://arxiv.org/abs/2103.17239).

    Args:
        init_values: the initial value of all D factors, for instance 1e-5.
    """

    def __init__(self, init_values=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.init_values = init_values

    def build(self, input_shape):
        # Not named `gamma`: that leaf means a norm's weight (weights.py).
        self.layer_scale = self.add_weight(
            shape=input_shape[-1:],
            initializer=keras.initializers.Constant(self.init_values),
            name="layer_scale",
        )

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x):
        return x if frozen.is_folded(self) else x * self.layer_scale


@register
class DropPath(Layer):
    """Stochastic depth (https://arxiv.org/abs/1603.09382): `(B, ...) -> (B, ...)`.

    In training a sample's branch is zero with probability `rate`, else divided by `1 - rate`.

    Args:
        rate: float, 0 <= rate < 1.
        seed: int or None.
    """

    def __init__(self, rate=0.0, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must lie in [0, 1). Received: {rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate else None
        self.built = True

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x, training=None):
        if not training or not self.rate:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        kept = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) >= self.rate
        return x * ops.cast(ops.cast(kept, "float32") / (1.0 - self.rate), x.dtype)


@register
class TransformerBlock(Layer):
    """A pre-norm transformer block: `(B, N, D) -> (B, N, D)` (figure 1 of https://arxiv.org/abs/2010.11929).

    Args:
        num_heads: attention heads; must divide D.
        mlp_ratio: hidden width of the MLP over D.
        qkv_bias, proj_bias: biases of query, key and value; of all other dense layers of the block.
        init_values: initial LayerScale, or None for no LayerScale.
        activation, gate: of the MLP, see `Mlp`.
        norm: `"layer"` or `"rms"`.
        norm_eps: epsilon of the norms.
        inner_norm: norms inside attention and MLP (BEiT-3).
        drop_rate, attn_drop_rate: dropout in the MLP and of attention scores, in training only.
        drop_path: probability that a sample skips the block's branches, in training only.

    `call(x, queries=n)` computes only the first n tokens of the output, `(B, n, D)`, which is all
    that a head on the class token reads from the last block.
    """

    def __init__(
        self,
        num_heads,
        mlp_ratio=4.0,
        qkv_bias=True,
        proj_bias=True,
        init_values=None,
        activation="gelu",
        gate=None,
        norm="layer",
        norm_eps=1e-6,
        inner_norm=False,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.qkv_bias = qkv_bias
        self.proj_bias = proj_bias
        self.init_values = init_values
        self.activation = activation
        self.gate = gate
        self.norm = norm
        self.norm_eps = norm_eps
        self.inner_norm = inner_norm
        self.drop_rate = drop_rate
        self.attn_drop_rate = attn_drop_rate
        self.drop_path = drop_path

    def build(self, input_shape):
        inner = {"inner_norm": self.inner_norm, "norm_eps": self.norm_eps}
        norm = {"norm": self.norm, "epsilon": self.norm_eps}
        self.norm1 = self.child(normalization, name="norm1", **norm)
        self.attn = self.child(
            Attention,
            num_heads=self.num_heads,
            qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias,
            drop_rate=self.attn_drop_rate,
            name="attn",
            **inner,
        )
        self.ls1 = self.layer_scale("ls1")
        self.norm2 = self.child(normalization, name="norm2", **norm)
        self.mlp = self.child(
            Mlp,
            ratio=self.mlp_ratio,
            activation=self.activation,
            gate=self.gate,
            use_bias=self.proj_bias,
            drop_rate=self.drop_rate,
            name="mlp",
            **inner,
        )
        self.ls2 = self.layer_scale("ls2")
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")
        for layer in (self.norm1, self.attn, self.ls1, self.norm2, self.mlp, self.ls2):
            layer.build(input_shape)

    def layer_scale(self, name):
        if self.init_values is None:
            return self.child(keras.layers.Identity, name=name)
        return self.child(LayerScale, init_values=self.init_values, name=name)

    def compute_output_spec(self, x, queries=None, training=None):
        return keras.KerasTensor(
            (x.shape[0], queries or x.shape[1], x.shape[2]), self.compute_dtype
        )

    def scores(self, x):
        """The block's attention map for its input x: `(B, N, D) -> (B, heads, N, N)`, float32."""
        return self.attn.scores(self.norm1(x))

    def call(self, x, queries=None, training=None):
        rest = x if queries is None else x[:, :queries]
        x = rest + self.skip(
            self.ls1(self.attn(self.norm1(x), queries=queries, training=training)),
            training=training,
        )
        x = x + self.skip(self.ls2(self.mlp(self.norm2(x), training=training)), training=training)
        return x

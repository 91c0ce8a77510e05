"""Multi-head self-attention (equation 2 of https://arxiv.org/abs/1706.03762), and attention as a
pool."""

import math

import keras
from keras import ops

from keras_vit.layers import frozen
from keras_vit.layers.base import Layer, initial, register
from keras_vit.layers.mlp import Mlp, as_matrix
from keras_vit.layers.norm import normalization


def split_heads(x, heads):
    """(B, N, D) -> (B, heads, N, D / heads)"""
    size = x.shape[-1] // heads
    return ops.transpose(ops.reshape(x, (-1, tokens(x), heads, size)), (0, 2, 1, 3))


def merge_heads(x):
    """(B, heads, N, d) -> (B, N, heads * d)"""
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (-1, tokens(x), x.shape[2] * x.shape[3]))


def tokens(x):
    """The length of axis 1, a number where it is known: a static shape exports to fewer ops."""
    return x.shape[1] if x.shape[1] is not None else ops.shape(x)[1]


def softmax_scores(q, k, scaled=False):
    """softmax(q k^T / sqrt(d)): (B, H, Q, d), (B, H, N, d) -> (B, H, Q, N); the softmax is taken
    in float32. `scaled`: q is divided by sqrt(d) already."""
    q = q if scaled else q * (1.0 / math.sqrt(q.shape[-1]))
    scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))
    return ops.softmax(ops.cast(scores, "float32"), axis=-1)


def attend(q, k, v, scaled=False):
    """Attention of q `(B, H, Q, d)` over k and v `(B, H, N, d)` -> (B, H, Q, d), by the backend's
    fast path; `scaled` (TensorFlow only) as in `softmax_scores`."""
    if keras.backend.backend() == "tensorflow":  # has no fused kernel; the plain product is faster
        return ops.matmul(ops.cast(softmax_scores(q, k, scaled), v.dtype), v)
    q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))
    return ops.transpose(ops.dot_product_attention(q, k, v), (0, 2, 1, 3))


@register
class Attention(Layer):
    """Multi-head self-attention with packed query, key and value: `(B, N, D) -> (B, N, D)`.

    Args:
        num_heads: number of heads; must divide D.
        qkv_bias: whether the projection to query, key and value has a bias.
        proj_bias: whether the output projection has one.
        inner_norm: normalise the attended values before the output projection (BEiT-3,
            https://arxiv.org/abs/2208.10442).
        norm_eps: epsilon of that norm.
        drop_rate: dropout on the attention scores, in training only.

    `call(x, queries=n)` computes the first n output tokens only: `(B, N, D) -> (B, n, D)`.

    Raises:
        ValueError: if `num_heads` does not divide D.
    """

    def __init__(
        self,
        num_heads,
        qkv_bias=True,
        proj_bias=True,
        inner_norm=False,
        norm_eps=1e-6,
        drop_rate=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.qkv_bias = qkv_bias
        self.proj_bias = proj_bias
        self.inner_norm = inner_norm
        self.norm_eps = norm_eps
        self.drop_rate = drop_rate

    def build(self, input_shape):
        width = input_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                "num_heads must divide the width of the tokens. Received: "
                f"num_heads={self.num_heads}, width={width}"
            )
        self.qkv = self.child(
            keras.layers.Dense,
            units=3 * width,
            use_bias=self.qkv_bias,
            kernel_initializer=initial(),
            name="qkv",
        )
        self.norm = (
            self.child(normalization, epsilon=self.norm_eps, name="norm")
            if self.inner_norm
            else None
        )
        self.proj = self.child(
            keras.layers.Dense,
            units=width,
            use_bias=self.proj_bias,
            kernel_initializer=initial(),
            name="proj",
        )
        self.drop = self.child(keras.layers.Dropout, rate=self.drop_rate, name="drop")
        for layer in (self.qkv, self.norm, self.proj):
            if layer is not None:
                layer.build(input_shape)

    def compute_output_spec(self, x, queries=None, training=None):
        return keras.KerasTensor(
            (x.shape[0], queries or x.shape[1], x.shape[2]), self.compute_dtype
        )

    def heads(self, x, queries=None):
        """Queries, keys and values: `(B, N, D)` -> three of (B, heads, N, D / heads); `queries`:
        of the first n only."""
        leading = x if queries is None else x[:, :queries]
        if self.qkv.quantization_mode:
            q, k, v = ops.split(as_matrix(self.qkv, x), 3, axis=-1)
            q = q if queries is None else q[:, :queries]
        elif frozen.current():  # slices of a constant cost nothing, those of a product do
            q, k, v = (self.part(t, i, i + 1) for i, t in enumerate((leading, x, x)))
        elif queries is not None:  # the other tokens' queries are not needed
            q, kv = self.part(leading, 0, 1), self.part(x, 1, 3)
            k, v = ops.split(kv, 2, axis=-1)
        else:
            q, k, v = ops.split(as_matrix(self.qkv, x), 3, axis=-1)
        return tuple(split_heads(t, self.num_heads) for t in (q, k, v))

    def part(self, x, start, stop):
        """The columns of query (0), key (1) and value (2) from `start` to `stop` of qkv(x)."""
        width = x.shape[-1]
        columns = slice(start * width, stop * width)
        x = ops.matmul(x, self.qkv.kernel[:, columns])
        return x + self.qkv.bias[columns] if self.qkv_bias else x

    def scores(self, x):
        """The attention map of tokens x: `(B, N, D) -> (B, heads, N, N)`, float32, each row sums
        to 1."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return softmax_scores(q, k)

    def call(self, x, queries=None, training=None):
        q, k, v = self.heads(x, queries)
        if training and self.drop_rate:
            x = ops.matmul(self.drop(ops.cast(softmax_scores(q, k), v.dtype), training=True), v)
        else:
            x = attend(q, k, v, scaled=frozen.is_folded(self))
        x = merge_heads(x)
        return as_matrix(self.proj, x if self.norm is None else self.norm(x))


@register
class AttentionPool(Layer):
    """One learned query attends to all tokens, then an MLP: `(B, N, D) -> (B, D)`.

    The multi-head attention pooling ("MAP") head of https://arxiv.org/abs/2106.04560, as SigLIP
    uses it.

    Args:
        num_heads, mlp_ratio, activation, norm_eps: as in `TransformerBlock`.
    """

    def __init__(self, num_heads, mlp_ratio=4.0, activation="gelu", norm_eps=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.activation = activation
        self.norm_eps = norm_eps

    def build(self, input_shape):
        width = input_shape[-1]
        self.latent = self.add_weight(
            shape=(1, 1, width), initializer=initial(width**-0.5), name="latent"
        )
        dense = {"kernel_initializer": initial()}
        self.q = self.child(keras.layers.Dense, units=width, name="q", **dense)
        self.kv = self.child(keras.layers.Dense, units=2 * width, name="kv", **dense)
        self.proj = self.child(keras.layers.Dense, units=width, name="proj", **dense)
        self.norm = self.child(normalization, epsilon=self.norm_eps, name="norm")
        self.mlp = self.child(Mlp, ratio=self.mlp_ratio, activation=self.activation, name="mlp")
        for layer in (self.q, self.kv, self.proj, self.norm, self.mlp):
            layer.build(input_shape)

    def compute_output_spec(self, x):
        return keras.KerasTensor((x.shape[0], x.shape[2]), self.compute_dtype)

    def heads(self, x):
        q = self.q(ops.broadcast_to(self.latent, (ops.shape(x)[0], 1, x.shape[-1])))
        k, v = ops.split(self.kv(x), 2, axis=-1)
        return tuple(split_heads(t, self.num_heads) for t in (q, k, v))

    def scores(self, x):
        """The pooling query's attention: `(B, N, D) -> (B, heads, 1, N)`, float32."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return softmax_scores(q, k)

    def call(self, x):
        x = self.proj(merge_heads(attend(*self.heads(x), scaled=frozen.is_folded(self))))
        x = x + self.mlp(self.norm(x))
        return ops.reshape(x, (-1, x.shape[-1]))

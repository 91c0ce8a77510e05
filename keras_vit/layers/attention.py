"""Multi-head self-attention (https://arxiv.org/abs/1706.03762, section 3.2) and attention
pooling."""

import math
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import Layer, Norm, initial, register
from keras_vit.layers.lora import Dense
from keras_vit.layers.mlp import Mlp, as_matrix
from keras_vit.layers.norm import normalization
from keras_vit.layers.watch import is_watched, watched
from keras_vit.types import Shape, Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`(B, N, D) -> (B, heads, N, D / heads)`."""
    size = x.shape[-1] // heads
    if heads == 1:  # the order of the axes is that of the numbers
        return ops.reshape(x, (-1, 1, tokens(x), size))
    return ops.transpose(ops.reshape(x, (-1, tokens(x), heads, size)), (0, 2, 1, 3))


def merge_heads(x: Tensor) -> Tensor:
    """`(B, heads, N, d) -> (B, N, heads * d)`."""
    if x.shape[1] == 1:
        return ops.reshape(x, (-1, x.shape[2] or ops.shape(x)[2], x.shape[3]))
    x = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(x, (-1, tokens(x), x.shape[2] * x.shape[3]))


def tokens(x: Tensor) -> int | Tensor:
    """The length of axis 1: an int if it is static, which exports to fewer ops, else a tensor."""
    return x.shape[1] if x.shape[1] is not None else ops.shape(x)[1]


def scaled(q: Tensor, heads: int) -> Tensor:
    """Divide the queries `(B, N, D)` by the square root of the head width.

    Scaling right after the projection, not after q k^T, lets export converters fold the factor
    into the projection's weights.
    """
    return q * (1.0 / math.sqrt(q.shape[-1] // heads))


def softmax_scores(
    q: Tensor, k: Tensor, bias: Tensor = None, attention_mask: Tensor = None
) -> Tensor:
    """softmax(q k^T + bias), computed in float32: q `(B, H, Q, d)`, k `(B, H, N, d) -> (B, H, Q,
    N)`.

    Args:
        q, k: queries, already scaled, and keys.
        bias, attention_mask: as in `Attention`.
    """
    scores = ops.cast(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))), "float32")
    if bias is not None:
        scores = scores + ops.cast(bias, "float32")
    if attention_mask is not None:
        scores = ops.where(attention_mask, scores, -1e9)
    return softmax(scores)


def softmax(scores: Tensor) -> Tensor:
    """`ops.softmax` over the last axis, also for one key alone, of which Keras warns."""
    return ops.exp(scores - scores) if scores.shape[-1] == 1 else ops.softmax(scores, axis=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor = None, attention_mask: Tensor = None
) -> Tensor:
    """Attention by the fastest path of the backend: q `(B, H, Q, d)`, k and v `(B, H, N, d) -> (B,
    H, Q, d)`.

    Args:
        q, k, v: queries, already scaled, keys and values.
        bias, attention_mask: as in `Attention`.
    """
    # TensorFlow has no fused kernel: two plain matmuls are faster.
    if keras.backend.backend() == "tensorflow" or is_watched():
        scores = watched("attention", softmax_scores(q, k, bias, attention_mask))
        return ops.matmul(ops.cast(scores, v.dtype), v)
    q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))
    if bias is not None:
        bias = ops.cast(bias, q.dtype)
        if attention_mask is not None:  # torch takes one of the two; -3e4 is a float16, too
            bias, attention_mask = ops.where(attention_mask, bias, -3e4), None
    # PyTorch chooses its kernel itself; Keras' question which it can use breaks torch.compile.
    flash = False if keras.backend.backend() == "torch" else None
    x = ops.dot_product_attention(
        q, k, v, bias=bias, mask=attention_mask, scale=1.0, flash_attention=flash
    )
    return ops.transpose(x, (0, 2, 1, 3))


@register
class Attention(Layer):
    """Multi-head self-attention with one dense layer for query, key and value: `(B, N, D) -> (B,
    N, D)`.

    Equation 1 and section 3.2.2 of https://arxiv.org/abs/1706.03762.

    Args:
        num_heads: number of heads; must divide D.
        qkv_bias: whether the query, key and value projection has a bias.
        proj_bias: whether the output projection has a bias.
        inner_norm: LayerNorm before the output projection (BEiT-3,
            https://arxiv.org/abs/2208.10442).
        norm_eps: epsilon of that LayerNorm.
        drop_rate: dropout rate of the attention probabilities.

    Call arguments:
        x: tokens, `(B, N, D)`.
        queries: compute only the first `queries` output tokens: `(B, queries, D)`.
        bias: added to the attention logits, before the softmax.
        attention_mask: boolean; True where a query may attend to a key.

    `bias` and `attention_mask` must broadcast to `(B, num_heads, queries, N)`.

    Raises:
        ValueError: if `num_heads` does not divide D.
    """

    def __init__(
        self,
        num_heads: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        inner_norm: bool = False,
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.qkv_bias = qkv_bias
        self.proj_bias = proj_bias
        self.inner_norm = inner_norm
        self.norm_eps = norm_eps
        self.drop_rate = drop_rate

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                "The width of the tokens must be divisible by num_heads. Received: "
                f"num_heads={self.num_heads}, width={width}"
            )
        self.make_qkv(input_shape)
        self.norm = None
        if self.inner_norm:
            self.norm = self.child(normalization, input_shape, epsilon=self.norm_eps, name="norm")
        self.proj = self.dense("proj", input_shape, width, self.proj_bias)
        self.drop = self.child(keras.layers.Dropout, rate=self.drop_rate, name="drop")

    def make_qkv(self, input_shape: Shape) -> None:
        """Make the dense layer, or layers, that read the input."""
        self.qkv = self.dense("qkv", input_shape, 3 * input_shape[-1], self.qkv_bias)

    def dense(self, name: str, shape: Shape, units: int, use_bias: bool) -> keras.layers.Dense:
        """Make a dense layer."""
        options = {"use_bias": use_bias, "kernel_initializer": initial()}
        return self.child(Dense, shape, units=units, name=name, **options)

    @property
    def readers(self) -> list[keras.layers.Dense]:
        """The dense layers that read the input; nothing else does."""
        return [self.qkv]

    def links(self) -> Iterable[Norm]:
        if self.norm is not None:
            yield self.norm.read_by(self.proj)

    def compute_output_spec(
        self,
        x: Tensor,
        queries: int | None = None,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
    ) -> keras.KerasTensor:
        return keras.KerasTensor(
            (x.shape[0], queries or x.shape[1], x.shape[2]), self.compute_dtype
        )

    def heads(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values: `(B, N, D)` -> three of `(B, heads, N, D / heads)`.

        Args:
            x: tokens.
            queries: number of leading tokens to compute queries for; None: all.
        """
        leading = x if queries is None else x[:, :queries]
        if self.qkv.quantization_mode:
            q, k, v = ops.split(as_matrix(self.qkv, x), 3, axis=-1)
            q = q if queries is None else q[:, :queries]
        elif not self.packed:
            q, k, v = (self.part(t, i, i + 1) for i, t in enumerate((leading, x, x)))
        elif queries is not None:  # skip the queries of the other tokens
            q, kv = self.part(leading, 0, 1), self.part(x, 1, 3)
            k, v = ops.split(kv, 2, axis=-1)
        else:
            q, k, v = ops.split(as_matrix(self.qkv, x), 3, axis=-1)
        return tuple(split_heads(t, self.num_heads) for t in (scaled(q, self.num_heads), k, v))

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        """A part of `qkv(x)`: query is 0, key is 1 and value is 2; `stop` is exclusive."""
        width = x.shape[-1]
        columns = slice(start * width, stop * width)
        x = ops.matmul(x, self.qkv.kernel[:, columns])
        return x + self.qkv.bias[columns] if self.qkv_bias else x

    def scores(self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None) -> Tensor:
        """The attention map: `(B, N, D) -> (B, heads, N, N)`, float32; each row sums to 1."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return softmax_scores(q, k, bias, attention_mask)

    def call(
        self,
        x: Tensor,
        queries: int | None = None,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
    ) -> Tensor:
        return self.combined(*self.heads(x, queries), bias, attention_mask, training)

    def combined(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
    ) -> Tensor:
        """The values that the queries attend to, merged and projected: `(B, N, D)`."""
        x = merge_heads(self.weighted(q, k, v, bias, attention_mask, training))
        return as_matrix(self.proj, x if self.norm is None else self.norm(x))

    def weighted(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
    ) -> Tensor:
        """`attend`, with dropout in training: `(B, heads, queries, d)`."""
        if not (training and self.drop_rate):
            return attend(q, k, v, bias, attention_mask)
        scores = ops.cast(softmax_scores(q, k, bias, attention_mask), v.dtype)
        return ops.matmul(self.drop(scores, training=True), v)


@register
class AttentionPool(Layer):
    """Multi-head attention pooling (MAP): `(B, N, D) -> (B, D)`.

    A learned query attends to all tokens; an MLP with a residual connection follows. From
    https://arxiv.org/abs/2106.04560; used by SigLIP.

    Args:
        num_heads, mlp_ratio, activation, norm_eps: as in `TransformerBlock`.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        norm_eps: float = 1e-6,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.activation = activation
        self.norm_eps = norm_eps

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        self.latent = self.add_weight(
            shape=(1, 1, width), initializer=initial(width**-0.5), name="latent"
        )
        dense = {"layer": Dense, "kernel_initializer": initial()}
        self.q = self.child(shape=input_shape, units=width, name="q", **dense)
        self.kv = self.child(shape=input_shape, units=2 * width, name="kv", **dense)
        self.proj = self.child(shape=input_shape, units=width, name="proj", **dense)
        self.norm = self.child(normalization, input_shape, epsilon=self.norm_eps, name="norm")
        mlp = {"ratio": self.mlp_ratio, "activation": self.activation}
        self.mlp = self.child(Mlp, input_shape, name="mlp", **mlp)

    @property
    def readers(self) -> list[keras.layers.Dense]:
        """The dense layers that read the input; nothing else does."""
        return [self.kv]

    def links(self) -> Iterable[Norm]:
        yield self.norm.read_by(*self.mlp.readers)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor((x.shape[0], x.shape[2]), self.compute_dtype)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scaled query `(B, heads, 1, d)`, and keys and values `(B, heads, N, d)`."""
        q = self.q(ops.broadcast_to(self.latent, (ops.shape(x)[0], 1, x.shape[-1])))
        k, v = ops.split(self.kv(x), 2, axis=-1)
        return tuple(split_heads(t, self.num_heads) for t in (scaled(q, self.num_heads), k, v))

    def scores(self, x: Tensor) -> Tensor:
        """The attention map of the learned query: `(B, N, D) -> (B, heads, 1, N)`, float32."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return softmax_scores(q, k)

    def call(self, x: Tensor) -> Tensor:
        x = self.proj(merge_heads(attend(*self.heads(x))))
        x = x + self.mlp(self.norm(x))
        return ops.reshape(x, (-1, x.shape[-1]))

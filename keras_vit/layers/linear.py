"""Attention whose cost grows linearly with the number of tokens."""

import math
from typing import Any

import numpy as np
from keras import ops

from keras_vit.layers.attention import Attention, merge_heads
from keras_vit.layers.base import one_of, register
from keras_vit.layers.mlp import as_matrix
from keras_vit.layers.watch import is_watched, watched
from keras_vit.types import Shape, Tensor

FEATURES = ("elu", "performer")


@register
class LinearAttention(Attention):
    """Linear attention: `(B, N, D) -> (B, N, D)`, in O(N) time and memory.

    `phi(q) phi(k)^T`, divided by its row sums, takes the place of the softmax, so that the products
    of keys and values are summed once for all queries (equations 5 and 6 of
    https://arxiv.org/abs/2006.16236). It is computed in float32.

    Args:
        features: `"elu"`: phi(x) = elu(x) + 1 (equation 7 there). `"performer"`: orthogonal random
            features of the softmax's kernel, positive ones (FAVOR+, lemma 1 and section 2.4 of
            https://arxiv.org/abs/2009.14794); the output approximates full attention.
        num_features: random features of each head, for `"performer"`; they are drawn once, and
            saved with the weights.
        seed: of the random features.
        num_heads, qkv_bias, proj_bias, inner_norm, norm_eps: as in `Attention`.
        drop_rate: must be 0: there are no probabilities to drop.

    Call arguments:
        x, queries: as in `Attention`.
        attention_mask: boolean, `(B or 1, 1, 1, N)`; True where a key may be attended to.

    Raises:
        ValueError: an unknown `features`, a `drop_rate`, a `bias`, or a mask that depends on the
            query.
    """

    def __init__(
        self,
        num_heads: int,
        features: str = "elu",
        num_features: int = 64,
        seed: int = 0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        inner_norm: bool = False,
        norm_eps: float = 1e-6,
        drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(num_heads, qkv_bias, proj_bias, inner_norm, norm_eps, drop_rate, **kwargs)
        if drop_rate:
            raise ValueError(
                f"Linear attention has no probabilities to drop. Received: drop_rate={drop_rate}"
            )
        self.features = one_of(features, "features", FEATURES)
        self.num_features = num_features
        self.seed = seed

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.directions = None
        if self.features == "performer":
            width = input_shape[-1] // self.num_heads
            drawn = orthogonal(self.num_features, width, self.seed)
            self.directions = self.add_weight(
                shape=drawn.shape,
                initializer=lambda shape, dtype: ops.convert_to_tensor(drawn, dtype),
                trainable=False,
                autocast=False,
                name="directions",
            )

    def phi(self, x: Tensor, over: tuple[int, ...]) -> Tensor:
        """The features of queries or keys, `(B, heads, N, d) -> (B, heads, N, F)`, float32 and
        positive.

        Args:
            x: queries or keys, not scaled.
            over: the axes that share a factor, which the row sums cancel.
        """
        x = ops.cast(x, "float32")
        if self.directions is None:
            return ops.elu(x) + 1.0
        x = x * x.shape[-1] ** -0.25
        exponents = ops.matmul(x, ops.transpose(self.directions))
        exponents = exponents - 0.5 * ops.sum(ops.square(x), axis=-1, keepdims=True)
        exponents = exponents - ops.stop_gradient(ops.max(exponents, axis=over, keepdims=True))
        return ops.exp(exponents) + 1e-6

    def kernels(self, q: Tensor, k: Tensor, attention_mask: Tensor = None) -> tuple[Tensor, Tensor]:
        """The features of scaled queries and of keys; those of masked keys are 0."""
        q = self.phi(q * math.sqrt(q.shape[-1]), over=(-1,))
        k = self.phi(k, over=(-2, -1))
        if attention_mask is None:
            return q, k
        if attention_mask.shape[-2] != 1:
            raise ValueError(
                "Linear attention masks keys, for all queries alike: attention_mask must have the "
                f"shape (B, 1, 1, N). Received: {tuple(attention_mask.shape)}"
            )
        return q, k * ops.cast(ops.swapaxes(attention_mask, -1, -2), k.dtype)

    def combined(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
    ) -> Tensor:
        if bias is not None:
            raise ValueError("Linear attention has no logits that a bias could be added to.")
        dtype = v.dtype
        q, k = self.kernels(q, k, attention_mask)
        if is_watched():  # the map that the features amount to: the values are equal
            scores = watched("attention", normalised(q, k))
            x = merge_heads(ops.matmul(ops.cast(scores, dtype), v))
            return as_matrix(self.proj, x if self.norm is None else self.norm(x))
        keys = ops.transpose(k, (0, 1, 3, 2))
        summed = ops.matmul(keys, ops.cast(v, "float32"))  # (B, heads, F, d)
        totals = ops.matmul(q, ops.sum(keys, axis=-1, keepdims=True))  # (B, heads, N, 1)
        x = merge_heads(ops.cast(ops.matmul(q, summed) / totals, dtype))
        return as_matrix(self.proj, x if self.norm is None else self.norm(x))

    def scores(self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None) -> Tensor:
        """The attention map that the features amount to: `(B, N, D) -> (B, heads, N, N)`, float32;
        each row sums to 1. This takes O(N^2)."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return normalised(*self.kernels(q, k, attention_mask))


def normalised(q: Tensor, k: Tensor) -> Tensor:
    """The products of the features, divided by their row sums: `(B, heads, N, N)`."""
    scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))
    return scores / ops.sum(scores, axis=-1, keepdims=True)


def orthogonal(count: int, width: int, seed: int) -> np.ndarray:
    """Random directions, `(count, width)` float32: blocks of orthogonal rows, each row as long as
    one of independent normal numbers (section 2.4 of https://arxiv.org/abs/2009.14794)."""
    random = np.random.default_rng(seed)
    blocks = [
        np.linalg.qr(random.normal(size=(width, width)))[0] for _ in range(-(-count // width))
    ]
    lengths = np.linalg.norm(random.normal(size=(count, width)), axis=1, keepdims=True)
    return (np.concatenate(blocks)[:count] * lengths).astype("float32")

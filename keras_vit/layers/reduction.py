"""Attention to a coarser grid of keys and values."""

from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_vit.layers.attention import attend, merge_heads, scaled, softmax_scores, split_heads
from keras_vit.layers.base import Layer, Norm, initial, register
from keras_vit.layers.conv import Conv
from keras_vit.layers.lora import Dense
from keras_vit.layers.mlp import as_matrix
from keras_vit.layers.norm import normalization
from keras_vit.layers.pool import adaptive_average
from keras_vit.layers.tokens import as_map, as_tokens
from keras_vit.types import Shape, Tensor

POOLED = 7  # rows and columns of the keys in the linear variant


@register
class SpatialReductionAttention(Layer):
    """Attention whose keys and values lie on a coarser grid: `(B, H, W, C) -> (B, H, W, C)`.

    SRA of PVT (https://arxiv.org/abs/2102.12122, section 3.3), linear SRA of PVT v2
    (https://arxiv.org/abs/2106.13797, section 3.1). Without a reduction the input may also be
    tokens, `(B, N, C)`.

    Args:
        num_heads: number of heads; must divide C.
        sr_ratio: how much coarser the grid is, by a convolution without overlap and a norm; rows
            and columns that are left over are not read. 1: the grid itself.
        linear: the grid has 7 x 7 cells instead, the means over equal parts of the map; a 1x1
            convolution, a norm and GELU follow.
        qkv_bias: whether the query, key and value projections have biases.
        conv_norm_eps: epsilon of the norm.

    Raises:
        ValueError: if `num_heads` does not divide C.
    """

    def __init__(
        self,
        num_heads: int,
        sr_ratio: int = 1,
        linear: bool = False,
        qkv_bias: bool = True,
        conv_norm_eps: float = 1e-5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.linear = linear
        self.qkv_bias = qkv_bias
        self.conv_norm_eps = conv_norm_eps

    def build(self, input_shape: Shape) -> None:
        width = input_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                "The number of channels must be divisible by num_heads. Received: "
                f"num_heads={self.num_heads}, {width} channels"
            )
        shape = (None, None, width)
        dense = {"layer": Dense, "shape": shape, "kernel_initializer": initial()}
        self.q = self.child(units=width, use_bias=self.qkv_bias, name="q", **dense)
        self.kv = self.child(units=2 * width, use_bias=self.qkv_bias, name="kv", **dense)
        self.proj = self.child(units=width, name="proj", **dense)
        self.sr: Any = None
        self.norm: Any = None
        if self.linear or self.sr_ratio > 1:
            ratio = 1 if self.linear else self.sr_ratio
            conv = {"filters": width, "kernel_size": ratio, "strides": ratio, "name": "sr"}
            self.sr = self.child(Conv, (None, None, None, width), **conv)
            self.norm = self.child(normalization, shape, epsilon=self.conv_norm_eps, name="norm")

    @property
    def readers(self) -> list[keras.layers.Layer]:
        """The dense layers and convolutions that read the input; nothing else does."""
        return [self.q, self.kv if self.sr is None else self.sr]

    def links(self) -> Iterable[Norm]:
        if self.norm is not None and not self.linear:
            yield self.norm.read_by(self.kv)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def reduced(self, x: Tensor) -> Tensor:
        """What keys and values are made of: `(B, H, W, C) -> (B, M, C)`."""
        if self.sr is None:
            return as_tokens(x)
        if not self.linear:
            return self.norm(as_tokens(self.sr(x)))
        x = self.norm(as_tokens(self.sr(adaptive_average(x, POOLED))))
        return ops.gelu(x, approximate=False)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `(B, heads, N, d)`, and scaled keys and values `(B, heads, M, d)`."""
        q, reduced = as_matrix(self.q, as_tokens(x)), self.reduced(x)
        if self.packed or self.kv.quantization_mode:
            k, v = ops.split(as_matrix(self.kv, reduced), 2, axis=-1)
        else:
            k, v = (self.part(reduced, i) for i in range(2))
        # There are fewer keys than queries to scale.
        return tuple(split_heads(t, self.num_heads) for t in (q, scaled(k, self.num_heads), v))

    def part(self, x: Tensor, index: int) -> Tensor:
        """A part of `kv(x)`: key is 0, value is 1."""
        width = x.shape[-1]
        columns = slice(index * width, (index + 1) * width)
        x = ops.matmul(x, self.kv.kernel[:, columns])
        return x + self.kv.bias[columns] if self.qkv_bias else x

    def scores(self, x: Tensor) -> Tensor:
        """The attention map: `(B, H, W, C) -> (B, heads, N, M)`, float32; each row sums to 1. N =
        H * W, and M keys lie on the reduced grid, row by row."""
        q, k, _ = self.heads(ops.cast(x, self.compute_dtype))
        return softmax_scores(q, k)

    def call(self, x: Tensor) -> Tensor:
        tokens = merge_heads(attend(*self.heads(x)))
        return as_map(as_matrix(self.proj, tokens), x)

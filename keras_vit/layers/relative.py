"""Attention with a bias for each distance of two tokens on a grid: CoAtNet's and MaxViT's."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.layers.attention import Attention, tokens
from keras_vit.layers.base import Layer, arrays, initial, register
from keras_vit.layers.lora import Dense
from keras_vit.layers.mlp import as_matrix
from keras_vit.types import Shape, Tensor


def spread(table: Tensor, window: Sequence[int], sign: int = 1) -> Tensor:
    """Values per distance as values per pair of tokens: `(heads, 2h - 1, 2w - 1) -> (1, heads, N,
    N)`, N = h * w.

    The value of query i and key j lies at the distance `sign * (i - j)`, in rows and columns, from
    the middle of the table. Two gathers of slices; nothing is transposed.

    Args:
        table: the values.
        window: (h, w).
        sign: 1, or -1 if the table has keys minus queries.
    """
    (h, w), heads = window, table.shape[0]
    xp = arrays()
    down, across = (
        sign * (xp.arange(n, dtype="int32")[:, None] - xp.arange(n, dtype="int32")) + n - 1
        for n in window
    )
    table = ops.take(table, xp.reshape(across, -1), axis=2)
    table = ops.reshape(table, (heads, (2 * h - 1) * w, w))  # (distance of rows, query's column)
    columns = xp.arange(w, dtype="int32")[None, :, None]
    rows = down[:, None] * w + columns  # (query's row and column, key's row)
    table = ops.take(table, xp.reshape(rows, -1), axis=1)
    return ops.reshape(table, (1, heads, h * w, h * w))


@register
class RelativeBias(Layer):
    """A learned bias for each head and distance, `((2h - 1) * (2w - 1), heads)`; query minus key.

    Equation 3 of CoAtNet (https://arxiv.org/abs/2106.04803), with Swin's table.

    Args:
        num_heads: number of heads.
        window: (h, w), the grid of tokens.
        class_token: whether a class token precedes them, or how many tokens do. The table then has
            three more rows: from the class token to the others, from the others to it, and to
            itself (BEiT).
    """

    def __init__(
        self, num_heads: int, window: Sequence[int], class_token: int = False, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.window = tuple(window)
        self.class_token = class_token

    def build(self, input_shape: Shape = ()) -> None:
        rows, columns = (2 * n - 1 for n in self.window)
        self.table = self.add_weight(
            shape=(rows * columns + 3 * bool(self.class_token), self.num_heads),
            initializer=initial(),
            autocast=False,
            name="relative_position_bias_table",
        )

    def bias(self) -> Tensor:
        """The bias of the attention logits, `(1, heads, N, N)`."""
        if not self.class_token:
            return self.spread(self.table)
        bias, extra, ahead = self.spread(self.table[:-3]), self.table[-3:], int(self.class_token)
        to_others, to_token, to_itself = (
            ops.reshape(row, (1, self.num_heads, 1, 1)) for row in ops.split(extra, 3)
        )
        column, row = bias[..., :1], bias[..., :1, :]  # of the shapes that are needed
        bias = ops.concatenate([*[ops.zeros_like(column) + to_token] * ahead, bias], axis=3)
        row = ops.concatenate([*[to_itself] * ahead, ops.zeros_like(row) + to_others], axis=3)
        return ops.concatenate([*[row] * ahead, bias], axis=2)

    def spread(self, table: Tensor) -> Tensor:
        """Values `((2h - 1) * (2w - 1), heads)` as the bias of the logits."""
        table = ops.reshape(ops.transpose(table), (-1, *(2 * n - 1 for n in self.window)))
        return spread(table, self.window)


@register
class RelativeBiasTF(RelativeBias):
    """The same for the weights of google-research/maxvit: `(heads, 2h - 1, 2w - 1)` in the file,
    key minus query."""

    def build(self, input_shape: Shape = ()) -> None:
        rows, columns = (2 * n - 1 for n in self.window)
        self.table = self.add_weight(
            shape=(rows, columns, self.num_heads),
            initializer=initial(),
            autocast=False,
            name="bias_table",
        )

    def bias(self) -> Tensor:
        return spread(ops.transpose(self.table, (2, 0, 1)), self.window, sign=-1)


@register
class RelativeMLP(RelativeBias):
    """The bias as an MLP of the distance: `fc2(relu(fc1(sign(d) * log(1 + |d|))))`.

    Section 3.3 of Swin V2 (https://arxiv.org/abs/2111.09883), in timm's variant `"cr"`.

    Args:
        num_heads, window, class_token: as in `RelativeBias`; here the class token has no bias.
        rel_pos_dim: hidden width of the MLP.
        drop_rate: dropout rate of the hidden layer.
    """

    def __init__(
        self,
        num_heads: int,
        window: Sequence[int],
        class_token: bool = False,
        rel_pos_dim: int = 512,
        drop_rate: float = 0.125,
        **kwargs: Any,
    ):
        super().__init__(num_heads, window, class_token, **kwargs)
        self.rel_pos_dim = rel_pos_dim
        self.drop_rate = drop_rate

    def build(self, input_shape: Shape = ()) -> None:
        distances = np.stack(
            np.meshgrid(*(np.arange(1 - n, n) for n in self.window), indexing="ij"), axis=-1
        )
        logs = np.sign(distances) * np.log1p(np.abs(distances))
        self.distances = logs.reshape(-1, 2).astype("float32")
        dense = {"layer": Dense, "kernel_initializer": initial()}
        self.fc1 = self.child(shape=(None, 2), units=self.rel_pos_dim, name="fc1", **dense)
        shape = (None, self.rel_pos_dim)
        self.fc2 = self.child(shape=shape, units=self.num_heads, name="fc2", **dense)
        self.drop = self.child(keras.layers.Dropout, rate=self.drop_rate, name="drop")

    def bias(self) -> Tensor:
        hidden = ops.relu(self.fc1(ops.convert_to_tensor(self.distances)))
        bias = self.spread(self.fc2(self.drop(hidden)))
        before = (int(self.class_token), 0)
        return ops.pad(bias, ((0, 0), (0, 0), before, before)) if self.class_token else bias


REL_POS = {"bias": RelativeBias, "bias_tf": RelativeBiasTF, "mlp": RelativeMLP}


@register
class RelativeAttention(Attention):
    """Multi-head self-attention with a relative position bias: `(B, N, C) -> (B, N, D)`.

    Args:
        num_heads: number of heads.
        units: D.
        window: (h, w), the grid of the N = h * w tokens.
        dim_head: width of a head.
        rel_pos: `"bias"`, `"bias_tf"` or `"mlp"`, see `RelativeBias`, `RelativeBiasTF` and
            `RelativeMLP`.
        rel_pos_dim: as in `RelativeMLP`.
        head_first: how the columns of `qkv` are ordered: by heads and then by query, key and value,
            or by query, key and value first.
    """

    def __init__(
        self,
        num_heads: int,
        units: int,
        window: Sequence[int],
        dim_head: int = 32,
        rel_pos: str = "bias",
        rel_pos_dim: int = 512,
        head_first: bool = True,
        **kwargs: Any,
    ):
        super().__init__(num_heads, **kwargs)
        self.units = units
        self.window = tuple(window)
        self.dim_head = dim_head
        self.rel_pos = rel_pos
        self.rel_pos_dim = rel_pos_dim
        self.head_first = head_first

    def build(self, input_shape: Shape) -> None:
        width = self.num_heads * self.dim_head
        dense = {"layer": Dense, "kernel_initializer": initial()}
        self.qkv = self.child(shape=input_shape, units=3 * width, name="qkv", **dense)
        shape = (*input_shape[:-1], width)
        self.proj = self.child(shape=shape, units=self.units, name="proj", **dense)
        self.norm = None
        options = {"rel_pos_dim": self.rel_pos_dim} if self.rel_pos == "mlp" else {}
        self.position = self.child(
            REL_POS[self.rel_pos],
            shape=(),
            num_heads=self.num_heads,
            window=self.window,
            name="rel_pos",
            **options,
        )

    def compute_output_spec(  # type: ignore[override]
        self, x: Tensor, training: bool | None = None
    ) -> keras.KerasTensor:
        return keras.KerasTensor((*x.shape[:2], self.units), self.compute_dtype)

    def heads(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if not self.head_first or not (self.packed or self.qkv.quantization_mode):
            return super().heads(x)
        x = ops.reshape(as_matrix(self.qkv, x), (-1, tokens(x), self.num_heads, 3 * self.dim_head))
        q, k, v = ops.split(ops.transpose(x, (0, 2, 1, 3)), 3, axis=-1)
        return q * self.dim_head**-0.5, k, v

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        kernel, bias = self.qkv.kernel, self.qkv.bias

        def columns(weights):
            outer, width = tuple(weights.shape[:-1]), (stop - start) * self.num_heads
            if not self.head_first:
                step = self.num_heads * self.dim_head
                return weights[..., start * step : stop * step]
            weights = ops.reshape(weights, (*outer, self.num_heads, 3, self.dim_head))
            return ops.reshape(weights[..., start:stop, :], (*outer, width * self.dim_head))

        return ops.matmul(x, columns(kernel)) + columns(bias)

    def scores(self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None) -> Tensor:
        """The attention map: `(B, N, C) -> (B, heads, N, N)`, float32; each row sums to 1."""
        return super().scores(x, bias=self.position.bias())

    # The bias is its own.
    def call(self, x: Tensor, training: bool | None = None) -> Tensor:  # type: ignore[override]
        return super().call(x, bias=self.position.bias(), training=training)

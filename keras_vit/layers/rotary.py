"""Rotary position embeddings of patches (RoPE, https://arxiv.org/abs/2104.09864, section 3.2), and
attention that applies them.

Queries and keys are rotated in planes of two channels, by angles that grow with the row and the
column of the patch: their product then depends on the distance of two patches. Prefix tokens have
angle 0. Here the two channels of a plane are half a head apart, channels j and j + d / 2. Neighbors
(2j, 2j + 1) are brought there first: the order does not matter to a product of query and key.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.layers.attention import Attention, softmax_scores, split_heads
from keras_vit.layers.base import Layer, arguments, arrays, register
from keras_vit.layers.mlp import as_matrix
from keras_vit.layers.patches import pair
from keras_vit.types import Shape, Size, Tensor

ROPE_TYPES = ("cat", "dinov3", "mixed")
INDEXING = ("ij", "xy")


@register
class RotaryEmbedding(Layer):
    """The rotations of queries and keys in each block: images `(B, H, W, C)` -> a list of `depth`
    tables `(2, heads or 1, prefix + N, d)` for `rotate`.

    Args:
        depth: number of blocks.
        num_heads: number of heads in a block.
        head_width: d, channels of a head; a multiple of 4.
        patch_size: P, in pixels.
        prefix: number of tokens before the N = (H / P) * (W / P) patches; they are not rotated.
        rope_type: which positions the patches have, and which frequencies rotate by them:

            - `"cat"`: the indices of row and column. Half of the planes turn by the one, half by
              the other, with frequencies rope_temperature^(-j / (d / 4)), j = 0 ... d / 4 - 1
              (EVA-02, https://arxiv.org/abs/2303.11331; axial RoPE in
              https://arxiv.org/abs/2403.13298);
            - `"dinov3"`: the centres of the patches, from -1 to 1 across the image, times 2 pi;
              the same frequencies (https://arxiv.org/abs/2508.10104);
            - `"mixed"`: indices; each plane of each head and block has two frequencies of its own,
              which are learned (RoPE-Mixed in https://arxiv.org/abs/2403.13298).
        rope_temperature: the base of the frequencies; for `"mixed"`, of their initial values.
        rope_grid_offset: added to the indices; None: 0.
        rope_grid_indexing: whether the first planes turn by the row (`"ij"`) or the column
            (`"xy"`).
        ref_feat_shape: (rows, columns) that the indices are scaled to, for images of any size
            (`"cat"`); None: they are not scaled.

    Raises:
        ValueError: if `head_width` is not a multiple of 4.
    """

    def __init__(
        self,
        depth: int,
        num_heads: int,
        head_width: int,
        patch_size: int,
        prefix: int = 1,
        rope_type: str = "cat",
        rope_temperature: float = 10000.0,
        rope_grid_offset: float | None = None,
        rope_grid_indexing: str = "ij",
        ref_feat_shape: Size | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if head_width % 4:
            raise ValueError(
                "Rotary embeddings need heads of a multiple of 4 channels. "
                f"Received: {head_width} channels"
            )
        self.depth = depth
        self.num_heads = num_heads
        self.head_width = head_width
        self.patch_size = patch_size
        self.prefix = prefix
        self.rope_type = rope_type
        self.rope_temperature = rope_temperature
        self.rope_grid_offset = rope_grid_offset
        self.rope_grid_indexing = rope_grid_indexing
        self.ref_feat_shape = ref_feat_shape

    @property
    def mixed(self) -> bool:
        """Whether the frequencies are learned."""
        return self.rope_type == "mixed"

    def build(self, input_shape: Shape) -> None:
        if self.mixed:
            shape = (2, self.depth, self.num_heads, self.head_width // 2)
            # Not cast to half precision: angles are large.
            options = {"initializer": self.random_freqs, "autocast": False}
            self.freqs = self.add_weight(shape=shape, name="freqs", **options)

    def random_freqs(self, shape: Shape, dtype: Any = None) -> Tensor:
        """Initial frequencies for (x, y), `(2, depth, heads, d / 2)`: those of axial RoPE, in a
        random direction for each head, and at right angles to it (as the authors' code and timm
        do)."""
        turn = keras.random.uniform((*shape[1:3], 1), 0.0, 2 * math.pi, dtype=dtype)
        turns = [turn, turn + math.pi / 2]
        size = ops.cast(self.axial_freqs(), dtype)
        return ops.stack(
            [ops.concatenate([size * f(t) for t in turns], axis=-1) for f in (ops.cos, ops.sin)]
        )

    def axial_freqs(self) -> list[float]:
        """rope_temperature^(-j / (d / 4)), d / 4 numbers."""
        count = self.head_width // 4
        return [self.rope_temperature ** (-j / count) for j in range(count)]

    def compute_output_spec(self, images: Tensor) -> list[keras.KerasTensor]:
        rows, columns = (s and s // self.patch_size for s in images.shape[1:3])
        known = rows is not None and columns is not None
        count = self.prefix + rows * columns if known else None
        heads = self.num_heads if self.mixed else 1
        shape = (2, heads, count, self.head_width)
        return [keras.KerasTensor(shape, self.compute_dtype) for _ in range(self.depth)]

    def positions(self, rows: Any, columns: Any, xp: Any) -> list[Tensor]:
        """The positions of all tokens on both axes, in the order of `rope_grid_indexing`: two of
        `(prefix + N, 1)`.

        Args:
            rows, columns: of the patches: ints, or scalar tensors.
            xp: numpy, or keras.ops for tensors.
        """
        index = xp.arange(rows * columns)
        scaled_to = pair(self.ref_feat_shape) if self.ref_feat_shape is not None else None
        found = []
        for axis, (i, size) in enumerate(((index // columns, rows), (index % columns, columns))):
            i, size = _real(i, xp) + (self.rope_grid_offset or 0.0), _real(size, xp)
            if self.rope_type == "dinov3":
                i = 2 * math.pi * (2 * (i + 0.5) / size - 1)
            elif scaled_to is not None and not self.mixed:
                i = i / size * scaled_to[axis]
            zeros = xp.zeros((self.prefix,), dtype=i.dtype)
            found.append(xp.concatenate([zeros, i])[:, None])
        return found if self.rope_grid_indexing == "ij" else found[::-1]

    def call(self, images: Tensor) -> list[Tensor]:
        sizes = zip(images.shape[1:3], ops.shape(images)[1:3], strict=True)
        rows, columns = ((d if s is None else s) // self.patch_size for s, d in sizes)
        known = isinstance(rows, int) and isinstance(columns, int)
        xp = arrays() if known else ops
        first, second = self.positions(rows, columns, xp)
        if self.mixed:
            first, second = (ops.cast(x, "float32") for x in (first, second))
            freqs = ops.cast(self.freqs, "float32")[:, :, :, None]
            angles = (first * freqs[0, i] + second * freqs[1, i] for i in range(self.depth))
            return [ops.cast(table(each, ops), self.compute_dtype) for each in angles]
        freqs = _real(self.axial_freqs(), xp)
        angles = xp.concatenate([first * freqs, second * freqs], axis=-1)
        found = ops.convert_to_tensor(table(angles[None], xp), dtype=self.compute_dtype)
        return [found] * self.depth


def _real(x, xp):
    """As float64 in numpy, or as a float32 tensor."""
    return np.asarray(x, "float64") if xp is np else ops.convert_to_tensor(x, "float32")


def table(angles: Any, xp: Any) -> Tensor:
    """The table for `rotate`: angles of the planes, `(heads, N, d / 2) -> (2, heads, N, d)`."""
    cos, sin = xp.cos(angles), xp.sin(angles)
    both = xp.concatenate([cos, cos], axis=-1), xp.concatenate([-sin, sin], axis=-1)
    return xp.stack(both)


def axial_table(
    grid: Sequence[int], width: int, prefix: int = 0, temperature: float = 10000.0
) -> np.ndarray:
    """The table for `rotate` of patches on a grid, `(2, 1, prefix + N, width)` float32: that of
    `RotaryEmbedding`, type `"cat"`.

    Args:
        grid: (rows, columns).
        width: d, channels of a head; a multiple of 4.
        prefix: number of tokens before the patches; they are not rotated.
        temperature: the base of the frequencies.

    Raises:
        ValueError: if the width is not a multiple of 4.
    """
    layer = RotaryEmbedding(1, 1, width, patch_size=1, prefix=prefix, rope_temperature=temperature)
    rows, columns = layer.positions(grid[0], grid[1], np)
    freqs = layer.axial_freqs()
    angles = np.concatenate([rows * freqs, columns * freqs], axis=-1)
    return table(angles[None], np).astype("float32")


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the planes of channels j and j + d / 2: `(B, heads, N, d) -> (B, heads, N, d)`.

    Args:
        x: queries or keys.
        table: `(2, heads or 1, N, d)`: the cosines, and the sines, negative for the first channels.
    """
    first, second = ops.split(x, 2, axis=-1)
    return x * table[0] + ops.concatenate([second, first], axis=-1) * table[1]


def halves(x: Tensor, width: int) -> Tensor:
    """Bring the even channels of each head before the odd ones: `(..., heads * width)`, same
    shape."""
    shape = (-1, *ops.shape(x)[1:])
    return ops.reshape(ops.transpose(ops.reshape(x, (-1, width // 2, 2)), (0, 2, 1)), shape)


@register
class RotaryAttention(Attention):
    """Multi-head self-attention with rotary position embeddings: `(B, N, D) -> (B, N, D)`.

    Args:
        key_bias: whether keys have a bias, where queries and values have one.
        qkv_fused: one dense layer for query, key and value, `qkv`, or three.
        rope_rotate_half: whether the two channels of a plane are half a head apart, or neighbors.
        num_heads, qkv_bias and the others: as in `Attention`.

    Call arguments:
        rope: a table of `RotaryEmbedding`, or None: nothing is rotated.
        x and the others: as in `Attention`.
    """

    def __init__(
        self,
        num_heads: int,
        key_bias: bool = True,
        qkv_fused: bool = True,
        rope_rotate_half: bool = False,
        **kwargs: Any,
    ):
        super().__init__(num_heads, **kwargs)
        self.key_bias = key_bias
        self.qkv_fused = qkv_fused
        self.rope_rotate_half = rope_rotate_half

    def get_config(self) -> dict[str, Any]:
        own = arguments(Attention.__init__)
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.q_bias = self.v_bias = None
        if self.qkv_fused and self.qkv_bias and not self.key_bias:
            shape = input_shape[-1:]
            self.q_bias = self.add_weight(shape=shape, initializer="zeros", name="q_bias")
            self.v_bias = self.add_weight(shape=shape, initializer="zeros", name="v_bias")

    def make_qkv(self, input_shape: Shape) -> None:
        width, biased = input_shape[-1], self.qkv_bias
        key_biased = biased and self.key_bias
        if self.qkv_fused:
            self.qkv = self.dense("qkv", input_shape, 3 * width, key_biased)
            return
        self.q_proj = self.dense("q_proj", input_shape, width, biased)
        self.k_proj = self.dense("k_proj", input_shape, width, key_biased)
        self.v_proj = self.dense("v_proj", input_shape, width, biased)

    @property
    def readers(self) -> list[keras.layers.Dense]:
        return [self.qkv] if self.qkv_fused else [self.q_proj, self.k_proj, self.v_proj]

    def compute_output_spec(
        self,
        x: Tensor,
        queries: int | None = None,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
        rope: Tensor = None,
    ) -> keras.KerasTensor:
        return super().compute_output_spec(x, queries)

    def heads(
        self, x: Tensor, queries: int | None = None, rope: Tensor = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled and rotated queries, rotated keys, values: three of `(B, heads, N, D / heads)`."""
        neighbors = rope is not None and not self.rope_rotate_half
        parts = self.projected(x, queries, neighbors)
        q, k, v = (split_heads(part, self.num_heads) for part in parts)
        scale = 1.0 / math.sqrt(q.shape[-1])
        if rope is None:
            return q * scale, k, v
        # The scaled table is a constant of the graph, or smaller than a batch of queries.
        leading = rope if queries is None else rope[:, :, :queries]
        return rotate(q, leading * scale), rotate(k, rope), v

    def projected(self, x: Tensor, queries: int | None, neighbors: bool) -> list[Tensor]:
        """Queries, keys and values, `(B, N, D)` each.

        Args:
            x, queries: as in `heads`.
            neighbors: the planes of queries and keys are neighbors, and are brought half a head
                apart.
        """
        turn = functools.partial(halves, width=x.shape[-1] // self.num_heads)
        leading = x if queries is None else x[:, :queries]
        inputs = (leading, x, x)
        if not self.packed and neighbors:  # the weights are constants: turning them is free
            return [self.part_of(t, i, turn if i < 2 else None) for i, t in enumerate(inputs)]
        if not self.qkv_fused:
            parts = [as_matrix(r, t) for r, t in zip(self.readers, inputs, strict=True)]
        elif not self.qkv.quantization_mode and (queries is not None or not self.packed):
            parts = [self.part_of(t, i) for i, t in enumerate(inputs)]
        else:
            q, k, v = ops.split(as_matrix(self.joint, x), 3, axis=-1)
            parts = [q if queries is None else q[:, :queries], k, v]
        return [turn(parts[0]), turn(parts[1]), parts[2]] if neighbors else parts

    def joint(self, x: Tensor) -> Tensor:
        """`qkv` with its bias: `(..., D) -> (..., 3 * D)`."""
        if self.q_bias is None:
            return self.qkv(x)
        x = self.qkv(x)
        q, v = (ops.convert_to_tensor(bias) for bias in (self.q_bias, self.v_bias))
        return x + ops.cast(ops.concatenate([q, ops.zeros_like(q), v]), x.dtype)

    def part_of(self, x: Tensor, i: int, turn: Callable | None = None) -> Tensor:
        """Query (0), key (1) or value (2), by a part of the weights: `(B, N, D) -> (B, N, D)`.

        Args:
            turn: a function of weights that reorders their last axis.
        """
        weights = [w if turn is None or w is None else turn(w) for w in self.weights_of(i)]
        x = ops.matmul(x, weights[0])
        return x if weights[1] is None else x + weights[1]

    def weights_of(self, i: int) -> tuple[Tensor, Tensor]:
        """Kernel `(D, D)` and bias `(D,)`, or None, of query (0), key (1) or value (2)."""
        if not self.qkv_fused:
            return self.readers[i].kernel, self.readers[i].bias
        width = self.qkv.kernel.shape[0]
        columns = slice(i * width, (i + 1) * width)
        bias = (self.q_bias, None, self.v_bias)[i]
        if self.qkv.use_bias:
            bias = self.qkv.bias[columns]
        return self.qkv.kernel[:, columns], bias

    def scores(
        self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None, rope: Tensor = None
    ) -> Tensor:
        x = ops.cast(x, self.compute_dtype)
        rope = None if rope is None else ops.cast(rope, self.compute_dtype)
        q, k, _ = self.heads(x, rope=rope)
        return softmax_scores(q, k, bias, attention_mask)

    def call(
        self,
        x: Tensor,
        queries: int | None = None,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
        rope: Tensor = None,
    ) -> Tensor:
        return self.combined(*self.heads(x, queries, rope), bias, attention_mask, training)

"""Attention in the windows of a feature map, with a learned bias for each distance."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.layers.attention import Attention, attend, merge_heads, softmax, split_heads
from keras_vit.layers.base import Layer, initial, register
from keras_vit.layers.mlp import as_matrix
from keras_vit.layers.windows import ShiftedWindows, distances, on_the_map
from keras_vit.types import Shape, Tensor

FUSED = 1 << 20  # numbers: bias and mask are added up, and stored in exported files, up to here


@register
class WindowAttention(Attention):
    """Attention in the windows of a map: `(B, H, W, C) -> (B, H, W, C)`.

    W-MSA and SW-MSA, section 3.2 and equation 4 of https://arxiv.org/abs/2103.14030.

    Args:
        num_heads, qkv_bias, drop_rate: as in `Attention`.
        window: (h, w), at most the size of the map.
        shift, pad_first: as in `ShiftedWindows`.
        mask_penalty: subtracted from the logits of tokens of different regions.
    """

    def __init__(
        self,
        num_heads: int,
        window: Sequence[int],
        shift: Sequence[int] = (0, 0),
        pad_first: bool = False,
        mask_penalty: float = 100.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(num_heads, qkv_bias=qkv_bias, drop_rate=drop_rate, **kwargs)
        self.window = tuple(window)
        self.shift = tuple(shift)
        self.pad_first = pad_first
        self.mask_penalty = mask_penalty
        self.constant: np.ndarray | None = None  # the bias, in exported copies

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.windows = ShiftedWindows(input_shape[1:3], self.window, self.shift, self.pad_first)
        self.index = distances(self.window)
        self.mask = None  # (n, 1, N, N)
        regions = self.windows.regions()
        if regions is not None:
            apart = regions[:, None, :, None] != regions[:, None, None, :]
            self.mask = np.where(apart, -self.mask_penalty, 0.0).astype("float32")
        self.fuses = self.mask is not None and self.mask.size * self.num_heads <= FUSED
        self.make_bias()

    def make_bias(self) -> None:
        """Make the variables of the bias."""
        (h, w), heads = self.window, self.num_heads
        self.relative_position_bias_table = self.add_weight(
            shape=((2 * h - 1) * (2 * w - 1), heads),
            initializer=initial(),
            name="relative_position_bias_table",
        )

    def table(self) -> Tensor:
        """The bias of each distance, `((2h - 1) * (2w - 1), heads)`."""
        return self.relative_position_bias_table

    def bias(self) -> Tensor:
        """The bias of each pair of tokens, `(1, heads, N, N)`; with the mask, `(n, heads, N, N)`,
        if the two are fused."""
        if self.constant is not None:
            return ops.convert_to_tensor(self.constant)
        size = self.index.shape[0]
        # From the transposed table, so that TensorFlow's gradient is not a sparse one.
        columns = ops.transpose(self.table())
        bias = ops.take(columns, ops.convert_to_tensor(self.index.ravel(), "int32"), axis=1)
        bias = ops.cast(ops.reshape(bias, (1, self.num_heads, size, size)), "float32")
        return bias + ops.convert_to_tensor(self.mask) if self.fuses else bias

    def precompute(self, value: Callable[[Any], np.ndarray]) -> None:
        self.constant = None
        known = [(v, ops.convert_to_tensor(value(v), v.dtype)) for v in self.weights]
        with keras.StatelessScope(known):
            self.constant = ops.convert_to_numpy(self.bias())

    def summands(self) -> list[Tensor]:
        """All that is added to the logits: `(1 or n, 1 or heads, N, N)` each."""
        apart = self.mask is not None and not self.fuses
        return [self.bias(), ops.convert_to_tensor(self.mask)] if apart else [self.bias()]

    def weigh(self, q: Tensor, k: Tensor) -> Tensor:
        """The attention weights in the windows, `(B * n, heads, N, N)`, float32."""
        scores = ops.cast(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))), "float32")
        for summand in self.summands():
            scores = add_per_window(scores, summand)
        return softmax(scores)

    def attended(self, q: Tensor, k: Tensor, v: Tensor, training: bool | None = None) -> Tensor:
        """The weighted values, `(B * n, heads, N, d)`."""
        drops = training and self.drop_rate
        if drops or keras.backend.backend() == "tensorflow":  # as `attend`
            return ops.matmul(self.drop(ops.cast(self.weigh(q, k), v.dtype), training=drops), v)
        bias: Tensor = functools.reduce(ops.add, self.summands())
        rows = bias.shape[0] * self.num_heads
        grouped = [ops.reshape(t, (-1, rows, *t.shape[2:])) for t in (q, k, v, bias)]
        return ops.reshape(attend(*grouped), (-1, self.num_heads, *v.shape[2:]))

    # A map, not tokens, so that `queries` has no meaning.
    def call(self, x: Tensor, training: bool | None = None) -> Tensor:  # type: ignore[override]
        q, k, v = self.heads(self.windows.cut(x))
        x = merge_heads(self.attended(q, k, v, training))
        return self.windows.join(as_matrix(self.proj, x))

    def compute_output_spec(  # type: ignore[override]
        self, x: Tensor, training: bool | None = None
    ) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def scores(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """The attention map, `(B, H, W, C) -> (B, heads, H * W, H * W)`, float32.

        It is 0 outside a token's window. A row sums to 1, less what falls on added zeros.
        """
        q, k, _ = self.heads(self.windows.cut(ops.cast(x, self.compute_dtype)))
        return on_the_map(self.weigh(q, k), self.windows.places())


def add_per_window(scores: Tensor, summand: Tensor) -> Tensor:
    """Add what depends on the window: `(B * n, heads, N, N)` and `(1 or n, 1 or heads, N, N)`."""
    count, heads, size, _ = summand.shape
    if count in (1, scores.shape[0]):
        return scores + summand
    shape = scores.shape
    scores = ops.reshape(scores, (-1, count, shape[1], size * size))
    scores = scores + ops.reshape(summand, (1, count, heads, size * size))
    return ops.reshape(scores, (-1, *shape[1:]))


@register
class CosineAttention(WindowAttention):
    """Scaled cosine attention in windows, with a continuous bias: `(B, H, W, C) -> (B, H, W, C)`.

    Section 3.3, equation 2 (cosine attention) and equations 3 and 4 (log-spaced continuous position
    bias) of https://arxiv.org/abs/2111.09883. The keys have no bias.

    Args:
        pretrained_window: the window that distances are relative to, h or w; 0: `window` itself.
        num_heads and the others: as in `WindowAttention`.
    """

    def __init__(
        self,
        num_heads: int,
        window: Sequence[int],
        shift: Sequence[int] = (0, 0),
        pad_first: bool = False,
        mask_penalty: float = 100.0,
        pretrained_window: int = 0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(
            num_heads, window, shift, pad_first, mask_penalty, False, drop_rate, **kwargs
        )
        self.pretrained_window = pretrained_window
        self.has_bias = qkv_bias

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "qkv_bias": self.has_bias}

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        shape, biases = input_shape[-1:], ("q_bias", "v_bias") if self.has_bias else ()
        for name in biases:
            setattr(self, name, self.add_weight(shape=shape, initializer="zeros", name=name))
        # Logits of up to 100 need float32.
        self.logit_scale = self.add_weight(
            shape=(self.num_heads, 1, 1),
            initializer=keras.initializers.Constant(math.log(10)),
            autocast=False,
            name="logit_scale",
        )

    def make_bias(self) -> None:
        """Make the MLP from distances to biases."""
        self.cpb_mlp_0 = self.child(BiasDense, (None, 2), units=512, name="cpb_mlp_0")
        options = {"units": self.num_heads, "use_bias": False}
        self.cpb_mlp_2 = self.child(BiasDense, (None, 512), name="cpb_mlp_2", **options)
        self.distances = log_distances(self.window, self.pretrained_window)

    def table(self) -> Tensor:
        return 16 * ops.sigmoid(self.cpb_mlp_2(ops.relu(self.cpb_mlp_0(self.distances))))

    def heads(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values. Queries and keys have equal lengths, but for the scale that is
        in the queries: their products are cosines, times `exp(logit_scale)`."""
        if self.packed or self.qkv.quantization_mode:
            q, k, v = ops.split(as_matrix(self.project, x), 3, axis=-1)
        else:
            q, k, v = (self.part(x, i, i + 1) for i in range(3))
            if self.has_bias:
                q, v = q + ops.cast(self.q_bias, q.dtype), v + ops.cast(self.v_bias, v.dtype)
        q, k, v = (split_heads(t, self.num_heads) for t in (q, k, v))
        scale = ops.minimum(ops.cast(self.logit_scale, "float32"), math.log(100))
        scale = ops.exp(scale) / q.shape[-1]
        return rescaled(q, scale), rescaled(k), v

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values, `(..., 3 * C)`."""
        x = self.qkv(x)
        if not self.has_bias:
            return x
        q, v = (ops.convert_to_tensor(bias) for bias in (self.q_bias, self.v_bias))
        return x + ops.cast(ops.concatenate([q, ops.zeros_like(q), v]), x.dtype)


@register
class BiasDense(Layer):
    """A dense layer that computes in float32 under any policy, `(N, I) -> (N, units)`, because its
    outputs are added to logits.

    Args:
        units: width of the output.
        use_bias: whether to add a bias.
    """

    def __init__(self, units: int, use_bias: bool = True, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.units = units
        self.use_bias = use_bias

    def build(self, input_shape: Shape) -> None:
        shape = (input_shape[-1], self.units)
        options = {"autocast": False, "name": "kernel"}
        self.kernel = self.add_weight(shape=shape, initializer=initial(), **options)
        self.bias = None
        if self.use_bias:
            options["name"] = "bias"
            self.bias = self.add_weight(shape=shape[1:], initializer="zeros", **options)

    def call(self, x: Tensor) -> Tensor:
        x = ops.matmul(ops.convert_to_tensor(x), ops.cast(self.kernel, "float32"))
        return x if self.bias is None else x + ops.cast(self.bias, "float32")


def rescaled(x: Tensor, scale: Tensor = 1.0) -> Tensor:
    """Vectors `(..., d)` of the length sqrt(d) * scale; zeros stay zeros.

    The mean of the squares, not their sum: TFLite's converter would make an operation of that which
    XNNPACK does not have.
    """
    wide = ops.cast(x, "float32")
    squared = ops.maximum(ops.mean(ops.square(wide), axis=-1, keepdims=True), 1e-24)
    return ops.cast(wide * (ops.rsqrt(squared) * scale), x.dtype)


def log_distances(window: Sequence[int], pretrained: int = 0) -> np.ndarray:
    """Distances of two tokens in logarithmic steps, `((2h - 1) * (2w - 1), 2)` float32.

    The largest distance of the pretrained window is 8 before the logarithm (in timm as in
    Microsoft's code; equation 4 of https://arxiv.org/abs/2111.09883 has no factors).
    """
    lines = (8 * np.arange(1 - n, n) / max((pretrained or n) - 1, 1) for n in window)
    grid = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2)
    return (np.sign(grid) * np.log2(np.abs(grid) + 1) / math.log2(8)).astype("float32")

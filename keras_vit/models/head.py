"""How a classifier reads its backbone: a pooling, one object for each kind, and what follows it."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_vit.layers import lora
from keras_vit.layers.attention import AttentionPool
from keras_vit.layers.base import KeepsFrozen, Layer, initial, register
from keras_vit.layers.mlp import activation
from keras_vit.layers.norm import normalization
from keras_vit.layers.pool import SequencePool
from keras_vit.layers.tokens import as_tokens
from keras_vit.models.base import Backbone
from keras_vit.types import Tensor


class Pooling(abc.ABC):
    """A way from the backbone's output, `(B, prefix + N, D)` tokens, to features, `(B, D)`.

    A feature map `(B, H, W, D)` is read as H * W tokens, row by row.

    Args:
        backbone: whose output it reads.
        include_prefix: whether a pool over patches has the prefix tokens in it, too.

    Attributes:
        name: as the argument `pooling` has it, and timm's `global_pool`.
        linear: whether the features are a linear function of the tokens, of each channel by itself.
        reads: what it reads, in words.
    """

    name: ClassVar[str]
    linear: ClassVar[bool] = True
    reads: ClassVar[str]

    def __init__(self, backbone: Backbone, include_prefix: bool = False):
        self.backbone = backbone
        self.first = 0 if include_prefix else backbone.num_prefix_tokens

    @abc.abstractmethod
    def __call__(self) -> Tensor:
        """The features, `(B, D)`, in the classifier's graph."""

    @abc.abstractmethod
    def weights(self, shape: tuple[int, int], tokens: Callable[[], Tensor]) -> np.ndarray:
        """The part of each token in what the head reads: (B, prefix + N) float32; rows sum to 1.

        Args:
            shape: (B, prefix + N).
            tokens: a function that gives the backbone's output, `(B, prefix + N, D)`, for poolings
                whose weights depend on it.
        """

    def readers(self, dense: Sequence[keras.layers.Dense]) -> Sequence[keras.layers.Dense]:
        """The dense layers that read the backbone's last norm, and all that does.

        Args:
            dense: those that follow the pooling. Where it is linear, they read the norm as if there
                were no pooling.
        """
        return dense

    def tokens(self) -> Tensor:
        """The tokens over which it pools, of a feature map, too."""
        x = self.backbone.output
        if len(x.shape) == 4:
            x = Tokens(dtype=self.backbone.dtype_policy, name="tokens")(x)
        return x[:, self.first :] if self.first else x


@register
class Tokens(Layer):
    """`as_tokens` as a layer, for maps of unknown size, too."""

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        rows, columns = x.shape[1:3]
        count = None if None in (rows, columns) else rows * columns
        return keras.KerasTensor((x.shape[0], count, x.shape[3]), self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        return as_tokens(x)


def check_token(name: str, backbone: Backbone) -> None:
    if not backbone.num_prefix_tokens:
        raise ValueError(f'pooling="{name}" needs a class token. Use "avg" or "map".')


class Token(Pooling):
    """The class token (equation 4 of https://arxiv.org/abs/2010.11929); of several leading tokens
    (DeiT's distillation token) each by itself."""

    name = "token"
    reads = "the class token"

    def __init__(self, backbone: Backbone, include_prefix: bool = False, count: int = 1):
        super().__init__(backbone, include_prefix)
        check_token(self.name, backbone)
        self.count = count

    def __call__(self) -> Tensor:
        x = self.backbone.leading_tokens(self.count)
        tokens = ops.split(x, self.count, axis=1) if self.count > 1 else [x]
        rows = [ops.reshape(token, (-1, x.shape[-1])) for token in tokens]
        return rows[0] if self.count == 1 else tuple(rows)

    def weights(self, shape: tuple[int, int], tokens: Callable[[], Tensor]) -> np.ndarray:
        weights = np.zeros(shape, "float32")
        weights[:, : self.count] = 1 / self.count
        return weights


class Average(Pooling):
    """The mean of the patch tokens."""

    name = "avg"
    reads = "the mean of all patches"

    def __call__(self) -> Tensor:
        x = self.backbone.output
        if len(x.shape) == 4:
            options = {"data_format": "channels_last", "dtype": "float32", "name": "pool"}
            return keras.layers.GlobalAveragePooling2D(**options)(x)
        layer = keras.layers.GlobalAveragePooling1D(dtype="float32", name="pool")
        return layer(self.tokens())

    def weights(self, shape: tuple[int, int], tokens: Callable[[], Tensor]) -> np.ndarray:
        weights = np.zeros(shape, "float32")
        weights[:, self.first :] = 1 / (shape[1] - self.first)
        return weights


class TokenAndAverage(Average):
    """The class token and the mean of the patch tokens, joined to 2D (DINOv2 in transformers). Both
    count as halves of what the head reads."""

    name = "token_avg"
    reads = "the class token and, by halves, the mean of all patches"

    def __init__(self, backbone: Backbone, include_prefix: bool = False):
        super().__init__(backbone, include_prefix)
        check_token(self.name, backbone)
        self.token = Token(backbone)

    def __call__(self) -> Tensor:
        return ops.concatenate([float32(self.backbone.output[:, 0]), super().__call__()], axis=-1)

    def weights(self, shape: tuple[int, int], tokens: Callable[[], Tensor]) -> np.ndarray:
        return (self.token.weights(shape, tokens) + super().weights(shape, tokens)) / 2


class PrefixTokens(Pooling):
    """All tokens before the patches, joined to prefix * D: several class tokens, for instance those
    of `reg_tokens`."""

    name = "tokens"
    reads = "all tokens before the patches, in equal parts"

    def __init__(self, backbone: Backbone, include_prefix: bool = False):
        super().__init__(backbone)
        check_token(self.name, backbone)

    def __call__(self) -> Tensor:
        x = self.backbone.leading_tokens(self.first)
        return ops.reshape(float32(x), (-1, self.first * x.shape[-1]))

    def weights(self, shape: tuple[int, int], tokens: Callable[[], Tensor]) -> np.ndarray:
        weights = np.zeros(shape, "float32")
        weights[:, : self.first] = 1 / self.first
        return weights


class ByAttention(Pooling):
    """The mean of the patch tokens, weighted by attention (https://arxiv.org/abs/2104.05704)."""

    name = "seq"
    linear = False
    reads = "the patches by their weights"

    def __call__(self) -> Tensor:
        self.layer = SequencePool(dtype="float32", name="seq_pool")
        return self.layer(self.tokens())

    def weights(self, shape: tuple[int, int], tokens: Callable[[], Tensor]) -> np.ndarray:
        weights = np.zeros(shape, "float32")
        scores = ops.convert_to_numpy(self.layer.scores(tokens()[:, self.first :]))
        weights[:, self.first :] = scores[:, 0]
        return weights

    def readers(self, dense: Sequence[keras.layers.Dense]) -> Sequence[keras.layers.Dense]:
        return [*self.layer.readers, *dense]


class Map(Pooling):
    """Multi-head attention pooling (https://arxiv.org/abs/2106.04560)."""

    name = "map"
    linear = False
    reads = "the pooling query"

    def __call__(self) -> Tensor:
        names = ("num_heads", "mlp_ratio", "activation", "norm_eps")
        own = {name: self.backbone.option(f"attn_pool_{name}") for name in names}
        found = {name: own[name] or last(self.backbone.option(name)) for name in names}
        options = {name: value for name, value in found.items() if value is not None}
        dtype = self.backbone.dtype_policy
        self.layer = AttentionPool(**options, dtype=dtype, name="attn_pool")
        return self.layer(self.tokens())

    def weights(self, shape: tuple[int, int], tokens: Callable[[], Tensor]) -> np.ndarray:
        weights = np.zeros(shape, "float32")
        scores = ops.convert_to_numpy(self.layer.scores(tokens()[:, self.first :]))
        weights[:, self.first :] = scores.mean(axis=1)[:, 0]
        return weights

    def readers(self, dense: Sequence[keras.layers.Dense]) -> Sequence[keras.layers.Dense]:
        return self.layer.readers


def last(value: Any) -> Any:
    """An option of the last stage, where there is one for each stage."""
    return value[-1] if isinstance(value, tuple) else value


KINDS = (Token, Average, TokenAndAverage, PrefixTokens, ByAttention, Map)
POOLINGS = {cls.name: cls for cls in KINDS}


def pooling(name: str) -> type[Pooling]:
    """The class of a pooling.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}. Received: {name!r}")
    return POOLINGS[name]


def norm(backbone: Backbone, x: Tensor, epsilon: float | None = None) -> Tensor:
    """`fc_norm`: of the kind of the backbone's norms, for one that ends without."""
    kind = backbone.option("norm") or "layer"
    epsilon = epsilon or backbone.option("norm_eps") or 1e-6
    return normalization(kind, epsilon=epsilon, dtype="float32", name="fc_norm")(x)


def pre_logits(x: Tensor, width: int, function: str) -> Tensor:
    """`pre_logits`: a dense layer and an activation before the head, `(B, D) -> (B, width)`."""
    act = keras.activations.tanh if function == "tanh" else activation(function)
    x = dense(width, "pre_logits")(x)
    return act(x)


def dropout(x: Tensor, rate: float) -> Tensor:
    return keras.layers.Dropout(rate, dtype="float32", name="head_drop")(x)


@register
class Dense(KeepsFrozen, lora.Dense):
    """The dense layer of a head. Its class names its weights in a saved file: `layers/dense`."""


def dense(units: int, name: str) -> keras.layers.Dense:
    # float32 under any policy: a half-precision logit costs accuracy and saves nothing.
    return Dense(units, kernel_initializer=initial(), dtype="float32", name=name)


def float32(x: Tensor) -> Tensor:
    return x if x.dtype == "float32" else ops.cast(x, "float32")

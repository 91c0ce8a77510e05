"""What is left out at random in training: branches (stochastic depth) and patches."""

from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import Layer, register
from keras_vit.layers.tokens import take
from keras_vit.types import Tensor


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Stochastic depth rates that grow linearly from 0 to `last` over `depth` blocks.

    As in timm: the linear decay rule of https://arxiv.org/abs/1603.09382, section 3, except that
    the first block has rate 0.
    """
    return [last * i / max(depth - 1, 1) for i in range(depth)]


class Random(Layer):
    """Base class of layers that leave something out in training: same shape, no weights."""

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in the range [0, 1). Received: rate={rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed) if rate else None
        self.built = True

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)


@register
class DropPath(Random):
    """Stochastic depth (https://arxiv.org/abs/1603.09382): `(B, ...) -> (B, ...)`.

    In training, sets each sample to zero with probability `rate` and divides the others by
    `1 - rate`. In inference, returns the input.

    Args:
        rate: probability of dropping a sample, 0 <= rate < 1.
        seed: seed of the random numbers, or None.

    Raises:
        ValueError: if `rate` is out of range.
    """

    def __init__(self, rate: float = 0.0, seed: int | None = None, **kwargs: Any):
        super().__init__(rate, seed, **kwargs)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        if not training or not self.rate:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        keep = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator) >= self.rate
        return x * ops.cast(ops.cast(keep, "float32") / (1.0 - self.rate), x.dtype)


@register
class PatchDropout(Random):
    """Patch dropout (https://arxiv.org/abs/2208.07220): in training, `(B, prefix + N, D) -> (B,
    prefix + n, D)` with n = N (1 - rate), at least 1, random patches of each sample.

    In inference, returns the input. Prefix tokens stay. As in timm, nothing is scaled.

    Args:
        rate: the part of the patches to leave out, 0 <= rate < 1.
        num_prefix_tokens: the number of tokens before the patches.
        seed: seed of the random numbers, or None.

    Raises:
        ValueError: if `rate` is out of range.
    """

    def __init__(
        self, rate: float, num_prefix_tokens: int = 0, seed: int | None = None, **kwargs: Any
    ):
        super().__init__(rate, seed, **kwargs)
        self.num_prefix_tokens = num_prefix_tokens

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        if not training or not self.rate:
            return x
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        count = patches.shape[1]
        if count is None:
            raise ValueError(
                "Patches can be dropped from images of a known size only. Received: "
                "image_size=None with patch_drop_rate"
            )
        noise = keras.random.uniform((ops.shape(x)[0], count), seed=self.seed_generator)
        kept = ops.argsort(noise, axis=1)[:, : max(int(count * (1 - self.rate)), 1)]
        return ops.concatenate([prefix, take(patches, kept)], axis=1)

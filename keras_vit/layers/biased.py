"""Self-attention with a bias for each distance of two patches, its own or shared by all blocks."""

from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import Layer, arguments, register
from keras_vit.layers.relative import REL_POS
from keras_vit.layers.rotary import RotaryAttention
from keras_vit.types import Shape, Tensor


def position(layer: Layer, kind: str, name: str, **options: Any) -> Layer:
    """Make the layer of a bias, `name`, in another layer.

    Args:
        layer: the other layer.
        kind: a key of `REL_POS`.
        **options: arguments of its class; `rel_pos_dim` is for `"mlp"` only.
    """
    if kind != "mlp":
        options.pop("rel_pos_dim")
    return layer.child(REL_POS[kind], shape=(), name=name, **options)


@register
class SharedBias(Layer):
    """The relative position bias of all blocks, `(1, heads, N, N)`; it takes the images, unread.

    Args:
        kind: a key of `REL_POS`.
        num_heads, window, class_token, rel_pos_dim: as in `RelativeMLP`.
    """

    def __init__(
        self,
        kind: str,
        num_heads: int,
        window: tuple[int, int],
        class_token: bool = False,
        rel_pos_dim: int = 128,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.kind = kind
        self.num_heads = num_heads
        self.window = tuple(window)
        self.class_token = class_token
        self.rel_pos_dim = rel_pos_dim

    def build(self, input_shape: Shape) -> None:
        names = ("num_heads", "window", "class_token", "rel_pos_dim")
        options = {name: getattr(self, name) for name in names}
        self.position = position(self, self.kind, "rel_pos", **options)

    def compute_output_spec(self, images: Tensor) -> keras.KerasTensor:
        count = self.window[0] * self.window[1] + int(self.class_token)
        return keras.KerasTensor((1, self.num_heads, count, count), self.compute_dtype)

    def call(self, images: Tensor) -> Tensor:
        return ops.cast(self.position.bias(), self.compute_dtype)


@register
class BiasedAttention(RotaryAttention):
    """Multi-head self-attention with a relative position bias: `(B, N, D) -> (B, N, D)`.

    Args:
        window: (h, w), the grid of the patches.
        class_token: whether a class token precedes them.
        rel_pos: kind of the layer's own bias, a key of `REL_POS`; None: it has none.
        rel_pos_dim: as in `RelativeMLP`.
        num_heads, key_bias and the others: as in `RotaryAttention`.

    Call arguments:
        bias: the output of `SharedBias`, or None.
        x, queries: as in `Attention`.
    """

    def __init__(
        self,
        num_heads: int,
        window: tuple[int, int],
        class_token: bool = False,
        rel_pos: str | None = None,
        rel_pos_dim: int = 128,
        **kwargs: Any,
    ):
        super().__init__(num_heads, **kwargs)
        self.window = tuple(window)
        self.class_token = class_token
        self.rel_pos = rel_pos
        self.rel_pos_dim = rel_pos_dim

    def get_config(self) -> dict[str, Any]:
        own = arguments(RotaryAttention.__init__)
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.position = None
        if self.rel_pos is not None:
            names = ("num_heads", "window", "class_token", "rel_pos_dim")
            options = {name: getattr(self, name) for name in names}
            self.position = position(self, self.rel_pos, "rel_pos", **options)

    def total(self, bias: Tensor, queries: int | None = None) -> Tensor:
        """The layer's own and the shared bias, `(1, heads, queries, N)`."""
        parts = [] if self.position is None else [self.position.bias()]
        parts += [] if bias is None else [bias]
        found = sum(ops.cast(part, "float32") for part in parts) if parts else None
        return found if found is None or queries is None else found[:, :, :queries]

    def scores(
        self, x: Tensor, bias: Tensor = None, attention_mask: Tensor = None, rope: Tensor = None
    ) -> Tensor:
        return super().scores(x, self.total(bias), attention_mask, rope)

    def call(
        self,
        x: Tensor,
        queries: int | None = None,
        bias: Tensor = None,
        attention_mask: Tensor = None,
        training: bool | None = None,
        rope: Tensor = None,
    ) -> Tensor:
        bias = self.total(bias, queries)
        return super().call(x, queries, bias, attention_mask, training, rope)

"""Swin Transformer V2 (https://arxiv.org/abs/2111.09883): cosine attention, a continuous bias of
positions, and norms at the end of the residual branches.

`SwinV2Block` is figure 1 (right); the stages are Swin's.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras

from keras_vit import checks
from keras_vit.layers.base import Norm, Scale, arguments, register
from keras_vit.layers.window_attention import CosineAttention, WindowAttention
from keras_vit.models.swin import Swin, SwinBackbone, SwinBlock
from keras_vit.types import Shape, Tensor


@register
class SwinV2Block(SwinBlock):
    """Attention in windows and an MLP, each before a norm: `(B, H, W, C) -> (B, H, W, C)`.

    Args:
        pretrained_window, mask_penalty: as in `CosineAttention`.
        num_heads and the others: as in `SwinBlock`.
    """

    def __init__(
        self,
        num_heads: int,
        window: Sequence[int],
        shift: Sequence[int] = (0, 0),
        pretrained_window: int = 0,
        mask_penalty: float = 100.0,
        **kwargs: Any,
    ):
        super().__init__(num_heads, window, shift, **kwargs)
        self.pretrained_window = pretrained_window
        self.mask_penalty = mask_penalty

    def norm(self, name: str, shape: Shape, **options: Any) -> keras.layers.Layer:
        """Make a norm. At first it gives zeros, so that the block changes nothing, as in timm."""
        return super().norm(name, shape, gamma_initializer="zeros", **options)

    def get_config(self) -> dict[str, Any]:
        inherited = arguments(SwinBlock.__init__)
        return {**super().get_config(), **{name: getattr(self, name) for name in inherited}}

    def attention(self, input_shape: Shape) -> WindowAttention:
        options = {name: getattr(self, name) for name in ("pretrained_window", "mask_penalty")}
        return self.child(CosineAttention, input_shape, name="attn", **self.windowed(), **options)

    def links(self) -> Iterable[Norm | Scale]:
        return ()  # no dense layer reads a norm alone

    def scores(self, x: Tensor) -> Tensor:
        """The attention map for the block's input: `(B, H, W, C) -> (B, heads, H * W, H * W)`,
        float32; 0 outside the windows."""
        return self.attn.scores(x)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        x = x + self.skip(self.norm1(self.attn(x, training=training)), training=training)
        return x + self.skip(self.norm2(self.mlp(x, training=training)), training=training)


@register
class SwinV2Backbone(SwinBackbone):
    """Swin V2 backbone, images to a feature map: `(B, H, W, C) -> (B, H / (8 * P), W / (8 * P), 8 *
    D)` for four stages.

    Args:
        pretrained_window_sizes: for each stage the edge of the windows that it was first trained
            with; 0: that of its own. The bias of positions is a function of distances in relation
            to it.
        mask_penalty: subtracted from the logits of tokens that share a window, but are not
            neighbours. transformers subtracts 100 twice.
        image_size and the others: as in `SwinBackbone`.

    Raises:
        TypeError, ValueError: as in `SwinBackbone`.
    """

    block_cls = SwinV2Block
    norm_first = False
    passes_on: ClassVar[tuple[Callable, ...]] = (
        SwinBackbone.graph,
        SwinV2Block.__init__,
        SwinBlock.__init__,
    )
    given = (*SwinBackbone.given, "pretrained_window")

    @classmethod
    def graph(
        cls, *, pretrained_window_sizes: Sequence[int] = (0, 0, 0, 0), **options: Any
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return super().graph(pretrained_window_sizes=pretrained_window_sizes, **options)

    @staticmethod
    def of_stage(index: int, block: dict[str, Any]) -> dict[str, Any]:
        block = dict(block)
        sizes = block.pop("pretrained_window_sizes")
        return {**block, "pretrained_window": sizes[index]}

    @classmethod
    def complete(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        full = super().complete(options)
        stages, sizes = len(full["depths"]), full["pretrained_window_sizes"]
        if not any(sizes):
            sizes = (0,) * stages
        if len(sizes) != stages:
            raise checks.WrongValue(
                f"pretrained_window_sizes must have one number for each of {stages} stages. "
                f"Received: {sizes!r:.80}"
            )
        return {**full, "pretrained_window_sizes": sizes}

    @staticmethod
    def of_attention(
        shapes: Mapping[str, tuple[int, ...]], first: Sequence[str], patch: int
    ) -> dict[str, Any]:
        scales = (checks.shape(shapes, f"{prefix}attn.logit_scale", 3) for prefix in first)
        return {"num_heads": tuple(heads for heads, *_ in scales)}


@register
class SwinV2(Swin):
    __doc__ = Swin.__doc__
    backbone_cls = SwinV2Backbone

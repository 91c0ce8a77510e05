"""gMLP: "Pay Attention to MLPs" (https://arxiv.org/abs/2105.08050). An MLP-Mixer in which a gating
unit inside the MLP mixes the tokens."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import keras
from keras import ops

from keras_vit.layers.base import Layer, Norm, Scale, initial, register
from keras_vit.layers.block import Block
from keras_vit.layers.drop import DropPath
from keras_vit.layers.lora import Dense
from keras_vit.layers.mlp import activation
from keras_vit.layers.norm import normalization
from keras_vit.models.mixer import MLPMixer, MLPMixerBackbone, over_tokens
from keras_vit.types import Shape, Tensor


@register
class SpatialGate(Layer):
    """Spatial gating unit: `(B, N, 2D) -> (B, N, D)`.

    One half of the channels, normalized and projected over the tokens, is the gate of the other
    half (section 2.1 of the paper).
    """

    def build(self, input_shape: Shape) -> None:
        batch, tokens, width = input_shape
        shape = (batch, tokens, width // 2)
        self.norm = self.child(normalization, shape, epsilon=1e-5, name="norm")
        dense = {"units": tokens, "bias_initializer": "ones", "name": "proj"}
        self.proj = self.child(Dense, (batch, width // 2, tokens), **dense)

    def call(self, x: Tensor) -> Tensor:
        u, v = ops.split(x, 2, axis=-1)
        return u * over_tokens(self.proj, self.norm(v))


@register
class GatedMlp(Layer):
    """MLP with a spatial gating unit, `fc2(gate(act(fc1(x))))`: `(B, N, D) -> (B, N, D)`.

    Args:
        hidden: width of `fc1`; the gate halves it.
        activation: as in `Mlp`.
    """

    def __init__(self, hidden: int, activation: str = "gelu", **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.activation = activation

    def build(self, input_shape: Shape) -> None:
        *outer, width = input_shape
        dense = {"layer": Dense, "kernel_initializer": initial()}
        self.fc1 = self.child(shape=input_shape, units=self.hidden, name="fc1", **dense)
        self.gate = self.child(SpatialGate, (*outer, self.hidden), name="gate")
        half = (*outer, self.hidden // 2)
        self.fc2 = self.child(shape=half, units=width, name="fc2", **dense)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        return self.fc2(self.gate(activation(self.activation)(self.fc1(x))))


@register
class GatingBlock(Block):
    """gMLP block, `x + GatedMlp(norm(x))`: `(B, N, D) -> (B, N, D)` (figure 1 of the paper).

    Args:
        mlp_ratio: hidden width of the MLP, divided by D.
        activation: as in `Mlp`.
        drop_path: stochastic depth rate.
    """

    def __init__(
        self,
        mlp_ratio: float = 6.0,
        activation: str = "gelu",
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.mlp_ratio = mlp_ratio
        self.activation = activation
        self.drop_path = drop_path

    def build(self, input_shape: Shape) -> None:
        mlp = {"hidden": int(input_shape[-1] * self.mlp_ratio), "activation": self.activation}
        self.first_norm = self.child(normalization, input_shape, epsilon=1e-6, name="norm")
        self.mlp_channels = self.child(GatedMlp, input_shape, name="mlp_channels", **mlp)
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def links(self) -> Iterable[Norm | Scale]:
        yield self.first_norm.read_by(self.mlp_channels.fc1)

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        return x + self.skip(self.mlp_channels(self.first_norm(x)), training=training)


@register
class GMLPBackbone(MLPMixerBackbone):
    """gMLP backbone, images to tokens: `(B, H, W, C) -> (B, N, D)`, N = (H / P) * (W / P).

    The weights depend on N, so a model accepts images of one size only.

    Args:
        image_size: int or (height, width), in pixels.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D.
        depth: number of blocks.
        drop_path_rate: stochastic depth rate of every block.
        dtype: Keras dtype policy.
        mlp_ratio, activation: as in `GatingBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the image.
    """

    block_cls = GatingBlock
    passes_on: ClassVar[tuple[Callable, ...]] = (GatingBlock.__init__,)


@register
class GMLP(MLPMixer):
    """gMLP classifier. The arguments are those of `ViT`; `pooling` defaults to `"avg"`."""

    backbone_cls = GMLPBackbone

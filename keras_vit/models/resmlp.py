"""ResMLP (https://arxiv.org/abs/2105.03404): an MLP-Mixer with a single linear layer over the
tokens, and affine transformations instead of norms."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import keras

from keras_vit.layers.base import Layer, Norm, Scale, register
from keras_vit.layers.block import Block, LayerScale
from keras_vit.layers.drop import DropPath
from keras_vit.layers.lora import Dense
from keras_vit.layers.mlp import Mlp
from keras_vit.models.mixer import MLPMixer, MLPMixerBackbone, over_tokens
from keras_vit.types import Shape, Tensor


@register
class Affine(Layer):
    """Learned scale and shift per channel: `(..., D) -> (..., D)` (equation 1 of the paper)."""

    def build(self, input_shape: Shape) -> None:
        shape = (1, 1, input_shape[-1])
        self.alpha = self.add_weight(shape=shape, initializer="ones", name="alpha")
        self.shift = self.add_weight(shape=shape, initializer="zeros", name="shift")

    def read_by(self, *readers: keras.layers.Layer) -> Norm:
        """The scale and shift, to be folded into the dense layers, the only readers."""
        return Norm(self.alpha, self.shift, readers)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        return x * self.alpha + self.shift


@register
class ResMLPBlock(Block):
    """A linear layer over the tokens, then an MLP over the channels: `(B, N, D) -> (B, N, D)`.

    Both branches have LayerScale. Figure 1 and equations 2 and 3 of the paper.

    Args:
        mlp_ratio: hidden width of the MLP, divided by D.
        activation: as in `Mlp`.
        init_values: initial value of LayerScale.
        drop_rate: dropout rate in the MLP.
        drop_path: stochastic depth rate.
    """

    def __init__(
        self,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        init_values: float = 1e-4,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.mlp_ratio = mlp_ratio
        self.activation = activation
        self.init_values = init_values
        self.drop_rate = drop_rate
        self.drop_path = drop_path

    def build(self, input_shape: Shape) -> None:
        batch, tokens, width = input_shape
        transposed = (batch, width, tokens)
        mlp = {"ratio": self.mlp_ratio, "activation": self.activation, "drop_rate": self.drop_rate}
        self.norm1 = self.child(Affine, input_shape, name="norm1")
        dense = {"units": tokens, "name": "linear_tokens"}
        self.linear_tokens = self.child(Dense, transposed, **dense)
        self.ls1 = self.layer_scale(input_shape, "ls1")
        self.norm2 = self.child(Affine, input_shape, name="norm2")
        self.mlp_channels = self.child(Mlp, input_shape, name="mlp_channels", **mlp)
        self.ls2 = self.layer_scale(input_shape, "ls2")
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def layer_scale(self, input_shape: Shape, name: str) -> LayerScale:
        """Make a LayerScale."""
        return self.child(LayerScale, input_shape, init_values=self.init_values, name=name)

    def links(self) -> Iterable[Norm | Scale]:
        yield self.norm2.read_by(*self.mlp_channels.readers)
        yield self.ls2.after(self.mlp_channels.fc2)

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        tokens = self.ls1(over_tokens(self.linear_tokens, self.norm1(x)))
        x = x + self.skip(tokens, training=training)
        channels = self.ls2(self.mlp_channels(self.norm2(x), training=training))
        return x + self.skip(channels, training=training)


@register
class ResMLPBackbone(MLPMixerBackbone):
    """ResMLP backbone, images to tokens: `(B, H, W, C) -> (B, N, D)`, N = (H / P) * (W / P).

    The weights depend on N, so a model accepts images of one size only.

    Args:
        image_size: int or (height, width), in pixels.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D.
        depth: number of blocks.
        drop_path_rate: stochastic depth rate of every block.
        dtype: Keras dtype policy.
        mlp_ratio, activation and the others: as in `ResMLPBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the image.
    """

    block_cls = ResMLPBlock
    passes_on: ClassVar[tuple[Callable, ...]] = (ResMLPBlock.__init__,)
    norm = Affine


@register
class ResMLP(MLPMixer):
    """ResMLP classifier. The arguments are those of `ViT`; `pooling` defaults to `"avg"`."""

    backbone_cls = ResMLPBackbone

"""MLP-Mixer (https://arxiv.org/abs/2105.01601): MLPs over the tokens in place of attention.

timm's gMixer is the same model with gated MLPs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_vit import checks
from keras_vit.layers.base import Layer, Norm, Scale, initial, register
from keras_vit.layers.block import Block
from keras_vit.layers.drop import DropPath
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import check_divides, pair
from keras_vit.models.base import Backbone, Resizer
from keras_vit.models.classifier import AverageClassifier
from keras_vit.resize import resize_patches
from keras_vit.types import Shape, Size, Tensor


def over_tokens(layer: Layer, x: Tensor) -> Tensor:
    """Apply a layer along the token axis: `(B, N, D) -> (B, N, D)`."""
    return ops.transpose(layer(ops.transpose(x, (0, 2, 1))), (0, 2, 1))


@register
class MixerBlock(Block):
    """Mixer layer: an MLP over the tokens, then one over the channels, `(B, N, D) -> (B, N, D)`.

    Figure 1 and equation 1 of the paper.

    Args:
        mlp_ratio: hidden width of the MLP over the channels, divided by D.
        token_ratio: hidden width of the MLP over the tokens, divided by D.
        activation, gate: as in `Mlp`.
        drop_rate: dropout rate in the MLPs.
        drop_path: stochastic depth rate.
    """

    def __init__(
        self,
        mlp_ratio: float = 4.0,
        token_ratio: float = 0.5,
        activation: str = "gelu",
        gate: str | None = None,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.mlp_ratio = mlp_ratio
        self.token_ratio = token_ratio
        self.activation = activation
        self.gate = gate
        self.drop_rate = drop_rate
        self.drop_path = drop_path

    def build(self, input_shape: Shape) -> None:
        batch, tokens, width = input_shape
        hidden = int(width * self.token_ratio) + 0.5  # so that int(tokens * ratio) rounds to it
        self.norm1 = self.child(normalization, input_shape, epsilon=1e-6, name="norm1")
        self.mlp_tokens = self.mlp("mlp_tokens", hidden / tokens, (batch, width, tokens))
        self.norm2 = self.child(normalization, input_shape, epsilon=1e-6, name="norm2")
        self.mlp_channels = self.mlp("mlp_channels", self.mlp_ratio, input_shape)
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def mlp(self, name: str, ratio: float, shape: Shape) -> Mlp:
        """Make an MLP for inputs of that shape."""
        options = {"activation": self.activation, "gate": self.gate, "drop_rate": self.drop_rate}
        return self.child(Mlp, shape, ratio=ratio, name=name, **options)

    def links(self) -> Iterable[Norm | Scale]:
        yield self.norm2.read_by(*self.mlp_channels.readers)

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        x = x + self.skip(over_tokens(self.mlp_tokens, self.norm1(x)), training=training)
        x = x + self.skip(self.mlp_channels(self.norm2(x), training=training), training=training)
        return x


@register
class PatchProjection(Layer):
    """Patch projection: `(B, H, W, C) -> (B, N, D)`.

    There is no position embedding: the MLPs over the tokens depend on the order of the tokens.

    Args:
        embed_dim: D.
        patch_size: P, in pixels; must divide height and width.

    Raises:
        ValueError: if the patch size does not divide the image.
    """

    def __init__(self, embed_dim: int, patch_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.patch_size = patch_size

    def build(self, input_shape: Shape) -> None:
        check_divides(self.patch_size, *input_shape[1:3])
        self.count = (input_shape[1] // self.patch_size) * (input_shape[2] // self.patch_size)
        self.proj = self.child(
            keras.layers.Conv2D,
            input_shape,
            filters=self.embed_dim,
            kernel_size=self.patch_size,
            strides=self.patch_size,
            kernel_initializer=initial(),
            data_format="channels_last",
            name="proj",
        )

    def call(self, x: Tensor) -> Tensor:
        return ops.reshape(self.proj(x), (-1, self.count, self.embed_dim))


@register
class MLPMixerBackbone(Backbone):
    """MLP-Mixer backbone, images to tokens: `(B, H, W, C) -> (B, N, D)`, N = (H / P) * (W / P).

    The weights depend on N, so a model accepts images of one size only.

    Args:
        image_size: int or (height, width), in pixels.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D.
        depth: number of blocks.
        drop_path_rate: stochastic depth rate of every block.
        dtype: Keras dtype policy.
        mlp_ratio, token_ratio and the others: as in `MixerBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the image.
    """

    block_cls: ClassVar[type[Block]] = MixerBlock
    passes_on: ClassVar[tuple[Callable, ...]] = (MixerBlock.__init__,)
    given = ("drop_path",)

    @classmethod
    def graph(
        cls,
        *,
        image_size: Size | None = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 512,
        depth: int = 8,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        **block: Any,
    ) -> tuple[Tensor, Tensor]:
        if image_size is None:
            raise ValueError(
                f"{cls.__name__} takes images of one size only. Received: image_size=None"
            )
        inputs = keras.Input((*pair(image_size), in_channels), name="images")
        x = PatchProjection(embed_dim, patch_size, dtype=dtype, name="stem")(inputs)
        for i in range(depth):
            x = cls.block_cls(**block, drop_path=drop_path_rate, dtype=dtype, name=f"blocks_{i}")(x)
        return inputs, cls.norm(dtype=dtype, name="norm")(x)

    @staticmethod
    def norm(**kwargs: Any) -> keras.layers.Layer:
        """Make the final norm."""
        return normalization(epsilon=1e-6, **kwargs)

    @staticmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        patch, (height, width) = options["patch_size"], pair(options["image_size"])
        check_divides(patch, height, width)
        return height // patch, width // patch

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        """Adapt the patch kernel to another number of channels.

        Raises:
            ValueError: if the image size differs: the MLPs over the tokens depend on it.
        """
        size, patch = pair(old["image_size"]), pair(old["patch_size"])
        if size != self.image_size:
            raise ValueError(
                f"These weights of {type(self).__name__} fit images of {size[0]} x {size[1]} "
                f"pixels only. Received: image_size={self.image_size}"
            )
        return {"stem/proj/kernel": lambda x, shape: resize_patches(x, shape, patch)}

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        width, channels, patch, _ = checks.shape(shapes, "stem.proj.weight", 4)
        token_hidden, tokens = checks.shape(shapes, "blocks.0.mlp_tokens.fc1.weight", 2)
        hidden = checks.shape(shapes, "blocks.0.mlp_channels.fc1.weight", 2)[0]
        return {
            "image_size": checks.square(tokens, "Tokens") * patch,
            "patch_size": patch,
            "in_channels": channels,
            "embed_dim": width,
            "depth": checks.repeated(shapes, "blocks.*."),
            "token_ratio": checks.ratio(token_hidden, width),
            "mlp_ratio": checks.ratio(hidden, width),
        }

    @property
    def blocks(self) -> Sequence[Block]:
        return [self.get_layer(f"blocks_{i}") for i in range(self.options["depth"])]

    @property
    def final_norm(self) -> keras.layers.Layer:
        return self.get_layer("norm")

    @property
    def first_projection(self) -> keras.layers.Conv2D:
        return self.get_layer("stem").proj


@register
class MLPMixer(AverageClassifier):
    """MLP-Mixer classifier. The arguments are those of `ViT`; `pooling` defaults to `"avg"`."""

    backbone_cls = MLPMixerBackbone

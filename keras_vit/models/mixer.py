"""MLP-Mixer (https://arxiv.org/abs/2105.01601) and its kin ResMLP
(https://arxiv.org/abs/2105.03404), gMLP (https://arxiv.org/abs/2105.08050) and gMixer: tokens are
mixed by dense layers over their axis."""

import keras
from keras import ops

from keras_vit.layers import frozen
from keras_vit.layers.base import Layer, initial, register
from keras_vit.layers.block import DropPath, LayerScale
from keras_vit.layers.mlp import Mlp, activation
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import check_divides, pair
from keras_vit.models.base import Backbone
from keras_vit.models.classifier import ImageClassifier


def over_tokens(layer, x):
    """A layer over the axis of tokens: `(B, N, D) -> (B, N, D)`."""
    return ops.transpose(layer(ops.transpose(x, (0, 2, 1))), (0, 2, 1))


class MixingBlock(Layer):
    """What the blocks share: `(B, N, D) -> (B, N, D)`.

    Args:
        mlp_ratio: hidden width of the MLP over channels, divided by D.
        token_ratio: hidden width of the MLP over tokens, divided by D.
        activation, gate: of the MLPs, see `Mlp`.
        init_values: initial LayerScale.
        drop_rate, drop_path: dropout and stochastic depth, in training only.
    """

    def __init__(
        self,
        mlp_ratio=4.0,
        token_ratio=0.5,
        activation="gelu",
        gate=None,
        init_values=1e-4,
        drop_rate=0.0,
        drop_path=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.mlp_ratio = mlp_ratio
        self.token_ratio = token_ratio
        self.activation = activation
        self.gate = gate
        self.init_values = init_values
        self.drop_rate = drop_rate
        self.drop_path = drop_path
        self.skip = self.child(DropPath, rate=drop_path, name="skip")

    def mlp(self, name, ratio, shape):
        options = {"activation": self.activation, "gate": self.gate, "drop_rate": self.drop_rate}
        layer = self.child(Mlp, ratio=ratio, name=name, **options)
        layer.build(shape)
        return layer

    def add(self, name, shape, layer=normalization, **options):
        layer = self.child(layer, name=name, **options)
        layer.build(shape)
        return layer

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, self.compute_dtype)


@register
class MixerBlock(MixingBlock):
    """An MLP over tokens, then one over channels (figure 1 of the Mixer paper)."""

    def build(self, input_shape):
        batch, tokens, width = input_shape
        self.norm1 = self.add("norm1", input_shape, epsilon=1e-6)
        hidden = int(width * self.token_ratio) + 0.5  # int(tokens * ratio) must not fall below
        self.mlp_tokens = self.mlp("mlp_tokens", hidden / tokens, (batch, width, tokens))
        self.norm2 = self.add("norm2", input_shape, epsilon=1e-6)
        self.mlp_channels = self.mlp("mlp_channels", self.mlp_ratio, input_shape)

    def call(self, x, training=None):
        x = x + self.skip(over_tokens(self.mlp_tokens, self.norm1(x)), training=training)
        x = x + self.skip(self.mlp_channels(self.norm2(x), training=training), training=training)
        return x


@register
class Affine(Layer):
    """Scale and shift per channel in a norm's place: `(..., D) -> (..., D)` (equation 1 of the
    ResMLP paper)."""

    def build(self, input_shape):
        shape = (1, 1, input_shape[-1])
        self.alpha = self.add_weight(shape=shape, initializer="ones", name="alpha")
        self.shift = self.add_weight(shape=shape, initializer="zeros", name="shift")

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x):
        return x if frozen.is_folded(self) else x * self.alpha + self.shift


@register
class ResMLPBlock(MixingBlock):
    """One linear layer over tokens, then an MLP over channels, each scaled (figure 1 of the ResMLP
    paper)."""

    def build(self, input_shape):
        batch, tokens, width = input_shape
        self.norm1 = self.add("norm1", input_shape, Affine)
        self.linear_tokens = self.add(
            "linear_tokens", (batch, width, tokens), keras.layers.Dense, units=tokens
        )
        self.ls1 = self.add("ls1", input_shape, LayerScale, init_values=self.init_values)
        self.norm2 = self.add("norm2", input_shape, Affine)
        self.mlp_channels = self.mlp("mlp_channels", self.mlp_ratio, input_shape)
        self.ls2 = self.add("ls2", input_shape, LayerScale, init_values=self.init_values)

    def call(self, x, training=None):
        tokens = self.ls1(over_tokens(self.linear_tokens, self.norm1(x)))
        x = x + self.skip(tokens, training=training)
        channels = self.ls2(self.mlp_channels(self.norm2(x), training=training))
        return x + self.skip(channels, training=training)


@register
class SpatialGate(Layer):
    """Half of the channels, mixed over tokens, gates the other: `(B, N, 2D) -> (B, N, D)` (section
    2.1 of gMLP)."""

    def build(self, input_shape):
        batch, tokens, width = input_shape
        self.norm = self.child(normalization, epsilon=1e-5, name="norm")
        self.norm.build((batch, tokens, width // 2))
        self.proj = self.child(
            keras.layers.Dense, units=tokens, bias_initializer="ones", name="proj"
        )
        self.proj.build((batch, width // 2, tokens))

    def call(self, x):
        u, v = ops.split(x, 2, axis=-1)
        return u * over_tokens(self.proj, self.norm(v))


@register
class GatingBlock(MixingBlock):
    """A dense layer, the spatial gate, a dense layer (figure 1 of the gMLP paper)."""

    def build(self, input_shape):
        hidden = int(input_shape[-1] * self.mlp_ratio)
        self.first_norm = self.add("norm", input_shape, epsilon=1e-6)
        self.mlp_channels = self.child(
            GatedMlp, hidden=hidden, activation=self.activation, name="mlp_channels"
        )
        self.mlp_channels.build(input_shape)

    def call(self, x, training=None):
        return x + self.skip(self.mlp_channels(self.first_norm(x)), training=training)


@register
class GatedMlp(Layer):
    """`fc2(gate(act(fc1(x))))` with a `SpatialGate`: `(B, N, D) -> (B, N, D)`.

    Args:
        hidden: width of fc1; the gate halves it.
        activation: see `Mlp`.
    """

    def __init__(self, hidden, activation="gelu", **kwargs):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.activation = activation

    def build(self, input_shape):
        *outer, width = input_shape
        dense = {"kernel_initializer": initial()}
        self.fc1 = self.child(keras.layers.Dense, units=self.hidden, name="fc1", **dense)
        self.fc1.build(input_shape)
        self.gate = self.child(SpatialGate, name="gate")
        self.gate.build((*outer, self.hidden))
        self.fc2 = self.child(keras.layers.Dense, units=width, name="fc2", **dense)
        self.fc2.build((*outer, self.hidden // 2))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x):
        return self.fc2(self.gate(activation(self.activation)(self.fc1(x))))


BLOCKS = {"mixer": MixerBlock, "resmlp": ResMLPBlock, "gmlp": GatingBlock}


@register
class PatchProjection(Layer):
    """Cuts and projects patches, `(B, H, W, C) -> (B, N, D)`; no positions: the token MLPs know
    them.

    Args:
        embed_dim: D.
        patch_size: in pixels; must divide height and width.
    """

    def __init__(self, embed_dim, patch_size, **kwargs):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.patch_size = patch_size

    def build(self, input_shape):
        check_divides(self.patch_size, *input_shape[1:3])
        self.grid_size = tuple(size // self.patch_size for size in input_shape[1:3])
        self.proj = self.child(
            keras.layers.Conv2D,
            filters=self.embed_dim,
            kernel_size=self.patch_size,
            strides=self.patch_size,
            kernel_initializer=initial(),
            data_format="channels_last",
            name="proj",
        )
        self.proj.build(input_shape)

    def call(self, x):
        return ops.reshape(
            self.proj(x), (-1, self.grid_size[0] * self.grid_size[1], self.embed_dim)
        )


@register
class MLPMixerBackbone(Backbone):
    """Images to tokens: `(B, H, W, C) -> (B, N, D)`; the size of the image is fixed by the weights.

    Args:
        image_size, patch_size, in_channels, embed_dim, depth: as in `ViTBackbone`.
        kind: `"mixer"` (also gMixer, with `gate`), `"resmlp"` or `"gmlp"`.
        drop_path_rate: stochastic depth of every block.
        dtype: a Keras dtype policy.
        **block: the arguments of `MixingBlock`: mlp_ratio, token_ratio ...
    """

    block = MixingBlock
    num_prefix_tokens = 0
    fixed_size = True  # the token MLPs have a weight for each patch

    @staticmethod
    def graph(
        image_size=224,
        patch_size=16,
        in_channels=3,
        embed_dim=512,
        depth=8,
        kind="mixer",
        drop_path_rate=0.0,
        dtype=None,
        **block,
    ):
        if kind not in BLOCKS:
            raise ValueError(f"kind must be one of {', '.join(BLOCKS)}. Received: {kind!r}")
        if image_size is None:
            raise ValueError("An MLP-Mixer takes images of one size. Received: image_size=None")
        inputs = keras.Input((*pair(image_size), in_channels), name="images")
        x = PatchProjection(embed_dim, patch_size, dtype=dtype, name="stem")(inputs)
        for i in range(depth):
            options = {**block, "drop_path": drop_path_rate}
            x = BLOCKS[kind](**options, dtype=dtype, name=f"blocks_{i}")(x)
        norm = Affine(dtype=dtype, name="norm")
        if kind != "resmlp":
            norm = normalization(epsilon=1e-6, dtype=dtype, name="norm")
        return inputs, norm(x)

    @property
    def grid_size(self):
        """(rows, columns) of patches."""
        return self.get_layer("stem").grid_size


@register
class MLPMixer(ImageClassifier):
    """A classifier on the mean of an MLP-Mixer's tokens; arguments as in `ViT`, pooling `"avg"` by
    default."""

    backbone_cls = MLPMixerBackbone

    def __init__(self, backbone, num_classes, preprocessor=None, pooling="avg", **kwargs):
        super().__init__(backbone, num_classes, preprocessor, pooling, **kwargs)

"""CoAtNet: "Marrying Convolution and Attention for All Data Sizes"
(https://arxiv.org/abs/2106.04803).

`CoAtNetBackbone.graph` is figure 4 of the paper from left to right: a stem, two stages of MBConv
(layers/mbconv.py) and two of transformer blocks with relative attention. timm's CoAtNeXt has
ConvNeXt blocks in place of MBConv.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_vit import checks
from keras_vit.layers.base import Layer, Norm, Scale, arguments, register
from keras_vit.layers.block import Block, TransformerBlock
from keras_vit.layers.drop import DropPath, drop_path_rates
from keras_vit.layers.mbconv import ConvStem, Downsample, MBConv, StridedConvNeXt, halved
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import check_divides, pair
from keras_vit.layers.relative import RelativeAttention
from keras_vit.layers.tokens import as_tokens
from keras_vit.models.base import PyramidBackbone, Resizer
from keras_vit.models.classifier import AverageClassifier
from keras_vit.resize import adapt_channels, resize_bias_table
from keras_vit.types import Shape, Size, Tensor

STRIDE = 32  # of the last stage
CONV_BLOCKS: dict[str, type[Block]] = {"mbconv": MBConv, "convnext": StridedConvNeXt}


@register
class PooledNorm(Layer):
    """A norm, then a `Downsample`: `(B, H, W, C) -> (B, H/2, W/2, C)`.

    Args:
        norm, norm_eps: kind and epsilon of the norm.
        pool_type: as in `Downsample`.
    """

    def __init__(
        self, norm: str = "layer", norm_eps: float = 1e-6, pool_type: str = "avg2", **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.norm = norm
        self.norm_eps = norm_eps
        self.pool_type = pool_type

    def build(self, input_shape: Shape) -> None:
        norm = {"norm": self.norm, "epsilon": self.norm_eps, "name": "norm"}
        self.inner = self.child(normalization, input_shape, **norm)
        self.down = self.child(Downsample, input_shape, pool_type=self.pool_type, name="down")

    def read_by(self, *readers: keras.layers.Layer) -> Norm:
        """The norm's gain and bias: they may as well follow the means of 2x2 pixels."""
        return self.inner.read_by(*readers)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(halved(x.shape, x.shape[-1]), self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        return self.down(self.inner(x))


@register
class CoAtNetBlock(TransformerBlock):
    """Pre-norm transformer block with relative attention: `(B, H, W, C) -> (B, H/s, W/s, filters)`.

    Equation 4 of https://arxiv.org/abs/2106.04803 in its appendix A.1; the options are timm's.

    Args:
        filters: number of output channels; C if strides is 1.
        window: (H/s, W/s).
        strides: s, 1 or 2. With 2 there is a `Downsample` after the first norm and one in the
            shortcut.
        expand_first: whether attention is as wide as the output, instead of the input.
        dim_head, rel_pos, rel_pos_dim: as in `RelativeAttention`.
        pool_type: as in `Downsample`.
        shortcut_bias: whether its convolution has a bias.
        init_values: initial value of LayerScale; None for no LayerScale.
        activation: of the MLP.
        norm, norm_eps: `"layer"` or `"batch"`, and epsilon of the norms.
        drop_path: stochastic depth rate of both residual branches.
    """

    def __init__(
        self,
        filters: int,
        window: Sequence[int],
        strides: int = 1,
        expand_first: bool = True,
        dim_head: int = 32,
        rel_pos: str = "bias",
        rel_pos_dim: int = 512,
        pool_type: str = "avg2",
        shortcut_bias: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        norm: str = "layer",
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        block: dict[str, Any] = {"activation": activation, "norm": norm, "norm_eps": norm_eps}
        super().__init__(
            filters // dim_head, init_values=init_values, drop_path=drop_path, **block, **kwargs
        )
        self.filters = filters
        self.window = tuple(window)
        self.strides = strides
        self.expand_first = expand_first
        self.dim_head = dim_head
        self.rel_pos = rel_pos
        self.rel_pos_dim = rel_pos_dim
        self.pool_type = pool_type
        self.shortcut_bias = shortcut_bias

    def build(self, input_shape: Shape) -> None:
        shape = halved(input_shape, self.filters, self.strides)
        norm: dict[str, Any] = {"norm": self.norm, "norm_eps": self.norm_eps}
        tokens = (shape[0], shape[1] * shape[2], self.filters)
        if not self.expand_first:
            self.num_heads = input_shape[-1] // self.dim_head
        self.shortcut = None
        if self.strides == 2:
            pool = {"pool_type": self.pool_type}
            self.norm1 = self.child(PooledNorm, input_shape, name="norm1", **norm, **pool)
            down = {"filters": self.filters, "use_bias": self.shortcut_bias, **pool}
            self.shortcut = self.child(Downsample, input_shape, name="shortcut", **down)
        else:
            self.norm1 = self.made_norm("norm1", input_shape)
        self.attn = self.attention((*tokens[:2], input_shape[-1]))
        self.ls1 = self.layer_scale(tokens, "ls1")
        self.norm2 = self.made_norm("norm2", tokens)
        self.mlp = self.child(Mlp, tokens, activation=self.activation, name="mlp")
        self.ls2 = self.layer_scale(tokens, "ls2")
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def made_norm(self, name: str, shape: Shape) -> keras.layers.Layer:
        """Make a norm."""
        options: dict[str, Any] = {"norm": self.norm, "epsilon": self.norm_eps}
        return self.child(normalization, shape, name=name, **options)

    def attention(self, input_shape: Shape, **inner: Any) -> Layer:
        return self.child(
            RelativeAttention,
            input_shape,
            num_heads=self.num_heads,
            units=self.filters,
            window=self.window,
            dim_head=self.dim_head,
            rel_pos=self.rel_pos,
            rel_pos_dim=self.rel_pos_dim,
            name="attn",
        )

    def links(self) -> Iterable[Norm | Scale]:
        if self.norm == "layer":
            if self.strides == 1 or self.pool_type == "avg2":  # maxima turn with a gain's sign
                yield self.norm1.read_by(*self.attn.readers)
            yield self.norm2.read_by(*self.mlp.readers)
        if self.init_values is not None:
            yield self.ls1.after(self.attn.proj)
            yield self.ls2.after(self.mlp.fc2)

    def compute_output_spec(
        self, x: Tensor, queries: int | None = None, training: bool | None = None
    ) -> keras.KerasTensor:
        return keras.KerasTensor(halved(x.shape, self.filters, self.strides), self.compute_dtype)

    def scores(self, x: Tensor) -> Tensor:
        """The attention map for the block's input: `(B, H, W, C) -> (B, heads, N, N)`, float32."""
        return self.attn.scores(as_tokens(self.norm1(x)))

    def call(self, x: Tensor, queries: int | None = None, training: bool | None = None) -> Tensor:
        shortcut = as_tokens(x if self.shortcut is None else self.shortcut(x))
        x = self.attn(as_tokens(self.norm1(x)), training=training)
        x = shortcut + self.skip(self.ls1(x), training=training)
        x = x + self.skip(self.ls2(self.mlp(self.norm2(x), training=training)), training=training)
        return ops.reshape(x, (-1, *self.window, self.filters))


@register
class CoAtNetBackbone(PyramidBackbone):
    """CoAtNet backbone, images to a map of features: `(B, H, W, C) -> (B, H / 32, W / 32, D)`.

    Args:
        image_size: int or (height, width), in pixels; multiples of 32.
        in_channels: C.
        embed_dim: channels of the four stages; the last is D.
        depths: number of blocks of the four stages.
        stem_width: channels of the two convolutions of the stem.
        stem_bias: whether these have biases.
        conv_block: `"mbconv"` or `"convnext"`, the blocks of the first two stages.
        final_norm: whether a norm follows the last stage.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        dtype: Keras dtype policy.
        expand_output, conv_activation and the others: as in `MBConv`, `StridedConvNeXt` and
            `CoAtNetBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the image size no multiple of 32.
    """

    passes_on: ClassVar[tuple[Callable, ...]] = (
        MBConv.__init__,
        StridedConvNeXt.__init__,
        CoAtNetBlock.__init__,
    )
    given: ClassVar[tuple[str, ...]] = ("filters", "window", "strides", "drop_path")

    @classmethod
    def graph(
        cls,
        *,
        image_size: Size | None = 224,
        in_channels: int = 3,
        embed_dim: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 3, 5, 2),
        stem_width: Sequence[int] = (64, 64),
        stem_bias: bool = False,
        conv_block: str = "mbconv",
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows, columns = cls.grid({"image_size": image_size})
        inputs = keras.Input((STRIDE * rows, STRIDE * columns, in_channels), name="images")
        make = BlockMaker(conv_block, options, (rows, columns), dtype)
        x = make.stem(stem_width, stem_bias)(inputs)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        pyramid = {}
        for stage, (filters, depth) in enumerate(zip(embed_dim, depths, strict=True)):
            for i in range(depth):
                own = {"filters": filters, "drop_path": next(rates)}
                x = cls.block(x, make, stage, i, **own)
            pyramid[f"P{stage + 2}"] = x
        if final_norm:
            norm, epsilon = options.get("norm", "layer"), options["norm_eps"]
            x = normalization(norm, epsilon=epsilon, dtype=dtype, name="norm")(x)
        return inputs, x, pyramid

    @staticmethod
    def block(x: Tensor, make: "BlockMaker", stage: int, index: int, **own: Any) -> Tensor:
        """Block `index` of a stage."""
        own |= {"name": f"stages_{stage}_blocks_{index}", "strides": 1 if index else 2}
        if stage < 2:
            return make.conv(**own)(x)
        window = tuple(2 ** (3 - stage) * n for n in make.grid)
        return make(CoAtNetBlock, window=window, **own)(x)

    @staticmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        if options["image_size"] is None:
            raise ValueError(
                "The position bias is for images of one size: give another image_size than None."
            )
        height, width = pair(options["image_size"])
        check_divides(STRIDE, height, width, "the total stride,")
        return height // STRIDE, width // STRIDE

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        """Adapt the position bias to another image size, the first kernel to another number of
        channels."""

        def resizer(stage):
            factor = self.tokens_per_cell(stage)
            sizes = [tuple(factor * n for n in grid) for grid in (self.grid(old), self.grid_size)]
            return lambda x, shape: resize_bias_table(x, *sizes)

        channels = {"stem/conv1/kernel": lambda x, shape: adapt_channels(x, shape[-2])}
        tables = {f"stages_{s}_*bias_table": resizer(s) for s in range(len(self.options["depths"]))}
        return {**channels, **tables}

    @staticmethod
    def tokens_per_cell(stage: int) -> int:
        """The edge of a stage's windows of attention, divided by that of the last stage's map."""
        return 2 ** (3 - stage)

    @property
    def blocks(self) -> list[Block]:
        """The blocks of all stages; those of the first two have no attention."""
        depths = enumerate(self.options["depths"])
        return [self.get_layer(f"stages_{s}_blocks_{i}") for s, n in depths for i in range(n)]

    @property
    def final_norm(self) -> keras.layers.Layer | None:
        """The last norm, if it is a LayerNorm."""
        own = self.options["final_norm"] and self.options.get("norm", "layer") == "layer"
        return self.get_layer("norm") if own else None


class BlockMaker:
    """Makes the layers of a backbone from its options, each taking those that it knows.

    Args:
        conv_block: a key of `CONV_BLOCKS`.
        options: what is not in the signature of the backbone's `graph`.
        grid: (rows, columns) of the last stage.
        dtype: Keras dtype policy.
    """

    def __init__(
        self, conv_block: str, options: Mapping[str, Any], grid: tuple[int, int], dtype: Any
    ):
        self.conv_block = checks.word(conv_block, "conv_block", CONV_BLOCKS)
        self.options = options
        self.grid = grid
        self.dtype = dtype

    def __call__(self, cls: type[Block], **own: Any) -> Block:
        """A block; `own`: its arguments that are not options of the backbone."""
        known = {name: self.options[name] for name in arguments(cls.__init__) if name not in own}
        return cls(**known, **own, dtype=self.dtype)

    def conv(self, **own: Any) -> Block:
        """A convolutional block."""
        return self(CONV_BLOCKS[self.conv_block], **own)

    def stem(self, filters: Sequence[int], use_bias: bool) -> ConvStem:
        """The stem; it has the activation and the kind of norm of the convolutional blocks."""
        return ConvStem(
            filters,
            use_bias,
            padding=self.options["padding"],
            activation=self.options["conv_activation"],
            norm="batch" if self.conv_block == "mbconv" else "layer",
            norm_eps=self.options["conv_norm_eps"],
            dtype=self.dtype,
            name="stem",
        )


@register
class CoAtNet(AverageClassifier):
    """CoAtNet classifier. The arguments are those of `ViT`; `pooling` defaults to `"avg"`."""

    backbone_cls = CoAtNetBackbone
    keeps_pre_logits = True

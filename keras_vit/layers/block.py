"""The transformer block and LayerScale."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from keras_vit.layers.base import Layer, Norm, Scale, one_of, register
from keras_vit.layers.drop import DropPath
from keras_vit.layers.kinds import ATTENTIONS
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.norm import normalization
from keras_vit.layers.watch import watched
from keras_vit.types import Shape, Tensor


@register
class LayerScale(Layer):
    """Learned scale per channel: `(..., D) -> (..., D)`.

    LayerScale of CaiT (https://arxiv.org/abs/2103.17239, section 2).

    Args:
        init_values: initial value of all D scales.
    """

    def __init__(self, init_values: float = 1e-5, **kwargs: Any):
        super().__init__(**kwargs)
        self.init_values = init_values

    def build(self, input_shape: Shape) -> None:
        # Not named `gamma`: weights.py reads that name as the weight of a norm.
        self.layer_scale = self.add_weight(
            shape=input_shape[-1:],
            initializer=keras.initializers.Constant(self.init_values),
            name="layer_scale",
        )

    def after(self, dense: keras.layers.Dense) -> Scale:
        """This scale, to be folded into the dense layer whose output it scales."""
        return Scale(self.layer_scale, dense)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def call(self, x: Tensor) -> Tensor:
        return x * self.layer_scale


class Block(Layer):
    """Base class of the blocks that a backbone repeats; input and output have the same shape.

    Attributes:
        scores: function from the block's input to its attention map; None if the block has no
            attention.
    """

    scores: Callable[[Tensor], Tensor] | None = None


@register
class TransformerBlock(Block):
    """Pre-norm transformer encoder block: `(B, N, D) -> (B, N, D)`.

    Figure 1 (right) and equations 2 and 3 of https://arxiv.org/abs/2010.11929.

    Args:
        num_heads: number of attention heads; must divide D.
        mlp_ratio: hidden width of the MLP, divided by D.
        qkv_bias: whether the query, key and value projection has a bias.
        proj_bias: whether the other dense layers have a bias.
        init_values: initial value of LayerScale; None for no LayerScale.
        activation, gate: as in `Mlp`.
        norm: `"layer"` (LayerNorm) or `"rms"` (RMSNorm).
        norm_eps: epsilon of the norms.
        inner_norm: additional norms inside attention and MLP (BEiT-3).
        drop_rate: dropout rate in the MLP.
        attn_drop_rate: dropout rate of the attention probabilities.
        drop_path: stochastic depth rate of both residual branches.
        attention_options: another kind of attention: `{"kind": a key of ATTENTIONS, ...}` and
            arguments of its layer, for example `{"kind": "axial", "grid": (14, 14)}`.

    Call arguments:
        x: tokens, `(B, N, D)`.
        queries: compute only the first `queries` output tokens: `(B, queries, D)`. A head on the
            class token reads no others from the last block.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        init_values: float | None = None,
        activation: str = "gelu",
        gate: str | None = None,
        norm: str = "layer",
        norm_eps: float = 1e-6,
        inner_norm: bool = False,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path: float = 0.0,
        attention_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.qkv_bias = qkv_bias
        self.proj_bias = proj_bias
        self.init_values = init_values
        self.activation = activation
        self.gate = gate
        self.norm = norm
        self.norm_eps = norm_eps
        self.inner_norm = inner_norm
        self.drop_rate = drop_rate
        self.attn_drop_rate = attn_drop_rate
        self.drop_path = drop_path
        self.attention_options = None if attention_options is None else dict(attention_options)

    def build(self, input_shape: Shape) -> None:
        inner = {"inner_norm": self.inner_norm, "norm_eps": self.norm_eps}
        norm: dict[str, Any] = {"norm": self.norm, "epsilon": self.norm_eps}
        self.norm1 = self.child(normalization, input_shape, name="norm1", **norm)
        self.attn = self.attention(input_shape, **inner)
        self.ls1 = self.layer_scale(input_shape, "ls1")
        self.norm2 = self.child(normalization, input_shape, name="norm2", **norm)
        self.mlp = self.feed_forward(input_shape, **inner)
        self.ls2 = self.layer_scale(input_shape, "ls2")
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def attention(self, input_shape: Shape, **inner: Any) -> Layer:
        """Make the attention layer, `attn`; subclasses override it for other kinds of attention."""
        own = dict(self.attention_options or {"kind": "full"})
        cls, options = ATTENTIONS[one_of(own.pop("kind", None), "kind", ATTENTIONS)]
        return self.child(
            cls,
            input_shape,
            num_heads=self.num_heads,
            qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias,
            drop_rate=self.attn_drop_rate,
            name="attn",
            **inner,
            **options,
            **own,
        )

    def feed_forward(self, input_shape: Shape, **inner: Any) -> Mlp:
        """Make the MLP, `mlp`."""
        options: dict[str, Any] = {"ratio": self.mlp_ratio, "activation": self.activation}
        options |= {"gate": self.gate, "use_bias": self.proj_bias, "drop_rate": self.drop_rate}
        return self.child(Mlp, input_shape, name="mlp", **{**options, **inner})

    def layer_scale(self, input_shape: Shape, name: str) -> keras.layers.Layer:
        """Make a LayerScale, or an identity if `init_values` is None."""
        if self.init_values is None:
            return self.child(keras.layers.Identity, input_shape, name=name)
        return self.child(LayerScale, input_shape, init_values=self.init_values, name=name)

    def links(self) -> Iterable[Norm | Scale]:
        yield self.norm1.read_by(*self.attn.readers)
        yield self.norm2.read_by(*self.mlp.readers)
        if self.init_values is not None:
            yield self.ls1.after(self.attn.proj)
            yield self.ls2.after(self.mlp.fc2)

    @property
    def summands(self) -> list[Any]:
        """The weights that write to the residual stream, if LayerScale is folded into them."""
        dense = (self.attn.proj, self.mlp.fc2)
        return [v for d in dense for v in (d.kernel, d.bias) if v is not None]

    def compute_output_spec(
        self, x: Tensor, queries: int | None = None, training: bool | None = None
    ) -> keras.KerasTensor:
        return keras.KerasTensor(
            (x.shape[0], queries or x.shape[1], x.shape[2]), self.compute_dtype
        )

    def scores(self, x: Tensor) -> Tensor:
        """The attention map for the block's input: `(B, N, D) -> (B, heads, N, N)`, float32."""
        return self.attn.scores(self.norm1(x))

    def call(self, x: Tensor, queries: int | None = None, training: bool | None = None) -> Tensor:
        residual = x if queries is None else x[:, :queries]
        read = watched("norm1", self.norm1(x))
        x = residual + self.skip(
            self.ls1(self.attn(read, queries=queries, training=training)), training=training
        )
        x = x + self.skip(self.ls2(self.mlp(self.norm2(x), training=training)), training=training)
        return x

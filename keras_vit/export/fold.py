"""The same function with less to compute: work that depends on weights alone goes into weights.

In a file weights are constants, so, exactly up to rounding:

- gain and bias of a norm go into the dense layers that read it, a LayerScale into the one that it
  scales, the scale of attention scores into the queries' weights, the normalisation of pixels into
  the patch projection;
- what a dense layer adds to the residual stream is shifted to mean 0 over the channels: LayerNorms,
  the stream's only readers, subtract the mean anyway, and need not any more.
"""

import keras
import numpy as np

from keras_vit.export import common
from keras_vit.layers.attention import AttentionPool
from keras_vit.layers.block import LayerScale, TransformerBlock
from keras_vit.layers.frozen import Frozen
from keras_vit.layers.norm import LayerNormalization
from keras_vit.layers.patches import PatchEncoder
from keras_vit.models.mixer import GatingBlock, MixerBlock, PatchProjection, ResMLPBlock


class Fold:
    """A model's weights as arrays that may be changed, and what layers then leave out.

    Attributes:
        values: {id of a variable: float64 array}
        frozen: the `Frozen` for `keras_vit.layers.frozen.freeze`.
        takes_pixels: whether the model takes pixels in 0..255 now, not normalised ones.
    """

    def __init__(self, model, pixels=False):
        self.model = model
        self.values = {id(v): np.asarray(v.numpy(), "float64") for v in model.variables}
        self.folded, self.centred, self.recentred = set(), set(), set()
        self.takes_pixels = False
        if _is_plain(model):
            for layer in model.layers:
                FOLDS.get(type(layer), _nothing)(self, layer)
            self.head()
            if pixels:
                self.pixels()
            self.centre()
        self.frozen = Frozen(*map(frozenset, (self.folded, self.centred, self.recentred)))

    def constants(self):
        """(variable, float32 array) for all variables of the model."""
        return [(v, self.values[id(v)].astype("float32")) for v in self.model.variables]

    def change(self, variable, function):
        if variable is not None:
            self.values[id(variable)] = function(self.values[id(variable)])

    def norm(self, norm, *readers):
        """The norm's gain and bias go into the dense layers that read it, and nothing else does."""
        gain, bias = _gain_and_bias(norm)
        if bias is not None and not all(reader.use_bias for reader in readers):
            return
        for reader in readers:
            if bias is not None:
                kernel = self.values[id(reader.kernel)]
                self.change(reader.bias, lambda b, k=kernel: b + self.values[id(bias)].ravel() @ k)
            self.change(reader.kernel, lambda k: self.values[id(gain)].reshape(-1, 1) * k)
        self.folded.add(norm)

    def scale(self, layer, dense):
        """A LayerScale goes into the dense layer before it."""
        if isinstance(layer, LayerScale):
            factors = self.values[id(layer.layer_scale)]
            for variable in (dense.kernel, dense.bias if dense.use_bias else None):
                self.change(variable, lambda x: x * factors)
            self.folded.add(layer)

    def queries(self, attention, dense, width, num_heads):
        """The scale of the scores goes into the first `width` columns of a dense layer."""
        factors = np.ones(dense.units)
        factors[:width] = (width // num_heads) ** -0.5
        for variable in (dense.kernel, dense.bias if dense.use_bias else None):
            self.change(variable, lambda x: x * factors)
        self.folded.add(attention)

    def mlp(self, norm, mlp):
        names = ("fc1_g", "fc1_x") if hasattr(mlp, "fc1_g") else ("fc1",)
        self.norm(norm, *(getattr(mlp, name) for name in names))
        if getattr(mlp, "norm", None) is not None:
            self.norm(mlp.norm, mlp.fc2)

    def head(self):
        """The last norm goes into the head, through the pooling, which is linear."""
        layers = {layer.name: layer for layer in self.model.layers}
        first = [layers[n] for n in ("pre_logits", "head", "head_dist") if n in layers]
        if "pre_logits" in layers:
            first = [layer for layer in first if layer.name != "head"]
        pooling = getattr(self.model, "pooling", None)
        if "fc_norm" in layers and first:
            self.norm(layers["fc_norm"], *first)
        elif "norm" in layers and pooling == "map":
            self.norm(layers["norm"], layers["attn_pool"].kv)
        elif "norm" in layers and pooling in ("token", "avg") and first:
            self.norm(layers["norm"], *first)

    def pixels(self):
        """The normalisation of pixels goes into the patch projection, if that comes first."""
        encoder = self.model.layers[1]
        if not isinstance(encoder, (PatchEncoder, PatchProjection)) or not encoder.proj.use_bias:
            return
        converter = common.converter(self.model)
        scale, offset = (x.reshape(1, 1, -1, 1) for x in converter.scale_and_offset())
        kernel = self.values[id(encoder.proj.kernel)]
        self.change(encoder.proj.bias, lambda b: b + (kernel * offset).sum((0, 1, 2)))
        self.change(encoder.proj.kernel, lambda k: k * scale)
        self.takes_pixels = True

    def centre(self):
        """What is added to the residual stream of a ViT gets mean 0."""
        blocks = [layer for layer in self.model.layers if isinstance(layer, TransformerBlock)]
        layers = {layer.name: layer for layer in self.model.layers}
        last = [layers[name] for name in ("norm", "fc_norm") if name in layers][:1]
        readers = [norm for block in blocks for norm in (block.norm1, block.norm2)] + last
        if not blocks or not last or not all(isinstance(n, LayerNormalization) for n in readers):
            return
        first = layers["patch_embed"]
        if "norm_pre" in layers:
            self.recentred.add(layers["norm_pre"])
        elif first.norm is not None:
            return
        else:
            tokens = (first.cls_token, first.dist_token, first.reg_token, first.pos_embed)
            bias = first.proj.bias if first.use_bias else None
            for variable in (first.proj.kernel, bias, *tokens):
                self.change(variable, _centred)
        for dense in (dense for block in blocks for dense in (block.attn.proj, block.mlp.fc2)):
            for variable in (dense.kernel, dense.bias if dense.use_bias else None):
                self.change(variable, _centred)
        self.centred.update(readers)


def _is_plain(model):
    """Whether all weights are what they seem: not quantized, no LoRA beside them."""
    dense = [x for x in model._flatten_layers() if isinstance(x, keras.layers.Dense)]
    return not any(x.quantization_mode or x.lora_enabled for x in dense)


def _gain_and_bias(norm):
    if hasattr(norm, "alpha"):  # ResMLP's Affine
        return norm.alpha, norm.shift
    return (norm.gamma, norm.beta) if hasattr(norm, "gamma") else (norm.scale, None)


def _centred(x):
    return x - x.mean(-1, keepdims=True)


def _nothing(fold, layer):
    pass


def _transformer(fold, block):
    fold.norm(block.norm1, block.attn.qkv)
    fold.queries(block.attn, block.attn.qkv, block.attn.proj.units, block.num_heads)
    if block.attn.norm is not None:
        fold.norm(block.attn.norm, block.attn.proj)
    fold.scale(block.ls1, block.attn.proj)
    fold.mlp(block.norm2, block.mlp)
    fold.scale(block.ls2, block.mlp.fc2)


def _attention_pool(fold, pool):
    fold.queries(pool, pool.q, pool.q.units, pool.num_heads)
    fold.mlp(pool.norm, pool.mlp)


def _mixer(fold, block):
    fold.mlp(block.norm2, block.mlp_channels)


def _resmlp(fold, block):
    fold.mlp(block.norm2, block.mlp_channels)
    fold.scale(block.ls2, block.mlp_channels.fc2)


def _gmlp(fold, block):
    fold.norm(block.first_norm, block.mlp_channels.fc1)


FOLDS = {
    TransformerBlock: _transformer,
    AttentionPool: _attention_pool,
    MixerBlock: _mixer,
    ResMLPBlock: _resmlp,
    GatingBlock: _gmlp,
}

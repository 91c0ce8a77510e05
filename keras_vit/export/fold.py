"""Constant folding: the same function with fewer operations.

Weights are constants in a file, so these rewrites are exact up to rounding:

- the gain and bias of a norm move into the dense layers that read it, a LayerScale into the dense
  layer before it, the normalisation of pixels into the patch projection. Converters drop the
  factors of 1 and the zeros that remain;
- what a dense layer adds to the residual stream is shifted to mean 0 over the channels. Only
  LayerNorms read the stream, and they would subtract the mean; now they need not.

Layers and models declare what can be folded: `Layer.links`, `Backbone.streams`.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_vit import weights
from keras_vit.export import common
from keras_vit.layers import lora
from keras_vit.layers.base import Layer, Norm, Scale
from keras_vit.models.classifier import ImageClassifier


@dataclasses.dataclass(frozen=True)
class Folded:
    """A folded model.

    Attributes:
        model: a copy whose variables have no values, or the model itself if nothing is folded.
        constants: the values of all its variables, float32.
        takes_pixels: whether it takes pixels in 0..255 instead of normalised ones.
    """

    model: keras.Model
    constants: list[tuple[Any, np.ndarray]]
    takes_pixels: bool = False


def fold(model: keras.Model, pixels: bool = False) -> Folded:
    """Fold a model's constant operations into its weights.

    Args:
        model: a built model; one with quantized dense layers is returned unchanged. LoRA is merged.
        pixels: whether to fold the normalisation of pixels, too.
    """
    if _is_quantized(model) or not any(isinstance(x, Layer) for x in model._flatten_layers()):
        return Folded(model, [(v, np.asarray(v, v.dtype)) for v in model.variables])
    with weights.without_values():
        copy = _copy(model)
        for layer in lora.adapted_layers(copy):
            lora.disable(layer)
        work = _Fold(model, copy)
        for layer in copy._flatten_layers():
            if isinstance(layer, Layer):
                work.links(layer)
                layer.packed = False
        if isinstance(copy, ImageClassifier):
            work.links(copy)
            work.streams(copy)
        takes_pixels = pixels and work.pixels(copy, common.converter(model))
        for layer in copy._flatten_layers():
            if isinstance(layer, Layer):
                layer.precompute(work.value)
        return Folded(copy, work.constants(), takes_pixels)


def _is_quantized(model):
    dense = [x for x in model._flatten_layers() if isinstance(x, keras.layers.Dense)]
    return any(x.quantization_mode for x in dense)


def _copy(model):
    """The same model, not compiled, because an optimizer's variables need values."""
    if isinstance(model, ImageClassifier):
        return type(model).from_config({**model.get_config(), "compile": False})
    return keras.models.clone_model(keras.Model(model.inputs, model.outputs))


class _Fold:
    """The values of a copy's variables while they are rewritten."""

    def __init__(self, model, copy):
        low_rank = lora.low_rank_variables(model)
        self.adapted = lora.kernels_with_lora(model)
        old = [v for v in model.variables if id(v) not in low_rank]
        self.sources = list(zip(copy.variables, old, strict=True))
        self.old = {id(new): old for new, old in self.sources}
        self.changed = {}

    def value(self, variable):
        """float64"""
        if id(variable) not in self.changed:
            return np.asarray(self._before(variable), "float64")
        return self.changed[id(variable)]

    def change(self, variable, function):
        if variable is not None:
            self.changed[id(variable)] = function(self.value(variable))

    def constants(self):
        return [(new, self._constant(new)) for new, _ in self.sources]

    def _constant(self, variable):
        value = self.changed.get(id(variable))
        return np.asarray(self._before(variable) if value is None else value, variable.dtype)

    def _before(self, variable):
        return lora.value(self.old[id(variable)], self.adapted)

    def links(self, layer):
        for link in layer.links():
            if isinstance(link, Norm):
                self.norm(link)
            elif isinstance(link, Scale):
                self.scale(link)

    def norm(self, link):
        """Fold a norm's gain and bias into the layers that are its only readers."""
        if not link.readers or (
            link.bias is not None and not all(r.use_bias for r in link.readers)
        ):
            return
        gain, bias = (None if v is None else self.value(v).ravel() for v in (link.gain, link.bias))
        for reader in link.readers:
            kernel = self.value(reader.kernel)
            rows = kernel.reshape(-1, kernel.shape[-1])
            if bias is not None:
                moved = np.tile(bias, len(rows) // len(bias)) @ rows  # copies of the norm's output
                self.change(reader.bias, lambda b, moved=moved: b + moved)
            if gain is not None:
                rows = np.tile(gain, len(rows) // len(gain))[:, None] * rows
                self.change(reader.kernel, lambda kernel, rows=rows: rows.reshape(kernel.shape))
        self.change(link.gain, np.ones_like)
        self.change(link.bias, np.zeros_like)

    def scale(self, link):
        """Fold factors into the dense layer before them."""
        factors = self.value(link.factors)
        for variable in (link.dense.kernel, link.dense.bias):
            self.change(variable, lambda x: x * factors)
        self.change(link.factors, np.ones_like)

    def streams(self, model):
        """Shift everything added to a residual stream to mean 0."""
        for stream in model.streams():
            for variable in stream.summands:
                self.change(variable, lambda x: x - x.mean(-1, keepdims=True))
            if stream.source is not None:
                stream.source.gives_mean_0 = True
            for norm in stream.readers:
                norm.has_mean_0 = True

    def pixels(self, model, converter):
        """Fold the normalisation of pixels into the first projection; False if there is none."""
        first = model.backbone.first_projection if isinstance(model, ImageClassifier) else None
        if first is None or not first.use_bias:
            return False
        scale, offset = (x.reshape(1, 1, -1, 1) for x in converter.scale_and_offset())
        kernel = self.value(first.kernel)
        self.change(first.bias, lambda bias: bias + (kernel * offset).sum((0, 1, 2)))
        self.change(first.kernel, lambda kernel: kernel * scale)
        return True

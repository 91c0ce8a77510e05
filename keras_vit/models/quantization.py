"""Keras' quantization: without noise, and kept in the config."""

import warnings

import keras


class Quantizable:
    """What a model needs to be quantized, saved and loaded again."""

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """As `keras.Model.quantize`: all dense layers get weights of few bits.

        Args:
            mode: `"int8"`, `"int4"` or `"float8"`.
            config: a `keras.quantizers.QuantizationConfig` in its place.
            filters: of the layers' names: a regex, a list of them, or a function of a layer.

        Raises:
            ValueError: an unknown mode.
        """
        with warnings.catch_warnings():  # one for each layer that has nothing to quantize
            warnings.filterwarnings("ignore", ".*does not have a `quantize` method", UserWarning)
            super().quantize(mode, config=config, filters=filters, **kwargs)

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        quantized = config.pop("quantized", {})
        model = super().from_config(config)
        for layer in model._flatten_layers():
            if layer.path in quantized:
                own = keras.saving.deserialize_keras_object(quantized[layer.path])
                layer.quantize(own.mode, config=own)
        return model


def quantized_layers(model, besides=()):
    """Part of a config: {path: quantization's config} of the layers that are not among
    `besides`."""
    besides = set(map(id, besides))
    quantized = {
        layer.path: keras.saving.serialize_keras_object(layer.quantization_config)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Dense)
        and layer.quantization_mode
        and layer.quantization_config is not None  # else its dtype policy tells all
        and id(layer) not in besides
    }
    return {"quantized": quantized} if quantized else {}

"""Keras' quantization: without needless warnings, and stored in the config."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras


class Quantizable:
    """Mixin for a model that can be quantized, saved and loaded again."""

    def quantize(
        self,
        mode: str | None = None,
        config: Any = None,
        filters: str | list[str] | Callable[[keras.layers.Layer], bool] | None = None,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.quantize`: the weights of all dense layers are quantized.

        Args:
            mode: `"int8"`, `"int4"` or `"float8"`.
            config: a `keras.quantizers.QuantizationConfig`, instead of `mode`.
            filters: which layers: a regex of their names, a list of these, or a function of a
                layer.

        Raises:
            ValueError: an unknown mode.
        """
        with warnings.catch_warnings():  # Keras warns for each layer without weights to quantize
            warnings.filterwarnings("ignore", ".*does not have a `quantize` method", UserWarning)
            super().quantize(  # type: ignore[misc]  # of the classes beside this one
                mode, config=config, filters=filters, **kwargs
            )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        quantized = config.pop("quantized", {})
        model = super().from_config(config)  # type: ignore[misc]  # of the classes beside this one
        for layer in model._flatten_layers():
            if layer.path in quantized:
                own = keras.saving.deserialize_keras_object(quantized[layer.path])
                layer.quantize(own.mode, config=own)
        return model


def quantized_layers(
    model: keras.Model, besides: Iterable[keras.layers.Layer] = ()
) -> dict[str, Any]:
    """Part of a config: {path: quantization config} of the quantized layers, except those in
    `besides`."""
    excluded = set(map(id, besides))
    quantized = {
        layer.path: keras.saving.serialize_keras_object(layer.quantization_config)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Dense)
        and layer.quantization_mode
        and layer.quantization_config is not None  # None: the dtype policy says it all
        and id(layer) not in excluded
    }
    return {"quantized": quantized} if quantized else {}

"""What every layer of the package shares: its config and its initial values."""

import inspect

import keras


def register(cls):
    """Register a class for serialization under the package's name: `keras_vit>Name`."""
    return keras.saving.register_keras_serializable("keras_vit")(cls)


def arguments(function):
    """Names and defaults of a function's own arguments; `self`, `**kwargs` and `dtype` are left
    out."""
    kinds = inspect.Parameter
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "dtype") and parameter.kind is not kinds.VAR_KEYWORD
    }


class Layer(keras.layers.Layer):
    """A layer whose constructor arguments are plain values, kept under their own names, and
    thereby its config."""

    def get_config(self):
        own = {name: getattr(self, name) for name in arguments(type(self).__init__)}
        return {**super().get_config(), **own}

    def child(self, layer, **kwargs):
        """A sublayer that computes in this layer's dtype."""
        return layer(dtype=self.dtype_policy, **kwargs)


def initial(stddev=0.02):
    """The initial values of kernels and tokens: a truncated normal, as timm and DeiT initialise."""
    return keras.initializers.TruncatedNormal(stddev=stddev)

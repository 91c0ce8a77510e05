"""Base class of the layers: configs, sublayers, weight initialization and export hooks."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import keras
import numpy as np

from keras_vit.layers.lora import adapted_layers, config_of, enable
from keras_vit.types import Shape

T = TypeVar("T")


def register(cls: type[T]) -> type[T]:
    """Register a class for serialization as `keras_vit>Name`."""
    return keras.saving.register_keras_serializable("keras_vit")(cls)


def arrays() -> Any:
    """What computes constants in `call`: numpy, whose results are constants of the graph; on torch
    keras.ops, because torch.compile breaks the graph at numpy's."""
    return keras.ops if keras.backend.backend() == "torch" else np


def arguments(function: Callable) -> dict[str, Any]:
    """{name: default} of a function's arguments, without `self`, `dtype` and `**kwargs`."""
    kinds = inspect.Parameter
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "dtype") and parameter.kind is not kinds.VAR_KEYWORD
    }


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm whose gain and bias can be folded into the layers after it.

    Attributes:
        gain, bias: variables of shape `(D,)`; one of them may be None.
        readers: all layers that read the norm's output: dense layers or convolutions without
            padding, whose input is that output, means of it over tokens, or a concatenation of
            copies of it.
    """

    gain: Any
    bias: Any
    readers: tuple[keras.layers.Layer, ...]


@dataclasses.dataclass(frozen=True)
class Scale:
    """A scale per channel that can be folded into the dense layer before it.

    Attributes:
        factors: a variable of shape `(D,)`.
        dense: the dense layer whose output is scaled.
    """

    factors: Any
    dense: keras.layers.Layer


@dataclasses.dataclass(frozen=True)
class Stream:
    """A residual stream that only LayerNorms read.

    LayerNorm subtracts the mean over the channels, so export can remove that mean from the weights
    that write to the stream instead of computing it in every LayerNorm.

    Attributes:
        summands: the variables that write to the stream, channels last.
        readers: the LayerNorms that read it.
        source: the LayerNorm whose output starts the stream; None if `summands` start it.
        leaves: whether the stream itself is the backbone's output, not normalized.
    """

    summands: tuple[Any, ...]
    readers: tuple[keras.layers.Layer, ...]
    source: keras.layers.Layer | None = None
    leaves: bool = False


class KeepsFrozen:
    """Mixin for Keras layers: `trainable=False` in the constructor freezes the variables, too.

    Keras itself marks the layer alone as frozen: a model that contains it, for example a clone of
    a frozen model, would still train its variables.
    """

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)  # type: ignore[misc]  # defined by the Keras layer
        _freeze_variables(self)


def _freeze_variables(layer):
    """Apply `trainable=False` of a layer to its variables and sublayers."""
    if not layer.trainable:
        layer.trainable = True  # on TensorFlow, setting an unchanged attribute does nothing
        layer.trainable = False


class Layer(keras.layers.Layer):
    """Base class of the layers.

    Constructor arguments are plain values. A subclass stores each one as an attribute of the same
    name, and `get_config` collects them.

    Args:
        frozen: paths of sublayers that are not trainable, relative to this layer.
        lora: {path of a sublayer, relative to this layer: arguments of `lora.enable`}.

    Attributes:
        packed: whether projections that share a kernel are computed by one matmul. export/fold.py
            sets False: the weights are then constants, so slicing them is free, while slicing the
            product is not.
    """

    packed = True

    def __init__(
        self, *, frozen: Iterable[str] = (), lora: Mapping[str, Any] | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self._frozen = tuple(frozen)
        self._lora = dict(lora or {})

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "build" in vars(cls):
            cls.build = _then_freeze(cls.build)

    def get_config(self) -> dict[str, Any]:
        own = arguments(type(self).__init__)
        own = {n: getattr(self, n) for n in own if n not in ("frozen", "lora")}
        prefix = f"{self.path}/"
        state: dict[str, Any] = {}
        if adapted := {x.path.removeprefix(prefix): config_of(x) for x in adapted_layers(self)}:
            state["lora"] = adapted
        sublayers = self._flatten_layers(include_self=False) if self.trainable else ()
        frozen = [layer.path for layer in sublayers if layer.path and not layer.trainable]
        if frozen:
            state["frozen"] = [path.removeprefix(prefix) for path in frozen]
        return {**super().get_config(), **own, **state}

    def child(self, layer: Callable, shape: Shape | None = None, **kwargs: Any) -> Any:
        """Make a sublayer with this layer's dtype policy, and build it.

        Args:
            layer: the class of the sublayer, or a function that returns it.
            shape: the input shape; None leaves a sublayer without weights unbuilt.
            **kwargs: arguments of `layer`.
        """
        sublayer = layer(dtype=self.dtype_policy, **kwargs)
        if isinstance(sublayer, Layer):
            prefix = f"{sublayer.name}/"
            below = [path for path in (*self._frozen, *self._lora) if path.startswith(prefix)]
            sublayer._frozen = tuple(p.removeprefix(prefix) for p in below if p in self._frozen)
            sublayer._lora = {
                p.removeprefix(prefix): self._lora[p] for p in below if p in self._lora
            }
        if shape is not None:
            sublayer.build(shape)
        if sublayer.name in self._frozen:
            sublayer.trainable = False
        if sublayer.name in self._lora:
            enable(sublayer, **self._lora[sublayer.name])
        return sublayer

    def links(self) -> Iterable[Norm | Scale]:
        """What export can fold into neighboring weights; sublayers have their own links."""
        return ()

    def precompute(self, value: Callable[[Any], Any]) -> None:
        """Compute what depends on weights alone; export calls this for its copy of the layer.

        Args:
            value: function from a variable to its value, a numpy array.
        """


def _then_freeze(build):
    @functools.wraps(build)
    def wrapper(self, *args, **kwargs):
        build(self, *args, **kwargs)
        _freeze_variables(self)

    return wrapper


def one_of(value: Any, name: str, known: Iterable[str]) -> Any:
    """An argument that is one of some words.

    Raises:
        ValueError: it is none of them.
    """
    if value not in (words := tuple(known)):
        raise ValueError(f"{name} must be one of {', '.join(words)}. Received: {value!r:.80}")
    return value


def initial(stddev: float = 0.02) -> keras.initializers.Initializer:
    """Initializer of kernels and tokens: a truncated normal, as in timm and DeiT."""
    return keras.initializers.TruncatedNormal(stddev=stddev)

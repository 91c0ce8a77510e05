"""LoRA, low-rank adaptation (https://arxiv.org/abs/2106.09685): kernel + (alpha / rank) a b.

Keras' layers keep `a` and `b` beside the kernel. Whatever writes weights elsewhere needs the sum.
"""

from typing import Any

import keras
import numpy as np

FACTORS = ("lora_kernel_a", "lora_kernel_b")


class Dense(keras.layers.Dense):
    """A dense layer whose LoRA comes back from a file as it was.

    Keras writes the sum, and sets both `a` and `b` to 0 as it reads it: then neither has a
    gradient. Here they are in the file, too, beside the sum, which a layer without LoRA reads.
    """

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """As Keras' dense layer, which refuses its subclasses unless `type_check=False`."""
        super().quantize(mode, type_check=False, config=config)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.built and self.lora_enabled and not self.quantization_mode:
            for name in FACTORS:
                store[name] = getattr(self, name)

    def load_own_variables(self, store: Any) -> None:
        names = list(store.keys())
        super().load_own_variables({n: store[n] for n in names if n not in FACTORS})
        if not (self.built and self.lora_enabled):
            return
        if set(FACTORS) <= set(names):
            for name in FACTORS:
                getattr(self, name).assign(store[name])
            added = self.kernel - self._kernel
            self._kernel.assign(self._kernel - added)
        else:  # a file from before LoRA: it begins here
            a = self.lora_kernel_a
            a.assign(keras.initializers.HeUniform()(a.shape, a.dtype))


def config_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """What `enable` needs to make another layer like this one."""
    bias = getattr(layer, "bias", None)
    trains_bias = bias is not None and bias.trainable
    return {"rank": layer.lora_rank, "alpha": layer.lora_alpha, "trains_bias": trains_bias}


def enable(layer: keras.layers.Layer, rank: int, alpha: float, trains_bias: bool = False) -> None:
    """Train `a` and `b` beside a layer's frozen kernel; nothing changes where they are already."""
    if not layer.lora_enabled:
        layer.enable_lora(rank, lora_alpha=alpha)
    # Whoever set `trainable` of the layer since has set it of these, too.
    _kernel(layer).trainable = False
    if getattr(layer, "bias", None) is not None:
        layer.bias.trainable = trains_bias and layer.trainable


def can_adapt(layer: keras.layers.Layer) -> bool:
    """Whether LoRA can be enabled in a layer."""
    return getattr(layer, "lora_enabled", None) is not None


def adapted_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers of a model in which LoRA is enabled."""
    return [layer for layer in model._flatten_layers() if getattr(layer, "lora_enabled", False)]


def low_rank_variables(model: keras.Model) -> set[int]:
    """The ids of all variables `a` and `b`."""
    return {id(v) for layer in adapted_layers(model) for v in _factors(layer)}


def kernels_with_lora(model: keras.Model) -> dict[int, keras.layers.Layer]:
    """The adapted layers that are not quantized, by the id of the variable that LoRA adapts."""
    return {
        id(_kernel(layer)): layer
        for layer in adapted_layers(model)
        if not getattr(layer, "quantization_mode", None)
    }


def value(variable: Any, adapted: dict[int, keras.layers.Layer]) -> np.ndarray:
    """The value of a variable, with what LoRA adds to it.

    Args:
        variable: of a model.
        adapted: the model's `kernels_with_lora`.
    """
    layer = adapted.get(id(variable))
    if layer is not None:
        variable = layer.embeddings if isinstance(layer, keras.layers.Embedding) else layer.kernel
    return keras.ops.convert_to_numpy(variable)


def merge(model: keras.Model) -> None:
    """Put the sums in the place of the kernels, quantized again if need be, and end LoRA.

    The merged layers stay frozen.
    """
    for layer in adapted_layers(model):
        whole: dict[str, Any] = {}
        layer.save_own_variables(whole)  # Keras' files hold the sum
        layer.load_own_variables({n: v for n, v in whole.items() if n not in FACTORS})
        for variable in _factors(layer):  # compiled functions may still add their product
            variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
        disable(layer)
        layer.trainable = False


def disable(layer: keras.layers.Layer) -> None:
    """End LoRA in a layer. What it has learnt is lost, unless it has been merged."""
    for variable in _factors(layer):
        layer._untrack_variable(variable)
        setattr(layer, variable.name, None)
    layer.lora_enabled = False
    layer.lora_rank = layer.lora_alpha = None


def _factors(layer):
    return [v for v in layer.weights if v.name.startswith("lora_")]


def _kernel(layer):
    return layer._embeddings if isinstance(layer, keras.layers.Embedding) else layer._kernel

"""LoRA for a whole model."""

from collections.abc import Callable, Iterable
from typing import Any

import h5py
import keras

from keras_vit.layers import lora
from keras_vit.models.saving import check_room
from keras_vit.types import Path


class Adaptable:
    """What a model needs so that LoRA comes back from a config, and can be merged."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        adapted = config.pop("lora", {})
        model = super().from_config(config)  # type: ignore[misc]  # of the classes beside this one
        for layer in model._flatten_layers():
            if layer.path in adapted:
                lora.enable(layer, **adapted[layer.path])
        return model

    def merge_lora(self) -> None:
        """Add what LoRA has learnt to the kernels, and end LoRA: the outputs stay the same.

        The merged layers stay frozen; `model.trainable = True` trains everything. A compiled model
        gets a fresh optimizer of the same configuration. Nothing happens to a model without LoRA.
        Files for timm, transformers, TFLite ... hold merged kernels in any case.
        """
        if not lora.adapted_layers(self):
            return
        lora.merge(self)
        # Compiled functions and the optimizer hold on to the variables that are gone.
        self.train_function = self.test_function = self.predict_function = None
        optimizer = getattr(self, "optimizer", None)
        if optimizer is not None:
            self.optimizer = type(optimizer).from_config(optimizer.get_config())


class AdaptableBackbone(Adaptable):
    """`keras_hub.models.Backbone`'s LoRA, trained as it is saved."""

    default_lora_layer_names: Callable[[], list[str]]
    _flatten_layers: Callable[..., list[Any]]
    variables: list[Any]

    def enable_lora(self, rank: int, target_layer_names: Iterable[str] | None = None) -> None:
        """Train two low-rank matrices beside each kernel of the named layers, and nothing else.

        What is trained is what `save_lora_weights` saves: biases stay frozen, as in PEFT.

        Args:
            rank: of the matrices, `(in, rank)` and `(rank, out)`.
            target_layer_names: names of dense layers; None: `["qkv"]`, the projections of queries,
                keys and values.

        Raises:
            ValueError: no layer has one of these names, or LoRA is enabled already.
        """
        names = set(target_layer_names or self.default_lora_layer_names())
        layers = self._flatten_layers(include_self=False)
        able = [layer for layer in layers if lora.can_adapt(layer)]
        known = {layer.name for layer in able}
        if missing := sorted(names - known):
            raise ValueError(
                f"No layer that LoRA can adapt is named {' or '.join(map(repr, missing))}. "
                f"There are: {', '.join(sorted(known))}."
            )
        if lora.adapted_layers(self):
            raise ValueError("LoRA is enabled already; merge_lora() ends it.")
        self._enable([layer for layer in able if layer.name in names], rank)
        self._tell_kerashub()

    def save_lora_weights(self, filepath: Path) -> None:
        """The low-rank matrices, to a `.lora.h5` file."""
        self._tell_kerashub()
        low_rank = lora.low_rank_variables(self)
        check_room(filepath, [v for v in self.variables if id(v) in low_rank])
        super().save_lora_weights(str(filepath))  # type: ignore[misc]

    def load_lora_weights(self, filepath: Path) -> None:
        """The inverse of `save_lora_weights`; LoRA is enabled if need be, in the file's layers.

        Raises:
            ValueError: LoRA is enabled already, in other layers or with another rank; or the file
                is not of this architecture.
        """
        with h5py.File(filepath) as file:
            group = file.get("lora", {})
            places = sorted(int(name) for name in group if name.isdecimal())
            rank = int(group["vars/rank"][()]) if places else 0
        layers = [layer for layer in self._flatten_layers(include_self=False) if layer.weights]
        chosen = [layers[i] for i in places if i < len(layers) and lora.can_adapt(layers[i])]
        if not places or len(chosen) < len(places):
            raise ValueError(f"{str(filepath)!r} is not LoRA of this architecture.")
        enabled = {layer.path: layer.lora_rank for layer in lora.adapted_layers(self)}
        there = {layer.path: rank for layer in chosen}
        if enabled and enabled != there:
            raise ValueError(
                f"LoRA is enabled in {_listed(enabled)}, and {str(filepath)!r} is LoRA of "
                f"{_listed(there)}. Call merge_lora() before, or load it into a fresh model."
            )
        if not enabled:
            self._enable(chosen, rank)
        self._tell_kerashub()
        super().load_lora_weights(str(filepath))  # type: ignore[misc]

    def _enable(self, adapted, rank):
        """LoRA in these layers; all others are frozen."""
        self.trainable = True
        for layer in self._flatten_layers(include_self=False):
            layer.trainable = False
        for layer in adapted:
            layer.trainable = True
            lora.enable(layer, rank, rank)

    def _tell_kerashub(self):
        """KerasHub's two methods know the adapted layers by their place among those with weights,
        and one rank."""
        layers = [layer for layer in self._flatten_layers(include_self=False) if layer.weights]
        adapted = {id(layer): layer.lora_rank for layer in lora.adapted_layers(self)}
        if len(set(adapted.values())) > 1:
            raise ValueError(f"A file holds LoRA of one rank. Received: {set(adapted.values())}")
        self._lora_enabled_layers = [i for i, layer in enumerate(layers) if id(layer) in adapted]
        self._lora_rank = next(iter(adapted.values()), None)


def _listed(ranks):
    """The names of layers, and the ranks of their LoRA."""
    names = sorted({path.rpartition("/")[2] for path in ranks})
    return (
        f"{len(ranks)} layers ({', '.join(names)}; rank {', '.join(map(str, {*ranks.values()}))})"
    )


def adapted(model: keras.Model) -> dict[str, Any]:
    """Part of a config: the layers with LoRA, by their paths."""
    found = {layer.path: lora.config_of(layer) for layer in lora.adapted_layers(model)}
    return {"lora": found} if found else {}

"""LoRA adapters that PEFT saved: the base model's tensors with the adapter merged.

PEFT: https://github.com/huggingface/peft; LoRA: https://arxiv.org/abs/2106.09685, section 4.1.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

import keras_vit_presets as presets
from keras_vit import checks, hub
from keras_vit.hub import HubError, MissingFile, Repository
from keras_vit.keys import spellings, translate
from keras_vit.layouts.spec import Spec
from keras_vit.text import printable
from keras_vit.weights import Tensor, WeightsError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
FACTOR = re.compile(r"(.+)\.lora_([AB])\.(weight|bias)")
# What may be a pattern of module names: no repetition of a group, which could take for ever.
PATTERN = re.compile(r"(?!.*\)[*+?{])[\w.\\|()\[\]^$*+-]{1,200}")
Read = Callable[[Repository], Spec]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        repository: where its files are.
        config: adapter_config.json.
    """

    repository: Repository
    config: dict[str, Any]

    def __str__(self) -> str:
        return str(self.repository)

    @property
    def uri(self) -> str:
        return self.repository.uri

    @property
    def base(self) -> Repository:
        """The repository of the model that it was trained on.

        Raises:
            WrongValue: the config does not name it.
        """
        name = self.config.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise checks.WrongValue(
                f"base_model_name_or_path of {CONFIG} must name the base model, a repository of "
                f"the Hub or a directory. Received: {name!r:.80}"
            )
        revision = self.config.get("revision")
        folder = self.repository.directory
        if folder is not None:  # PEFT's names of directories are relative to where it runs
            places = (pathlib.Path(name), folder / name)
            name = str(next((p for p in places if (p / hub.CONFIG).is_file()), name))
        return self.repository.beside(name, revision if isinstance(revision, str) else None)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by the keys of the base model's modules.

        Raises:
            MissingFile: there is no safetensors file; pickles are never opened.
            WeightsError: the file is damaged.
        """
        if self.repository.find(WEIGHTS) is None and self.repository.has(PICKLE):
            raise MissingFile(
                f"{self} has its weights only in {PICKLE}, not in {WEIGHTS}. Opening such a file "
                "can run arbitrary code, so it is refused. Load it with PEFT and save it again."
            )
        found = self.repository.safetensors(WEIGHTS)
        return {key.removeprefix(PREFIX): tensor for key, tensor in found.items()}

    def scale(self, module: str, rank: int) -> float:
        """What the product of a module's two factors is multiplied by."""
        patterns = checks.kind(self.config.get("alpha_pattern") or {}, "alpha_pattern", dict)
        own = (value for pattern, value in patterns.items() if _matches(pattern, module))
        alpha = checks.number(next(own, self.config.get("lora_alpha", 8)), "lora_alpha")
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def find(repository: Repository) -> Adapter | None:
    """The adapter that a repository holds, or None.

    Raises:
        WrongValue: an adapter of another kind than LoRA, or an option of it that is not supported.
    """
    if repository.find(CONFIG) is None:
        return None
    adapter = Adapter(repository, repository.json(CONFIG))
    table = presets.layout("peft")["lora"]
    config = adapter.config
    kind = config.get("peft_type")
    if kind != "LORA":
        raise checks.WrongValue(
            f"peft_type must be LORA, the only kind of adapter that is supported. Received: "
            f"{kind!r:.80}. {MERGE}"
        )
    initial = config.get("init_lora_weights", True)
    odd = [k for k, v in config.items() if v and k not in (*table["reads"], *table["harmless"])]
    odd += ["init_lora_weights"] * (initial not in table["initial"])
    if odd:
        values = ", ".join(f"{printable(k)}={config[k]!r:.40}" for k in odd)
        raise checks.WrongValue(f"options of LoRA that are not supported: {values}. {MERGE}")
    return adapter


MERGE = "Load it with PEFT, merge it with merge_and_unload() and save the model."


def spec_of_adapter(adapter: Adapter, read: Read) -> Spec:
    """The spec of an adapter's base model, with the adapter merged into its tensors.

    Args:
        adapter: a LoRA adapter.
        read: reads the spec of the base.
    """
    try:
        spec = read(adapter.base)
    except HubError as error:
        raise type(error)(
            f"{adapter} is an adapter of the model {adapter.config['base_model_name_or_path']!r} "
            f"(base_model_name_or_path of {CONFIG}), which cannot be loaded: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(f"The base model of the adapter {adapter}: {error}") from error
    return merged(adapter, spec)


def merged(adapter: Adapter, spec: Spec) -> Spec:
    """A spec whose tensors are those of another, with an adapter merged.

    A head that the adapter brings takes the place of the base's; it has the base's class names
    if there are as many.
    """
    source = _Merged(adapter, spec)

    def changed(other: Spec, **fields: Any) -> Spec:
        return dataclasses.replace(
            other, source=source, prefix=(), convert=None, restore=None, name=str(adapter), **fields
        )

    def with_tensors(tensors: dict[str, Tensor]) -> Spec:
        found = spec.with_tensors(tensors) if spec.with_tensors else _resized(spec, tensors)
        named = found.num_classes == spec.num_classes or not source.has_head
        labels = found.labels if named else None
        return changed(found, labels=labels, with_tensors=None, note="")

    return changed(spec, with_tensors=with_tensors)


def _resized(spec, tensors):
    """A spec with as many classes as its head has rows."""
    heads = [tensors[k] for (k,) in spellings("head.weight", spec.names or {}) if k in tensors]
    if not heads or not heads[0].shape:
        return spec
    return dataclasses.replace(spec, num_classes=heads[0].shape[0])


@dataclasses.dataclass(frozen=True)
class _Merged:
    """The tensors of a base model with an adapter merged, under the keys of the base's spec."""

    adapter: Adapter
    spec: Spec

    def __str__(self) -> str:
        return str(self.adapter)

    @property
    def uri(self) -> str:
        return self.adapter.uri

    def tensors(self) -> dict[str, Tensor]:
        base = self._named(self.spec.tensors())
        products, replaced = split(self.adapter)
        new = self._named(self.spec.converted(replaced, self.spec.prefix))
        deltas = self._named(self.spec.converted(products, self.spec.prefix))
        heads = self._heads()
        if any(_below(key, heads) for key in new):
            base = {key: tensor for key, tensor in base.items() if not _below(key, heads)}
        unknown = [k for k in deltas if k not in base]
        unknown += [k for k in new if k not in base and not _below(k, heads)]
        misshaped = [k for k in deltas if k in base and deltas[k].shape != base[k].shape]
        if unknown or misshaped:
            names = ", ".join(map(printable, (*unknown, *misshaped)))
            raise WeightsError(
                f"The adapter {self.adapter} does not fit its base model {self.spec.source}, which "
                f"has no tensors of this name and shape: {names}"
            )
        base |= new
        return base | {key: _sum(base[key], delta) for key, delta in deltas.items()}

    @property
    def has_head(self) -> bool:
        """Whether the adapter brings a head of its own."""
        prefixes = (*self.spec.prefix, "")
        keys = [key.removeprefix(p) for key in split(self.adapter)[1] for p in prefixes]
        return any(_below(key, self._heads()) for key in keys)

    def _named(self, tensors):
        """The tensors under the first of the spellings of their keys."""
        rows = {}
        heads = self.spec.cls.head_names  # of which the spellings are different layers
        for name, value in (self.spec.names or {}).items():
            if name in heads:
                continue
            for part in value if isinstance(value, list) else [value]:
                first, *others = [spelling.strip() for spelling in part.split("|")]
                rows |= dict.fromkeys(others, first)
        return {str(translate(key, rows)): tensor for key, tensor in tensors.items()}

    def _heads(self):
        """The names, in files of this layout, of the dense layers that give logits."""
        return self.spec.heads or self.spec.cls.head_names


def _below(key, layers):
    return key.rpartition(".")[0] in layers


def split(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What an adapter adds to the base's tensors, and what takes their place: ({key: product of
    the factors, scaled}, {key: tensor}).

    Raises:
        WeightsError: a factor is missing or does not fit the other.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    replaced, wrapped = {}, {}
    for key, tensor in adapter.tensors().items():
        if ".original_module." in key:
            continue
        match = FACTOR.fullmatch(key)
        plain = key.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
        if match:
            factors.setdefault(match[1], {})[match[2] + match[3]] = tensor
        elif plain == key:
            replaced[key] = tensor
        else:
            wrapped[plain] = tensor
    replaced = {**wrapped, **replaced}  # with bias="all" files have both
    added: dict[str, Tensor] = {}
    for module, parts in factors.items():
        added |= _product(module, parts, adapter)
    return added, replaced


def _product(module, parts, adapter):
    """`{module.weight: scale * B A}`, and the bias if there is one."""
    shapes = [parts[name].shape if name in parts else () for name in ("Aweight", "Bweight")]
    down, up = shapes
    # (r, in, *space) and (out, r, 1 ...)
    fit = len(down) == len(up) > 1 and up[1] == down[0] > 0 and set(up[2:]) <= {1}
    if not fit:
        raise WeightsError(
            f"lora_A and lora_B of {printable(module)} in {WEIGHTS} of {adapter} must be (r, in) "
            f"and (out, r). Received: {down or 'none'} and {up or 'none'}"
        )
    scale = adapter.scale(module, down[0])
    rank, rows = down[0], up[0]

    def read() -> np.ndarray:
        a, b = parts["Aweight"].read(), parts["Bweight"].read()
        product = b.reshape(rows, rank) @ a.reshape(rank, -1)
        return (scale * product).reshape(rows, *down[1:]).astype("float32")

    found = {f"{module}.weight": Tensor((rows, *down[1:]), read)}
    if "Bbias" in parts:
        bias = parts["Bbias"]
        found[f"{module}.bias"] = Tensor(bias.shape, lambda: scale * bias.read())
    return found


def _sum(tensor, other):
    return Tensor(tensor.shape, lambda: tensor.read() + other.read())


def _matches(pattern, module):
    """Whether a pattern of module names has this one, as in PEFT."""
    if not PATTERN.fullmatch(pattern):
        raise checks.WrongValue(
            f"alpha_pattern must have names of modules as keys. Received: {pattern!r:.80}"
        )
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error as error:
        raise checks.WrongValue(f"alpha_pattern: {pattern!r:.80}: {error}") from error

"""The interface of a model family: `Backbone`, and `PyramidBackbone` for multi-scale features."""

import abc
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import keras_hub
import numpy as np

from keras_vit import checks
from keras_vit.layers.base import Norm, Stream
from keras_vit.layers.block import Block
from keras_vit.layers.patches import pair
from keras_vit.models.freezing import Freezable, frozen_layers
from keras_vit.models.lora import AdaptableBackbone, adapted
from keras_vit.models.quantization import Quantizable, quantized_layers
from keras_vit.models.saving import Saving
from keras_vit.types import Tensor

Resizer = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


class Signature:
    """Descriptor for the signature of a backbone's constructor, as shown by `help` and `inspect`.

    It applies to the class only. An instance is called with images, not with these arguments.
    """

    def __get__(self, instance: Any, owner: type["Backbone"]) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        kind = inspect.Parameter.KEYWORD_ONLY
        own = inspect.signature(Backbone.__init__).parameters
        common = [p for p in own.values() if p.kind is kind]
        return inspect.Signature([*owner.parameters().values(), *common])


class Backbone(Saving, AdaptableBackbone, Freezable, Quantizable, keras_hub.models.Backbone):
    """Abstract base class of the backbones.

    A subclass implements `graph` and `grid`. The arguments of `graph`, and those of the functions
    in `passes_on`, become the keyword-only arguments of the constructor and the entries of the
    config: the hyper-parameters, or options, of the model. The output is a sequence of tokens,
    `(B, N, D)`, or a feature map, `(B, H, W, C)`.

    Attributes:
        passes_on: functions that receive the keyword arguments which `graph` does not name.
        given: names of their arguments that `graph` sets itself.
    """

    passes_on: ClassVar[tuple[Callable, ...]] = ()
    given: ClassVar[tuple[str, ...]] = ()

    __signature__ = Signature()

    @staticmethod
    @abc.abstractmethod
    def graph(*args: Any, **options: Any) -> Any:
        """Build the Keras graph of the model from its hyper-parameters.

        Returns:
            The input and output tensors. A `PyramidBackbone` also returns its feature maps as a
            third item, {"P2": 1/4 of the image's resolution, "P3": 1/8, ...}.
        """

    @staticmethod
    @abc.abstractmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        """(rows, columns) of the patch tokens, or of the feature map.

        Args:
            options: all hyper-parameters. If `image_size` is None, the grid is that of the
                position embedding.

        Raises:
            ValueError: if the image size does not fit the other hyper-parameters, or is None and
                there is no position embedding.
        """

    @classmethod
    def changed(cls, options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint's hyper-parameters after a caller's changes, for example of the image size.

        Args:
            options: all hyper-parameters of the checkpoint.
            changes: what a caller of `from_preset` passed: `image_size`, `patch_size` and others.

        Raises:
            ValueError: if the changes do not fit the other hyper-parameters.
        """
        return {**options, **changes}

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        """Functions that adapt checkpoint weights to another image, window or patch size.

        Args:
            old: all hyper-parameters of the checkpoint.

        Returns:
            {pattern of variable paths: function}. In a pattern, `*` matches anything. A function
            takes the array, with Keras' order of axes, and the shape of the variable, and returns
            an array of that shape.

        Raises:
            ValueError: if the weights cannot be adapted to this model's size.
        """
        return {}

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Infer hyper-parameters from the shapes in a state dict, for files without a config.

        Args:
            shapes: {timm's key: shape}, with PyTorch's order of axes.

        Raises:
            ValueError: if the tensors are not those of this family.
        """
        raise checks.WrongValue(
            f"The hyper-parameters of a {cls.__name__} cannot be inferred from tensor shapes; "
            "a config is needed."
        )

    @property
    def num_prefix_tokens(self) -> int:
        """The number of output tokens before the patch tokens."""
        return 0

    @property
    def blocks(self) -> Sequence[Block]:
        """The repeated blocks, in order."""
        return ()

    @property
    def final_norm(self) -> Any:
        """The norm that ends the backbone, or None."""
        return None

    @property
    def first_projection(self) -> Any:
        """The convolution that is the only reader of the images and does not pad them, or None."""
        return None

    def links(self) -> Iterable[Norm]:
        """What export can fold into neighboring weights, beside the links of the layers."""
        return ()

    def streams(self) -> list[Stream]:
        """The residual streams that only LayerNorms read."""
        return []

    @classmethod
    def parameters(cls) -> dict[str, inspect.Parameter]:
        """{name: parameter} of the hyper-parameters."""
        parameters: dict[str, inspect.Parameter] = {}
        for function in (cls.graph, *cls.passes_on):
            for name, parameter in inspect.signature(function).parameters.items():
                # An argument of two functions belongs to the first, which makes the second's of it.
                own = name not in ("self", "dtype", *parameters)
                own &= function is cls.graph or name not in cls.given
                if own and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return parameters

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """{name: default value} of the hyper-parameters that have one."""
        values = {name: p.default for name, p in cls.parameters().items()}
        return {k: v for k, v in values.items() if v is not inspect.Parameter.empty}

    @classmethod
    def complete(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Add the default values of missing hyper-parameters.

        Lists, which is what JSON makes of tuples, become tuples; `image_size` becomes a pair.
        """
        full = {**cls.defaults(), **options}
        full = {k: tuple(v) if isinstance(v, list) else v for k, v in full.items()}
        if full.get("image_size") is not None:
            full["image_size"] = pair(full["image_size"])
        return full

    def __init__(
        self,
        *args: Any,
        dtype: Any = None,
        name: str | None = None,
        trainable: bool = True,
        **options: Any,
    ):
        # abc.ABC cannot check this: Keras also calls `__new__` of the abstract base classes.
        abstract = [
            method.__name__
            for method in (self.graph, self.grid)
            if getattr(method, "__isabstractmethod__", False)
        ]
        if abstract:
            raise TypeError(
                f"{type(self).__name__} is an abstract class and cannot be instantiated: "
                f"it does not implement {' and '.join(abstract)}."
            )
        known = self.parameters()
        check_arguments(type(self).__name__, known, args, options)
        options = self.complete(options)
        inputs, outputs, *levels = self.graph(**options, dtype=dtype)
        super().__init__(
            inputs=inputs, outputs=outputs, dtype=dtype, name=name, trainable=trainable
        )
        self.options = options
        for pyramid in levels:  # of a PyramidBackbone only
            self.pyramid_outputs = pyramid

    def get_config(self) -> dict[str, Any]:
        # KerasHub stores a DTypePolicyMap here. It loses the dtypes of the unquantized layers, and
        # a model loaded with one cannot be saved again.
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        config = {**super().get_config(), "dtype": dtype, **quantized_layers(self)}
        return {**config, **frozen_layers(self), **adapted(self), **self.options}

    def option(self, name: str) -> Any:
        """The value of a hyper-parameter; None if this family does not have it."""
        return self.options.get(name)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the images, in pixels; None for images of any size."""
        return self.options["image_size"]

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of the patch tokens, or of the feature map."""
        return self.grid(self.options)

    @property
    def example_size(self) -> tuple[int, int]:
        """An image size that the model accepts, (height, width): `image_size` if it is set."""
        return self.image_size or self._smallest_valid_size()

    def _smallest_valid_size(self):
        for size in range(224, 1024):
            try:
                self.grid({**self.options, "image_size": (size, size)})
            except ValueError:
                continue
            return size, size
        raise ValueError(f"No image size from 224 to 1024 pixels fits this {type(self).__name__}.")

    def leading_tokens(self, count: int) -> Tensor:
        """The first `count` output tokens, `(B, count, D)`."""
        return self.output[:, :count]

    def default_lora_layer_names(self) -> list[str]:
        """The layers that `enable_lora` applies to by default."""
        return ["qkv"]


def _inject_functional():
    """Create an instance of KerasHub's base class before any subclass of it is instantiated.

    Keras inserts `Functional` into the bases of a class when its first instance is created. This
    fails for diamond inheritance, as in `PyramidBackbone`, unless it has been done before.
    """
    x = keras.Input((1,))
    keras_hub.models.Backbone(x, x, name="backbone")


_inject_functional()


class PyramidBackbone(Backbone, keras_hub.models.FeaturePyramidBackbone):
    """Abstract base class of the backbones with feature maps at several scales.

    Attributes:
        pyramid_outputs: {"P2": `(B, H/4, W/4, C)`, "P3": `(B, H/8, W/8, C')`, ...}, which
            KerasHub's detection and segmentation models use.
    """


def check_arguments(name: str, known: Mapping[str, Any], args: Sequence, options: Mapping) -> None:
    """Check the arguments of a constructor.

    Args:
        name: name of the class.
        known: {name: parameter} of the arguments that it takes, all keyword-only.
        args, options: the positional and keyword arguments of the call.

    Raises:
        TypeError: if there are positional arguments.
        ValueError: if an argument is unknown or a required one is missing.
    """
    if args:
        first = "image_size" if "image_size" in known else next(iter(known))
        raise TypeError(
            f"The arguments of {name} are keyword-only, for example {name}({first}=...). "
            f"Received positional arguments: {', '.join(f'{value!r:.40}' for value in args)}"
        )
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"{name} has no argument {', '.join(unknown)}. Its arguments are: {', '.join(known)}."
        )
    needed = [n for n, p in known.items() if p.default is p.empty and n not in options]
    if needed:
        raise ValueError(f"Missing arguments of {name}: {', '.join(f'{n}=' for n in needed)}.")

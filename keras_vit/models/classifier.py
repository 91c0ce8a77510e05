"""What every classifier adds to a backbone: pooling and head, the ways to load and save."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self, Unpack

import keras
import keras_hub
from keras.src.models.functional import Functional

from keras_vit.images import ImagePreprocessor
from keras_vit.labels import imagenet_labels
from keras_vit.layers.base import Norm, Stream, arguments
from keras_vit.models import head
from keras_vit.models.activation import (
    default_loss,
    default_metric,
    expects_probabilities,
    of_loss,
    resolve,
)
from keras_vit.models.base import Backbone
from keras_vit.models.freezing import Freezable, frozen_layers
from keras_vit.models.lora import Adaptable, adapted
from keras_vit.models.quantization import Quantizable, quantized_layers
from keras_vit.models.saving import Saving, check_room
from keras_vit.models.trainer import ImageTrainer
from keras_vit.text import printable
from keras_vit.types import Path, PresetOptions, Tensor

# KerasHub takes `Functional` from the ancestors of its classes whenever a model is made, and Keras
# puts it back: a model that another thread calls meanwhile would fail. Here it stays.
PIPELINE = keras_hub.models.Task.__bases__[0]  # the class that loses it


class ImageClassifier(
    Saving,
    Adaptable,
    Freezable,
    ImageTrainer,
    Quantizable,
    keras_hub.models.ImageClassifier,
    Functional,
):
    """Base of the classifiers: preprocessed floats `(B, H, W, C)` -> float32 logits `(B,
    num_classes)`.

    Args:
        backbone: a backbone of this package.
        num_classes: width of the head; 0: no head, the pooled features come out.
        preprocessor: what `predict`, `fit` and `evaluate` apply to raw images, or None.
        pooling: `"token"`: the class token (equation 4 of https://arxiv.org/abs/2010.11929);
            `"avg"`: the mean of the patch tokens; `"token_avg"`: both, joined to 2D (DINOv2 in
            transformers); `"tokens"`: all tokens before the patches, joined (several class tokens:
            `reg_tokens`); `"seq"`: the patch tokens, weighted by attention
            (https://arxiv.org/abs/2104.05704); `"map"`: an attention pool
            (https://arxiv.org/abs/2106.04560).
        pool_include_prefix: whether `"avg"`, `"seq"` and `"map"` pool over prefix tokens, too.
        fc_norm: a norm after the pooling, for a backbone that ends without one.
        fc_norm_eps: its epsilon; None: that of the backbone's norms.
        representation_size: width of a dense layer before the head (pre-logits; section 3.1 of
            the ViT paper), or None.
        representation_activation: its activation: `"tanh"`, or one that `Mlp` takes.
        drop_rate: dropout before the head, in training only.
        labels: the names of the classes, or None.
        activation: what makes predictions of logits, in `classify` and in exported files:
            `"softmax"`: of the classes one is right; `"sigmoid"`: any number of them; None: the
            outputs are numbers (regression). By default softmax, or sigmoid for a single logit.
            `compile` sets it to what its loss goes with. The model itself returns logits.

    Raises:
        ValueError: unknown pooling; token pooling without a class token; a number of labels
            other than `num_classes`; an unknown activation.
    """

    backbone_cls: ClassVar[type[Backbone]]
    preprocessor_cls = ImagePreprocessor
    head_names: ClassVar[tuple[str, ...]] = ("head",)  # of the dense layers that give logits
    keeps_pre_logits: ClassVar[bool] = False  # whether a fresh head stands on a trained pre_logits
    source: str | None = None  # where from_preset took the weights: a directory, or a Hub address
    preset: str | None = None  # and its name
    history: keras.callbacks.History | None = None  # of the last fit

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        preprocessor: Any = None,
        pooling: str = "token",
        pool_include_prefix: bool = False,
        fc_norm: bool = False,
        fc_norm_eps: float | None = None,
        representation_size: int | None = None,
        representation_activation: str = "tanh",
        drop_rate: float = 0.0,
        labels: Sequence[str] | None = None,
        activation: str | None = "auto",
        **kwargs: Any,
    ):
        if labels is not None and num_classes and len(labels) != num_classes:
            raise ValueError(
                f"labels must name the {num_classes} classes. Received: {len(labels)} names"
            )
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.num_classes = num_classes
        self.pooling = pooling
        self.pool_include_prefix = pool_include_prefix
        self.fc_norm = fc_norm
        self.fc_norm_eps = fc_norm_eps
        self.representation_size = representation_size
        self.representation_activation = representation_activation
        self.drop_rate = drop_rate
        self.labels = None if labels is None else [printable(label) for label in labels]
        self.activation = resolve(activation, num_classes)
        self.pool = self.make_pool()
        # KerasHub's own classifier head pools maps of features: skip it. The graph is flat: each
        # block of the backbone is a layer of the classifier.
        ancestors = PIPELINE.__bases__
        super(keras_hub.models.ImageClassifier, self).__init__(
            inputs=backbone.input, outputs=self.logits(self.pool()), **kwargs
        )
        PIPELINE.__bases__ = ancestors  # KerasHub's own models still need them

    def make_pool(self) -> head.Pooling:
        """How the head reads the backbone."""
        return head.pooling(self.pooling)(self.backbone, self.pool_include_prefix)

    def features(self, x: Tensor) -> Tensor:
        """Norm, representation layer and dropout on pooled features: `(B, D) -> (B, D)`,
        float32."""
        if self.fc_norm:
            x = head.norm(self.backbone, x, self.fc_norm_eps)
        if self.representation_size:
            x = head.pre_logits(x, self.representation_size, self.representation_activation)
        return head.dropout(x, self.drop_rate) if self.drop_rate else x

    def logits(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of what the pooling gives, or features, float32."""
        x = self.features(x)
        return head.dense(self.num_classes, "head")(x) if self.num_classes else head.float32(x)

    @property
    def heads(self) -> list[keras.layers.Dense]:
        """The dense layers that give logits; several: the logits are their mean."""
        return [layer for layer in self.layers if layer.name in self.head_names]

    def links(self) -> Iterable[Norm]:
        """What the layers behind a norm can take over from it, see `Layer.links`."""
        yield from self.backbone.links()
        named = {layer.name: layer for layer in self.layers}
        # pre_logits and fc_norm stand before the first head alone.
        first = [named["pre_logits"]] if "pre_logits" in named else self.heads[:1]
        if self.fc_norm:
            yield named["fc_norm"].read_by(*first)
        elif self.backbone.final_norm is not None:
            readers = self.pool.readers([*first, *self.heads[1:]])
            if readers:
                yield self.backbone.final_norm.read_by(*readers)

    def streams(self) -> list[Stream]:
        """The backbone's residual streams that need no mean, see `Stream`."""
        found = []
        for stream in self.backbone.streams():
            if not stream.leaves:
                found.append(stream)
            elif self.fc_norm and self.pool.linear and len(self.head_names) == 1:
                norm = self.get_layer("fc_norm")
                found.append(Stream(stream.summands, (*stream.readers, norm), stream.source))
        return found

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes: `labels`, ImageNet's of a model with 1000 classes, or None."""
        return self.labels or (imagenet_labels() if self.num_classes == 1000 else None)

    def get_config(self) -> dict[str, Any]:
        own = arguments(ImageClassifier.__init__)
        own = {
            name: getattr(self, name) for name in own if name not in ("backbone", "preprocessor")
        }
        config = super(keras_hub.models.ImageClassifier, self).get_config()
        of_backbone = self.backbone._flatten_layers()  # whose config has them
        quantized = quantized_layers(self, besides=of_backbone)
        return {**config, **own, **quantized, **frozen_layers(self), **adapted(self)}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the model's input, in pixels; None: any."""
        return self.backbone.image_size

    @classmethod
    def from_preset(cls, preset: Path, **options: Unpack[PresetOptions]) -> Self:
        """A model with the weights of a checkpoint.

        Args:
            preset: a name of `list_presets()`, `"hf://org/name"` (with `@revision`), `"org/name"`,
                a directory: the layout of Keras, of timm or of transformers; or a file: google-
                research's `.npz`, torchvision's state dict as `.safetensors`.
            num_classes: None: the checkpoint's head; a number: a fresh head; 0: no head, the
                pooled features come out.
            image_size: int or (height, width), in pixels: positions are resampled as timm does.
                None: a model that takes any size that the patch divides; by default the
                checkpoint's size.
            patch_size: in pixels; the patch kernel is resized as FlexiViT's and timm's are.
            in_channels: channels of the input; the first kernel is adapted as timm does.
            pooling: `"token"`, `"avg"`, `"token_avg"`, `"tokens"`, `"seq"`, `"map"`.
            drop_rate, drop_path_rate, patch_drop_rate: dropout before the head, stochastic depth,
                the part of the patches that a ViT leaves out; training only.
            dtype: a Keras dtype policy, for instance `"mixed_bfloat16"`.
            load_weights: False: the architecture with random weights, nothing is downloaded but
                config.json (and not even that for a name of the table).
            num_heads: of a file that does not say it (torchvision's, of another width than its own
                models).
            mean, std: one number, or one per channel, for pixels in 0..1; crop_pct, crop_mode,
                interpolation: as in `ImageConverter`. All in place of the checkpoint's, and for
                files that do not say them.
            labels: the names of the classes, in place of the checkpoint's.
            revision, token, cache_dir, local_files_only: as in `huggingface_hub`.

        Returns:
            The classifier; its class is this one or one derived from it.

        Raises:
            ValueError: an unknown name (the nearest ones are said), an unknown layout, weights
                that do not fit (all of them are listed), an image size that the patch does not
                divide.
            keras_vit.hub.HubError: the Hub could not be asked, or refused.
        """
        from keras_vit import zoo  # it stands above, and asks this class for its parts

        return zoo.load_classifier(cls, preset, **options)

    # A preset holds no training state: KerasHub's own two methods would keep the optimizer's.

    def save_task_weights(self, filepath: Path) -> None:
        """The weights that are not the backbone's, to a `.weights.h5` file."""
        backbone = {id(v) for v in self.backbone.variables}
        check_room(filepath, [v for v in self.variables if id(v) not in backbone])
        keras.saving.save_weights(self, filepath, objects_to_skip=self._not_of_the_task())

    def load_task_weights(self, filepath: Path) -> None:
        """The inverse of `save_task_weights`."""
        keras.saving.load_weights(self, filepath, objects_to_skip=self._not_of_the_task())

    def _not_of_the_task(self):
        return [*self.backbone._flatten_layers(), self.optimizer]

    def compile(
        self, optimizer: Any = "auto", loss: Any = "auto", *, metrics: Any = "auto", **kwargs: Any
    ) -> None:
        """As `keras.Model.compile`; `activation` becomes what the loss goes with.

        Args:
            optimizer: `"auto"`: Adam with a learning rate of 5e-5.
            loss: of logits; `"auto"`: cross-entropy, binary for an activation of `"sigmoid"`; the
                squared error for None.
            metrics: `"auto"`: the accuracy that goes with the loss, or the absolute error.

        Warns:
            UserWarning: the loss takes probabilities, and the model returns logits.
        """
        if loss == "auto":
            loss = default_loss(self.activation)
        else:
            if self.num_classes:
                self.activation = of_loss(loss, self.activation)
            if expects_probabilities(loss):
                warnings.warn(
                    f"The model returns logits, and the loss {loss!r:.80} takes probabilities. "
                    "Give an object made with from_logits=True, for example "
                    "keras.losses.SparseCategoricalCrossentropy(from_logits=True).",
                    stacklevel=2,
                )
        if metrics == "auto":
            metrics = [default_metric(self.activation)]
        super().compile(optimizer, loss, metrics=metrics, **kwargs)

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if config and not self.optimizer.built:  # no state of it will be in the file
            config["optimizer"] = {**keras.optimizers.serialize(self.optimizer), "built": False}
        return config

    def save_to_timm(self, directory: Path, allow_epsilon: bool = False) -> None:
        """Write config.json, model.safetensors and a model card that timm loads, with equal logits.

        In PyTorch: `timm.create_model("local-dir:DIRECTORY", pretrained=True)`; uploaded to the
        Hub, `timm.create_model("hf-hub:org/name", pretrained=True)`.

        Args:
            directory: where to write; it is made if need be.
            allow_epsilon: write it even if timm's architecture differs in the epsilon of its norms.

        Raises:
            ValueError: no architecture of timm has this structure, or it has another epsilon; both
                are named.
        """
        from keras_vit.layouts import timm

        timm.write_model(self, directory, allow_epsilon)

    def save_to_transformers(self, directory: Path) -> None:
        """The same for `AutoModelForImageClassification.from_pretrained(DIRECTORY)`: ViT and DeiT.

        Raises:
            ValueError: transformers' ViT and DeiT do not have what this model has; all of it is
                named.
        """
        from keras_vit.layouts import transformers

        transformers.write_model(self, directory)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras warns and skips this where compile() is overridden, as KerasHub's is.
        optimizer = config["optimizer"]
        self.compile(**keras.saving.deserialize_keras_object(config))
        if not isinstance(optimizer, dict) or optimizer.get("built", True):
            self.optimizer.build(self.trainable_variables)


class AverageClassifier(ImageClassifier):
    """A classifier whose `pooling` defaults to `"avg"`, for backbones without a class token."""

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        preprocessor: Any = None,
        pooling: str = "avg",
        **kwargs: Any,
    ):
        super().__init__(backbone, num_classes, preprocessor, pooling, **kwargs)

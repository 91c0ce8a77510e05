"""What every classifier adds to a backbone: pool and head, the ways to load and save."""

import keras
import keras_hub
from keras import ops

from keras_vit.images import ImagePreprocessor
from keras_vit.layers.attention import AttentionPool
from keras_vit.layers.base import arguments, initial
from keras_vit.layers.norm import normalization
from keras_vit.models.quantization import Quantizable, quantized_layers
from keras_vit.models.raw import OnRawImages

POOLINGS = ("token", "avg", "token_avg", "map")


class ImageClassifier(OnRawImages, Quantizable, keras_hub.models.ImageClassifier):
    """Base of the classifiers: preprocessed floats `(B, H, W, C)` -> float32 logits `(B,
    num_classes)`.

    Args:
        backbone: a backbone of this package.
        num_classes: width of the head; 0: no head, the pooled features come out.
        preprocessor: what `predict`, `fit` and `evaluate` apply to raw images, or None.
        pooling: `"token"`: the class token (equation 4 of https://arxiv.org/abs/2010.11929);
            `"avg"`: the mean of the patch tokens; `"token_avg"`: both, joined to 2D (DINOv2 in
            transformers); `"map"`: an attention pool
            (https://arxiv.org/abs/2106.04560).
        pool_include_prefix: whether `"avg"` and `"map"` pool over prefix tokens, too.
        fc_norm: a norm after the pooling, for a backbone that ends without one.
        representation_size: width of the tanh layer before the head (pre-logits; section 3.1 of
            the ViT paper), or None.
        drop_rate: dropout before the head, in training only.
        labels: the names of the classes, or None.

    Raises:
        ValueError: unknown pooling; token pooling without a class token; a number of labels
            other than `num_classes`.
    """

    preprocessor_cls = ImagePreprocessor
    load = None  # zoo.py and save.py stand above and hand these down
    write = None
    source = None  # where from_preset took the weights: a directory, or hf://org/name@commit
    preset = None  # and its name

    def __init__(
        self,
        backbone,
        num_classes,
        preprocessor=None,
        pooling="token",
        pool_include_prefix=False,
        fc_norm=False,
        representation_size=None,
        drop_rate=0.0,
        labels=None,
        **kwargs,
    ):
        if pooling not in POOLINGS:
            names = ", ".join(POOLINGS)
            raise ValueError(f"pooling must be one of {names}. Received: {pooling!r}")
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
        self.representation_size = representation_size
        self.drop_rate = drop_rate
        self.labels = None if labels is None else [str(label) for label in labels]
        self.activation = None  # KerasHub's losses ask for it: logits
        # KerasHub's own classifier head pools maps of features: skip it.
        super(keras_hub.models.ImageClassifier, self).__init__(
            inputs=backbone.input, outputs=self.head(self.pool()), **kwargs
        )

    def pool(self):
        """The pooled features, `(B, D)`, or `(B, 2D)`. The graph is flat: each block of the
        backbone is a layer of the classifier."""
        backbone, prefix = self.backbone, self.backbone.num_prefix_tokens
        if self.pooling.startswith("token") and not prefix:
            raise ValueError(f'pooling="{self.pooling}" needs a class token. Use "avg" or "map".')
        if self.pooling == "token":
            return self.leading(0)
        x = backbone.output
        if prefix and not self.pool_include_prefix:
            x = x[:, prefix:]
        if self.pooling in ("avg", "token_avg"):
            x = keras.layers.GlobalAveragePooling1D(dtype="float32", name="pool")(x)
            if self.pooling == "avg":
                return x
            return ops.concatenate([self.float32(backbone.output[:, 0]), x], axis=-1)
        options = ("num_heads", "mlp_ratio", "activation", "norm_eps")
        options = {name: backbone.option(name) for name in options}
        return AttentionPool(**options, dtype=backbone.dtype_policy, name="attn_pool")(x)

    def leading(self, index):
        """One prefix token of the output, `(B, D)`."""
        x = self.backbone.leading_tokens(index + 1)
        x = x if index == 0 else x[:, index:]
        return ops.reshape(x, (-1, x.shape[-1]))

    def features(self, x):
        """Norm, representation layer and dropout on pooled features: `(B, D) -> (B, D)`,
        float32."""
        if self.fc_norm:
            norm = {
                "norm": self.backbone.option("norm"),
                "epsilon": self.backbone.option("norm_eps"),
            }
            x = normalization(**norm, dtype="float32", name="fc_norm")(x)
        if self.representation_size:
            x = keras.layers.Dense(
                self.representation_size,
                activation="tanh",
                kernel_initializer=initial(),
                dtype="float32",
                name="pre_logits",
            )(x)
        if self.drop_rate:
            x = keras.layers.Dropout(self.drop_rate, dtype="float32", name="head_drop")(x)
        return x

    def head(self, x):
        x = self.features(x)
        return self.dense("head")(x) if self.num_classes else self.float32(x)

    def dense(self, name):
        # float32 under any policy: a half-precision logit costs accuracy and saves nothing.
        return keras.layers.Dense(
            self.num_classes, kernel_initializer=initial(), dtype="float32", name=name
        )

    def float32(self, x):
        return x if x.dtype == "float32" else ops.cast(x, "float32")

    def get_config(self):
        own = arguments(ImageClassifier.__init__)
        own = {
            name: getattr(self, name) for name in own if name not in ("backbone", "preprocessor")
        }
        config = super(keras_hub.models.ImageClassifier, self).get_config()
        of_backbone = self.backbone._flatten_layers()  # whose config has them
        return {**config, **own, **quantized_layers(self, besides=of_backbone)}

    @property
    def image_size(self):
        """(height, width) of the model's input, in pixels."""
        return self.backbone.image_size

    @classmethod
    def from_preset(cls, preset, **options):
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
            pooling: `"token"`, `"avg"`, `"token_avg"`, `"map"`.
            drop_rate, drop_path_rate: dropout before the head, stochastic depth; training only.
            dtype: a Keras dtype policy, for instance `"mixed_bfloat16"`.
            load_weights: False: the architecture with random weights, nothing is downloaded but
                config.json (and not even that for a name of the table).
            revision, token, cache_dir, local_files_only: as in `huggingface_hub`.

        Returns:
            The classifier; its class is this one or one derived from it.

        Raises:
            ValueError: an unknown name (the nearest ones are said), an unknown layout, weights
                that do not fit (all of them are listed), an image size that the patch does not
                divide.
            keras_vit.hub.HubError: the Hub could not be asked, or refused.
        """
        return ImageClassifier.load(cls, preset, **options)

    # A preset holds no training state: KerasHub's own two methods would keep the optimizer's.

    def save_task_weights(self, filepath):
        """The weights that are not the backbone's, to a `.weights.h5` file."""
        keras.saving.save_weights(self, filepath, objects_to_skip=self._not_of_the_task())

    def load_task_weights(self, filepath):
        """The inverse of `save_task_weights`."""
        keras.saving.load_weights(self, filepath, objects_to_skip=self._not_of_the_task())

    def _not_of_the_task(self):
        return [*self.backbone._flatten_layers(), self.optimizer]

    def get_compile_config(self):
        config = super().get_compile_config()
        if config and not self.optimizer.built:  # no state of it will be in the file
            config["optimizer"] = {**keras.optimizers.serialize(self.optimizer), "built": False}
        return config

    def save_to_timm(self, directory):
        """Write config.json, model.safetensors and a model card that timm loads, with equal logits.

        In PyTorch: `timm.create_model("local-dir:DIRECTORY", pretrained=True)`; uploaded to the
        Hub, `timm.create_model("hf-hub:org/name", pretrained=True)`.

        Raises:
            ValueError: no architecture of timm has this structure.
        """
        ImageClassifier.write(self, directory, "timm")

    def save_to_transformers(self, directory):
        """The same for `AutoModelForImageClassification.from_pretrained(DIRECTORY)`: ViT and DeiT.

        Raises:
            ValueError: transformers' ViT and DeiT do not have what this model has; all of it is
                named.
        """
        ImageClassifier.write(self, directory, "transformers")

    def compile_from_config(self, config):
        # Keras warns and skips this where compile() is overridden, as KerasHub's is.
        optimizer = config["optimizer"]
        self.compile(**keras.saving.deserialize_keras_object(config))
        if not isinstance(optimizer, dict) or optimizer.get("built", True):
            self.optimizer.build(self.trainable_variables)

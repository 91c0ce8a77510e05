"""What the methods of pre-training by hidden patches share."""

import math
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_vit.layers import PatchEncoder, Patches, TransformerBlock
from keras_vit.layers.base import initial
from keras_vit.models.base import Backbone
from keras_vit.models.trainer import ImageTrainer
from keras_vit.types import Tensor


class Pretraining(ImageTrainer, keras.Model):
    """Base class: hides patches of pictures from a backbone, and has it predict them.

    The backbone is trained in place. It is a chain that begins with a `PatchEncoder`, as a ViT is.

    Args:
        backbone: of this package, for pictures of one size.
        preprocessor: that of a classifier, an `ImagePreprocessor`.
        kwargs: of `keras.Model`.

    Raises:
        ValueError: the backbone is another one.
    """

    recipe: ClassVar[str]

    def __init__(self, backbone: Backbone, preprocessor: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_classes, self.activation = 0, None
        self.backbone = backbone
        self.preprocessor = preprocessor
        encoders = [layer for layer in backbone.layers if isinstance(layer, PatchEncoder)]
        chain = [x for x in backbone.layers if not isinstance(x, keras.layers.InputLayer)]
        if not encoders or chain[0] is not encoders[0] or not encoders[0].separate:
            raise ValueError(
                "Patches are masked between a PatchEncoder and the blocks. Received: "
                f"{type(backbone).__name__}, which does not begin with one whose tokens see their "
                "own patch only. Take a ViT or a DeiT with plain patches."
            )
        if backbone.image_size is None:
            raise ValueError("The backbone must have an image size. Received: image_size=None")
        self.embed, self.chain = encoders[0], chain[1:]
        self.width, self.grid = self.embed.embed_dim, backbone.grid_size
        self.count = math.prod(self.grid)
        self.patches = Patches(self.embed.patch_size, dtype="float32", name="patches")
        self.channels = backbone.input.shape[-1]
        self.random = keras.random.SeedGenerator(0)

    @property
    def class_names(self) -> None:
        """There are no classes."""

    def preprocess_samples(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """The preprocessed pictures; labels are left out."""
        x = self.preprocessor(x)
        return (x[0] if isinstance(x, tuple) else x,)

    def token(self, width: int, name: str) -> Any:
        """A learned token `(1, 1, width)`."""
        return self.add_weight(shape=(1, 1, width), initializer=initial(), name=name)

    def encode(self, tokens: Tensor, training: bool | None) -> Tensor:
        """All of the backbone after the patch embedding."""
        for layer in self.chain:
            with_training = isinstance(layer, TransformerBlock)
            tokens = layer(tokens, training=training) if with_training else layer(tokens)
        return tokens

    def shuffled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A random order of the patches of each picture and its inverse, `(B, N)` ints each."""
        noise = keras.random.uniform((ops.shape(x)[0], self.count), seed=self.random)
        order = ops.argsort(noise, axis=1)
        return order, ops.argsort(order, axis=1)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return {metric.name: metric.result() for metric in self.metrics}

    def loss_of(self, x: Tensor, outputs: Any) -> Tensor:
        """The loss of a batch."""
        raise NotImplementedError

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        return self.loss_of(ops.cast(x, "float32"), y_pred)

    def target(self, x: Tensor) -> Tensor:
        """What is predicted of each patch."""
        return self.patches(x)

    def picture(self, patches: Tensor) -> np.ndarray:
        """Patches `(B, N, P*P*C)` laid back, in 0..1: `(B, H, W, C)`."""
        p, (rows, columns) = self.embed.patch_size, self.grid
        x = ops.convert_to_numpy(patches).reshape(-1, rows, columns, p, p, self.channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * p, columns * p, self.channels)
        scale, offset = self.preprocessor.image_converter.scale_and_offset()
        return np.clip((x - offset) / scale / 255, 0, 1)

    def views(
        self, patches: Tensor, prediction: Tensor, mask: Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pictures, what is visible of them, and that with the hidden patches as predicted."""
        mask = ops.convert_to_numpy(mask)[..., None]
        whole, made = (ops.convert_to_numpy(x) for x in (patches, prediction))
        grey = np.zeros_like(whole)  # the mean of the normalisation
        hidden = (whole, whole * (1 - mask) + grey * mask, whole * (1 - mask) + made * mask)
        first, second, third = map(self.picture, hidden)
        return first, second, third

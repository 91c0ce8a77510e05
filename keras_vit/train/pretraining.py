"""Pre-training without labels: masked patch prediction, SimMIM and MAE."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_vit.layers import PatchEncoder, Patches, TransformerBlock
from keras_vit.layers.base import initial
from keras_vit.layers.norm import normalization
from keras_vit.layers.positions import sincos
from keras_vit.layers.tokens import take
from keras_vit.models.base import Backbone
from keras_vit.models.trainer import ImageTrainer
from keras_vit.train.batches import TrainingBatches
from keras_vit.train.distill import constants
from keras_vit.train.recipe import jit_compile, optimizer_for
from keras_vit.train.recipes import Recipe
from keras_vit.train.recipes import recipe as named
from keras_vit.types import ImageSet, Progress, Tensor


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


class MAE(Pretraining):
    """Masked autoencoder (https://arxiv.org/abs/2111.06377): the encoder sees the visible patches
    alone, a small decoder predicts the pixels of the others.

    The loss is the squared error of the hidden patches, each normalised by its own mean and
    variance. As in the paper the decoder's positions are fixed sines and cosines, and the encoder's
    begin as such (there they stay fixed).

    Args:
        backbone, preprocessor: as in `Pretraining`.
        mask_ratio: the part of the patches that is hidden.
        decoder_dim, decoder_depth, decoder_heads: of the decoder; the paper's by default.
        norm_pix: whether the target is normalised by patch.
    """

    recipe = "mae"

    def __init__(
        self,
        backbone: Backbone,
        preprocessor: Any,
        mask_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        norm_pix: bool = True,
        **kwargs: Any,
    ):
        super().__init__(backbone, preprocessor, **kwargs)
        self.mask_ratio, self.norm_pix = mask_ratio, norm_pix
        self.visible = max(int(self.count * (1 - mask_ratio)), 1)
        self.prefix = self.embed.num_prefix_tokens
        ahead = self.embed.pos_embed.shape[1] - self.count
        self.embed.pos_embed.assign(sincos(self.grid, self.width, ahead)[None])
        dtype = backbone.dtype_policy
        self.decoder_embed = keras.layers.Dense(decoder_dim, dtype=dtype, name="decoder_embed")
        self.mask_token = self.token(decoder_dim, "mask_token")
        self.decoder_positions = sincos(self.grid, decoder_dim, self.prefix)[None]
        options = {"num_heads": decoder_heads, "dtype": dtype}
        self.decoder = [
            TransformerBlock(**options, name=f"decoder_blocks_{i}") for i in range(decoder_depth)
        ]
        self.decoder_norm = normalization(epsilon=1e-6, dtype=dtype, name="decoder_norm")
        pixels = self.embed.patch_size**2 * self.channels
        self.decoder_pred = keras.layers.Dense(pixels, dtype="float32", name="decoder_pred")
        self.decoder_embed.build((None, None, self.width))
        for layer in [*self.decoder, self.decoder_norm, self.decoder_pred]:
            layer.build((None, self.prefix + self.count, decoder_dim))
        self.built = True

    def call(self, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Predictions `(B, N, P*P*C)` of all patches, and 1 where one was hidden, `(B, N)`."""
        order, back = self.shuffled(x)
        # Without patch dropout, which would leave out patches of the visible ones' order.
        tokens = self.embed.assemble(self.embed.tokens(ops.cast(x, self.embed.compute_dtype)))
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        patches = take(patches, order[:, : self.visible])
        seen = self.encode(ops.concatenate([prefix, patches], axis=1), training)
        seen = self.decoder_embed(seen)
        hidden = ops.cast(self.mask_token, seen.dtype)
        shape = (ops.shape(x)[0], self.count - self.visible, seen.shape[-1])
        patches = ops.concatenate([seen[:, self.prefix :], ops.broadcast_to(hidden, shape)], axis=1)
        z = ops.concatenate([seen[:, : self.prefix], take(patches, back)], axis=1)
        z = z + ops.convert_to_tensor(self.decoder_positions, z.dtype)
        for block in self.decoder:
            z = block(z, training=training)
        z = self.decoder_pred(self.decoder_norm(z)[:, self.prefix :])
        return z, ops.cast(back >= self.visible, "float32")

    def target(self, x: Tensor) -> Tensor:
        patches = self.patches(x)
        return self.normalised(patches)[0] if self.norm_pix else patches

    def normalised(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches with mean 0 and variance 1, their means and standard deviations before."""
        mean = ops.mean(patches, axis=-1, keepdims=True)
        count = patches.shape[-1]
        variance = ops.sum(ops.square(patches - mean), axis=-1, keepdims=True) / (count - 1)
        deviation = ops.sqrt(variance + 1e-6)
        return (patches - mean) / deviation, mean, deviation

    def loss_of(self, x: Tensor, outputs: Any) -> Tensor:
        prediction, mask = outputs
        error = ops.mean(ops.square(prediction - self.target(x)), axis=-1)
        return ops.sum(error * mask) / ops.sum(mask)

    def reconstruct(self, images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pictures, what the encoder saw of them, what it makes of that), `(B, H, W, C)` in 0..1.

        The hidden patches get the mean and contrast of the true ones if `norm_pix`."""
        x = ops.convert_to_tensor(self.preprocess_samples(images)[0], "float32")
        prediction, mask = self(x, training=False)
        patches = self.patches(x)
        if self.norm_pix:
            _, mean, deviation = self.normalised(patches)
            prediction = prediction * deviation + mean
        return _shown(self, patches, prediction, mask)


class SimMIM(Pretraining):
    """SimMIM (https://arxiv.org/abs/2111.09886): a mask token in place of hidden patches, one dense
    layer predicts their pixels, the loss is the absolute error.

    The paper's ViT has no absolute positions, but relative biases; here it is any ViT.

    Args:
        backbone, preprocessor: as in `Pretraining`.
        mask_ratio: the part of the picture that is hidden.
        mask_unit: in pixels: squares of this size are hidden as a whole.
    """

    recipe = "simmim"

    def __init__(
        self,
        backbone: Backbone,
        preprocessor: Any,
        mask_ratio: float = 0.6,
        mask_unit: int = 32,
        **kwargs: Any,
    ):
        super().__init__(backbone, preprocessor, **kwargs)
        patch = self.embed.patch_size
        if mask_unit % patch or any(size * patch % mask_unit for size in self.grid):
            raise ValueError(
                f"mask_unit must be a multiple of the patch size {patch} and divide the image size "
                f"{tuple(size * patch for size in self.grid)}. Received: {mask_unit}"
            )
        self.unit = mask_unit // patch
        self.units = tuple(size // self.unit for size in self.grid)
        self.hidden = math.ceil(math.prod(self.units) * mask_ratio)
        self.mask_token = self.token(self.width, "mask_token")
        pixels = patch**2 * self.channels
        self.head = keras.layers.Dense(pixels, dtype="float32", name="pixels")
        self.head.build((None, None, self.width))
        self.built = True

    def mask(self, x: Tensor) -> Tensor:
        """1 where a patch is hidden, `(B, N)`."""
        rows, columns = self.units
        noise = keras.random.uniform((ops.shape(x)[0], rows * columns), seed=self.random)
        rank = ops.argsort(ops.argsort(noise, axis=1), axis=1)
        mask = ops.reshape(ops.cast(rank < self.hidden, "float32"), (-1, rows, columns))
        mask = ops.repeat(ops.repeat(mask, self.unit, axis=1), self.unit, axis=2)
        return ops.reshape(mask, (-1, self.count))

    def call(self, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Predictions `(B, N, P*P*C)` of all patches, and 1 where one was hidden, `(B, N)`."""
        mask = self.mask(x)
        tokens = self.embed.tokens(ops.cast(x, self.embed.compute_dtype))
        where = ops.cast(mask, tokens.dtype)[..., None]
        tokens = tokens * (1 - where) + ops.cast(self.mask_token, tokens.dtype) * where
        z = self.encode(self.embed.assemble(tokens), training)
        return self.head(z[:, self.embed.num_prefix_tokens :]), mask

    def loss_of(self, x: Tensor, outputs: Any) -> Tensor:
        prediction, mask = outputs
        error = ops.mean(ops.abs(prediction - self.target(x)), axis=-1)
        return ops.sum(error * mask) / (ops.sum(mask) + 1e-5)

    def reconstruct(self, images: ImageSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `MAE.reconstruct`."""
        x = ops.convert_to_tensor(self.preprocess_samples(images)[0], "float32")
        prediction, mask = self(x, training=False)
        return _shown(self, self.patches(x), prediction, mask)


class MaskedPatches(Pretraining):
    """Masked patch prediction (https://arxiv.org/abs/2010.11929, appendix B.1.2).

    Half of the patch embeddings are corrupted: 80 % of these become a mask token, 10 % another
    patch of the picture, 10 % stay. Of each corrupted patch the mean colour is predicted, with 3
    bits per channel, that is one of 8^channels classes: eight equal parts of 0..1, the first
    channel's number counts most. (The paper does not say how the colour is rounded.)

    Args:
        backbone, preprocessor: as in `Pretraining`.
        mask_ratio: the part of the patches that is corrupted.
    """

    recipe = "masked_patches"

    def __init__(
        self, backbone: Backbone, preprocessor: Any, mask_ratio: float = 0.5, **kwargs: Any
    ):
        super().__init__(backbone, preprocessor, **kwargs)
        self.corrupted = max(int(self.count * mask_ratio), 1)
        self.mask_token = self.token(self.width, "mask_token")
        self.head = keras.layers.Dense(8**self.channels, dtype="float32", name="colours")
        self.head.build((None, None, self.width))
        self.built = True

    def corrupt(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `(B, N, D)`, some of them replaced, and 1 where one is corrupted, `(B, N)`."""
        order, rank = self.shuffled(tokens)
        mask = ops.cast(rank < self.corrupted, "float32")
        kind = keras.random.uniform(ops.shape(mask), seed=self.random)[..., None]
        # The next patch in the random order is a random other one.
        others = take(tokens, take(ops.roll(order, 1, axis=1)[..., None], rank)[..., 0])
        replaced = ops.where(
            kind < 0.8,
            ops.cast(self.mask_token, tokens.dtype),
            ops.where(kind < 0.9, others, tokens),
        )
        return ops.where(mask[..., None] > 0, replaced, tokens), mask

    def call(self, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Logits `(B, N, 8^C)` of all patches, and 1 where one was corrupted, `(B, N)`."""
        tokens, mask = self.corrupt(self.embed.tokens(ops.cast(x, self.embed.compute_dtype)))
        z = self.encode(self.embed.assemble(tokens), training)
        return self.head(z[:, self.embed.num_prefix_tokens :]), mask

    def target(self, x: Tensor) -> Tensor:
        """The classes of the mean colours, `(B, N)` ints."""
        scale, offset = constants(self.preprocessor)
        colours = ops.reshape(
            self.patches(x), (-1, self.count, self.embed.patch_size**2, len(scale))
        )
        mean = (ops.mean(colours, axis=2) - offset) / scale / 255
        bins = ops.clip(ops.floor(mean * 8), 0, 7)
        digits = ops.convert_to_tensor(8.0 ** np.arange(self.channels)[::-1], "float32")
        return ops.cast(ops.sum(bins * digits, axis=-1), "int32")

    def loss_of(self, x: Tensor, outputs: Any) -> Tensor:
        logits, mask = outputs
        loss = ops.sparse_categorical_crossentropy(self.target(x), logits, from_logits=True)
        return ops.sum(loss * mask) / ops.sum(mask)


METHODS = {"mae": MAE, "simmim": SimMIM, "masked_patches": MaskedPatches}


def _shown(model, patches, prediction, mask):
    mask = ops.convert_to_numpy(mask)[..., None]
    whole, made = (ops.convert_to_numpy(x) for x in (patches, prediction))
    grey = np.zeros_like(whole)  # the mean of the normalisation
    views = (whole, whole * (1 - mask) + grey * mask, whole * (1 - mask) + made * mask)
    return tuple(model.picture(view) for view in views)


class Unlabelled(TrainingBatches):
    """Augmented pictures without labels."""

    def __getitem__(self, index):
        return super().__getitem__(index)[:1]


def pretrain(
    model: Pretraining,
    images: ImageSet,
    epochs: int,
    *,
    recipe: str | Recipe | None = None,
    batch_size: int = 64,
    learning_rate: float | None = None,
    flip: bool = True,
    seed: int = 0,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    progress: Progress | None = None,
    verbose: int | str = "auto",
) -> keras.callbacks.History:
    """Pre-train the backbone of `MAE`, `SimMIM` or `MaskedPatches`, by the method's own recipe.

    Args:
        model: it is compiled and trained in place; take `model.backbone` afterwards.
        images: an array `(B, H, W, C)` or a list of paths.
        epochs: how many times each image is seen.
        recipe: a name of `RECIPES` or a `Recipe`; None: the method's.
        batch_size: images per step; the learning rate is proportional to it.
        learning_rate: the peak; None: the recipe's.
        flip: whether to mirror half of the images.
        seed: int, for the order, the views and the masks.
        callbacks, progress, verbose: as in `finetune`.

    Returns:
        Keras' `History`.

    Raises:
        FloatingPointError: the loss has become NaN or infinite.
    """
    row = named(recipe or model.recipe)
    row = dataclasses.replace(row, flip=row.flip if flip else 0.0)
    nothing = np.zeros(len(images), int)
    converter = model.preprocessor.image_converter
    batches = Unlabelled(
        images, nothing, 1, batch_size, converter, row, seed=seed, progress=progress
    )
    steps = epochs * len(batches)
    made = optimizer_for(model, row, steps, batch_size, learning_rate)
    model.compile(made, jit_compile=jit_compile())
    return model.fit(batches, epochs=epochs, callbacks=callbacks, seed=seed, verbose=verbose)

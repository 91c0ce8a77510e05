"""Fine-tuning by a recipe: optimizer, loss and augmentation in one call."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_vit import data
from keras_vit.models.classifier import ImageClassifier
from keras_vit.train.augment import one_hot
from keras_vit.train.batches import SoftCrossEntropy, TrainingBatches
from keras_vit.train.batches import class_weights as weights_of
from keras_vit.train.checkpointing import checkpoint_gradients
from keras_vit.train.optimizers import Average, Layerwise, optimizer
from keras_vit.train.pictures import Batches, Pictures
from keras_vit.train.recipes import Recipe
from keras_vit.train.recipes import recipe as named
from keras_vit.types import ImageSet, Progress

RATE = 0.06  # the peak learning rate of a model of width 1

Model = TypeVar("Model", bound=keras.Model)


def finetune(
    model: ImageClassifier,
    train: tuple[ImageSet, ArrayLike],
    validation: tuple[ImageSet, ArrayLike] | None = None,
    epochs: int = 5,
    *,
    recipe: str | Recipe = "finetune",
    batch_size: int = 32,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    warmup: float | None = None,
    ema: float | None = None,
    flip: bool = True,
    class_weights: None | str | Mapping[int, float] = None,
    balanced: bool = False,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    progress: Progress | None = None,
    verbose: int | str = "auto",
) -> keras.callbacks.History:
    """Fine-tune a classifier on raw images. The model is compiled and trained in place.

    Each epoch takes new views of the images, by the recipe.

    Args:
        model: a classifier of this package, for instance `from_preset(name, num_classes=5)`; or a
            `Distiller`.
        train: (images, labels): an array `(B, H, W, C)` or a list of paths; ints `(B,)`.
        validation: the same, or None.
        epochs: how many times each image is seen.
        recipe: a name of `RECIPES`, or a `Recipe`. `"finetune"`: light augmentation for small data
            and short trainings, and strong augmentation with layer decay for more.
        batch_size: images per step.
        learning_rate, weight_decay, layer_decay, ema: as in `optimizer`; None: the recipe's.
        warmup: the part of the steps in which the learning rate rises; None: the recipe's.
        flip: whether to mirror half of the images. Not for digits or letters.
        class_weights: of the classes in the loss: None, `"auto"` (inverse to their numbers of
            images) or {class: weight}.
        balanced: whether to draw images of each class equally often.
        gradient_checkpointing: as `checkpoint_gradients`: less memory, more time.
        seed: int, for the order, the views and dropout.
        callbacks: Keras callbacks.
        progress: as in `read_folder`, for decoding.
        verbose: as in `keras.Model.fit`.

    Returns:
        Keras' `History`: `history.history["val_accuracy"]` and so on. With a recipe that mixes
        labels, `accuracy` of the training is that of the larger part.

    Raises:
        ValueError: the model has no preprocessor, a label is not one of its classes, or there is no
            such recipe.
        RuntimeError: `gradient_checkpointing` on JAX.
        FloatingPointError: the loss has become NaN or infinite. No callback sees that epoch's end.
    """
    if getattr(model, "preprocessor", None) is None:
        raise ValueError("The model has no preprocessor, so it cannot take raw images.")
    if gradient_checkpointing:
        checkpoint_gradients(getattr(model, "student", model))
    converter = model.preprocessor.image_converter
    labels = checked(model, train[1])
    row = named(recipe, len(labels), epochs)
    row = dataclasses.replace(row, flip=row.flip if flip else 0.0)
    weights = weights_of(class_weights, labels, model.num_classes)
    batches = TrainingBatches(
        train[0], labels, model.num_classes, batch_size, converter, row,
        weights, balanced, seed, progress,
    )  # fmt: skip
    validation_batches = None
    if validation is not None:
        labels = checked(model, validation[1])
        labels = one_hot(labels, model.num_classes) if batches.soft else labels
        pictures = Pictures(validation[0], converter, progress=progress)
        validation_batches = Batches(pictures, labels, batch_size, converter)
    given: dict[str, Any] = {
        "weight_decay": weight_decay,
        "layer_decay": layer_decay,
        "warmup": warmup,
        "ema": ema,
    }
    row = dataclasses.replace(row, **{k: v for k, v in given.items() if v is not None})
    compile_for(model, row, epochs * len(batches), batch_size, learning_rate, batches.soft)
    return model.fit(
        batches,
        validation_data=validation_batches,
        epochs=epochs,
        callbacks=[*([Average()] if row.ema else []), *callbacks],
        seed=seed,
        verbose=verbose,
    )


def optimizer_for(
    model: Any, row: Recipe, steps: int, batch_size: int, learning_rate: float | None = None
) -> Layerwise:
    """A recipe's optimizer for a model with a `backbone`.

    Args:
        model, row, steps, batch_size, learning_rate: as in `compile_for`.
    """
    if learning_rate is None and row.rate is not None:
        learning_rate = row.rate * batch_size / row.rate_batch
    peak = learning_rate or RATE / model.backbone.output.shape[-1]
    more: dict[str, Any] = {} if row.kind == "sgd" else {"beta_2": row.beta_2}
    return optimizer(
        model,
        peak,
        weight_decay=row.weight_decay,
        layer_decay=row.layer_decay,
        total_steps=steps,
        warmup_steps=round(row.warmup * steps),
        start=min(row.start, peak),
        end=min(row.end, peak),
        clip_norm=row.clip_norm,
        ema=row.ema,
        kind=row.kind,
        **more,
    )


def compile_for(
    model: ImageClassifier,
    row: Recipe,
    steps: int,
    batch_size: int,
    learning_rate: float | None = None,
    soft: bool = False,
) -> None:
    """Compile a classifier with a recipe's optimizer and loss.

    Args:
        model: it keeps its activation.
        row: the recipe.
        steps: of the whole training.
        batch_size: the recipe's learning rate is proportional to it.
        learning_rate: the peak, in place of the recipe's.
        soft: whether labels are distributions `(B, classes)`.
    """
    # The student of a Distiller.
    made = optimizer_for(getattr(model, "student", model), row, steps, batch_size, learning_rate)
    loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy: Any = keras.metrics.SparseCategoricalAccuracy("accuracy")
    if soft:
        loss, accuracy = SoftCrossEntropy(), keras.metrics.CategoricalAccuracy("accuracy")
    if row.binary:
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
    activation = model.activation
    model.compile(made, loss, metrics=[accuracy], jit_compile=jit_compile())
    model.activation = activation  # of BCE, too, one class is right


def adamw(
    model: ImageClassifier,
    steps: int,
    learning_rate: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
) -> Layerwise:
    """AdamW with linear warm-up and cosine decay to 0.

    As in Table 9 of https://arxiv.org/abs/2012.12877. As in timm, weight decay applies to kernels
    only, not to biases, norms, tokens or position embeddings.

    Args:
        model: a built model.
        steps: number of training steps in total.
        learning_rate: the peak; None: 0.06 / width, that is 3e-4 for a ViT-Ti and 8e-5 for a
            ViT-B. (Adam's learning rate scales with 1 / width: Table 3 of
            https://arxiv.org/abs/2203.03466.)
        weight_decay: per step, multiplied by the learning rate.
        warmup: the fraction of the steps in which the learning rate rises.
    """
    return optimizer(
        model,
        learning_rate or RATE / model.backbone.output.shape[-1],
        weight_decay=weight_decay,
        total_steps=steps,
        warmup_steps=round(warmup * steps),
        epsilon=1e-7,
    )


def jit_compile() -> bool | str:
    """The argument for `compile`: False on a CPU with TensorFlow, where training without XLA is
    faster and starts sooner, else `"auto"`."""
    if keras.backend.backend() != "tensorflow":
        return "auto"
    import tensorflow as tf

    return "auto" if tf.config.list_physical_devices("GPU") else False


def fast(model: Model) -> Model:
    """The same model, set to run without XLA where that is faster."""
    if jit_compile() is False:
        model.jit_compile = False
    return model


def checked(model: ImageClassifier, labels: ArrayLike) -> np.ndarray:
    """Labels as an int array `(B,)`; raises ValueError unless all are classes of the model."""
    labels = np.asarray(labels)
    data.check_classes(labels, model.num_classes)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"Labels must be integers from 0 to {model.num_classes - 1}, one for each "
            f"image. Received: {labels.dtype} {labels.shape}"
        )
    return labels

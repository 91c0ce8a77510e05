"""The fine-tuning recipe: AdamW, warm-up and cosine decay, light augmentation."""

from collections.abc import Iterable
from typing import TypeVar

import keras
import numpy as np
from numpy.typing import ArrayLike

from keras_vit import data
from keras_vit.models.classifier import ImageClassifier
from keras_vit.train.pictures import Batches, Pictures, wider
from keras_vit.types import ImageSet, Progress

RATE = 0.06  # the peak learning rate of a model of width 1

Model = TypeVar("Model", bound=keras.Model)


def finetune(
    model: ImageClassifier,
    train: tuple[ImageSet, ArrayLike],
    validation: tuple[ImageSet, ArrayLike] | None = None,
    epochs: int = 5,
    *,
    batch_size: int = 32,
    learning_rate: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    flip: bool = True,
    seed: int = 0,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    progress: Progress | None = None,
    verbose: int | str = "auto",
) -> keras.callbacks.History:
    """Fine-tune a classifier on raw images. The model is compiled and trained in place.

    Images are decoded once if they fit into memory; each epoch takes new random crops and flips.

    Args:
        model: a classifier of this package, for instance `from_preset(name, num_classes=5)`.
        train: (images, labels): an array `(B, H, W, C)` or a list of paths; ints `(B,)`.
        validation: the same, or None.
        epochs: how many times each image is seen.
        batch_size: images per step.
        learning_rate, weight_decay, warmup: as in `adamw`.
        flip: whether to mirror half of the images. Not for digits or letters.
        seed: int, for the order, the crops and dropout.
        callbacks: Keras callbacks.
        progress: as in `read_folder`, for decoding.
        verbose: as in `keras.Model.fit`.

    Returns:
        Keras' `History`: `history.history["val_accuracy"]` and so on.

    Raises:
        ValueError: the model has no preprocessor, or a label is not one of its classes.
        FloatingPointError: the loss has become NaN or infinite. No callback sees that epoch's end.
    """
    if getattr(model, "preprocessor", None) is None:
        raise ValueError("The model has no preprocessor, so it cannot take raw images.")
    converter = model.preprocessor.image_converter
    labels = checked(model, train[1])
    pictures = Pictures(train[0], wider(converter), progress=progress)
    batches = Batches(pictures, labels, batch_size, converter, augment=True, flip=flip, seed=seed)
    validation_batches = None
    if validation is not None:
        labels = checked(model, validation[1])
        pictures = Pictures(validation[0], converter, progress=progress)
        validation_batches = Batches(pictures, labels, batch_size, converter)
    model.compile(
        adamw(model, epochs * len(batches), learning_rate, weight_decay, warmup),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
        jit_compile=jit_compile(),
    )
    return model.fit(
        batches,
        validation_data=validation_batches,
        epochs=epochs,
        callbacks=callbacks,
        seed=seed,
        verbose=verbose,
    )


def adamw(
    model: ImageClassifier,
    steps: int,
    learning_rate: float | None = None,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
) -> keras.optimizers.AdamW:
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
    learning_rate = learning_rate or RATE / model.backbone.output.shape[-1]
    rise = round(warmup * steps)
    rising = {"warmup_target": learning_rate, "warmup_steps": rise} if rise else {}
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if rise else learning_rate, max(steps - rise, 1), **rising
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay, global_clipnorm=1.0)
    spared = [v for v in model.trainable_variables if not v.path.endswith("kernel")]
    optimizer.exclude_from_weight_decay(var_list=spared)
    return optimizer


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

"""The recipe: AdamW, warm-up and cosine, light augmentation; `fit` does the rest."""

import keras
import numpy as np

from keras_vit import data
from keras_vit.train.pictures import Batches, Pictures, wider

RATE = 0.06  # the learning rate of a model of width 1


def finetune(
    model,
    train,
    validation=None,
    epochs=5,
    *,
    batch_size=32,
    learning_rate=None,
    weight_decay=0.05,
    warmup=0.1,
    flip=True,
    seed=0,
    callbacks=(),
    progress=None,
    verbose="auto",
):
    """Train a classifier on raw pictures; it is compiled and changed in place.

    Pictures are decoded once if they fit into memory; each epoch crops and mirrors them anew.

    Args:
        model: a classifier of this package, for instance `from_preset(name, num_classes=5)`.
        train: (images, labels): an array `(B, H, W, C)` or a list of paths; ints `(B,)`.
        validation: the same, or None.
        epochs: how often each picture is seen.
        batch_size: pictures at once.
        learning_rate, weight_decay, warmup: as in `adamw`.
        flip: whether to mirror half of the pictures: not for digits or letters.
        seed: of the order and the crops, an int.
        callbacks: Keras callbacks.
        progress: as in `read_folder`, for the decoding.
        verbose: as in `keras.Model.fit`.

    Returns:
        Keras' `History`: `history.history["val_accuracy"]` and so on.

    Raises:
        ValueError: the model has no preprocessor; a label is no class of the model.
    """
    if getattr(model, "preprocessor", None) is None:
        raise ValueError("The model has no preprocessor, so raw pictures mean nothing to it.")
    converter = model.preprocessor.image_converter
    labels = checked(model, train[1])
    pictures = Pictures(train[0], wider(converter), progress=progress)
    batches = Batches(pictures, labels, batch_size, converter, augment=True, flip=flip, seed=seed)
    if validation is not None:
        labels = checked(model, validation[1])
        pictures = Pictures(validation[0], converter, progress=progress)
        validation = Batches(pictures, labels, batch_size, converter)
    model.compile(
        adamw(model, epochs * len(batches), learning_rate, weight_decay, warmup),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
        jit_compile=jit_compile(),
    )
    # Not model.fit: it would apply the preprocessor, which the batches have done.
    return keras.Model.fit(
        model,
        batches,
        validation_data=validation,
        epochs=epochs,
        callbacks=[data.FollowEpoch(batches, seed), *callbacks],
        shuffle=False,
        verbose=verbose,
    )


def adamw(model, steps, learning_rate=None, weight_decay=0.05, warmup=0.1):
    """AdamW with a linear rise and half a cosine down to 0.

    As in Table 9 of https://arxiv.org/abs/2012.12877; as in timm, only kernels decay: no biases,
    norms, tokens, positions.

    Args:
        model: a built model.
        steps: batches of the whole training.
        learning_rate: at its highest; None: 0.06 / width, so 3e-4 for a ViT-Ti and 8e-5 for a
            ViT-B. (That Adam's goes with 1 / width: https://arxiv.org/abs/2203.03466, Table 3.)
        weight_decay: per step, times the learning rate.
        warmup: the part of the steps in which the learning rate rises.
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


def jit_compile():
    """For `compile`: False where TensorFlow is faster without XLA and starts sooner, on a CPU."""
    if keras.backend.backend() != "tensorflow":
        return "auto"
    import tensorflow as tf

    return "auto" if tf.config.list_physical_devices("GPU") else False


def fast(model):
    """The model, set to run without XLA where that is faster."""
    if jit_compile() is False:
        model.jit_compile = False
    return model


def checked(model, labels):
    """Labels as an array, if all of them are classes of the model."""
    labels = np.asarray(labels)
    data.check_classes(labels, model.num_classes)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"Labels must be whole numbers from 0 to {model.num_classes - 1}, one for each "
            f"picture. Received: {labels.dtype} {labels.shape}"
        )
    return labels

"""Gradient checkpointing: the same training, with less memory."""

import inspect

import keras
import numpy as np
import pytest
import tiny_models

from keras_vit import train
from keras_vit.train import checkpointing

RNG = np.random.default_rng(0)


def trained(model, x):
    """Losses of three steps, and the variables after them."""
    keras.utils.set_random_seed(1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile="auto")
    labels = np.arange(len(x)) % 7
    losses = [float(np.ravel(model.train_on_batch(x, labels))[0]) for _ in range(3)]
    return losses, [keras.ops.convert_to_numpy(v).astype("float64") for v in model.variables]


@pytest.mark.parametrize("family", ["ViT", "Swin", "CoAtNet"])
def test_training_is_the_same(family, monkeypatch):
    monkeypatch.setattr(checkpointing, "SAVES", (keras.backend.backend(),))
    drops = {"drop_path_rate": 0.5}
    if family == "ViT":
        drops |= {"drop_rate": 0.2, "attn_drop_rate": 0.2, "patch_drop_rate": 0.5}
    plain, other = (
        tiny_models.classifier(**tiny_models.FAMILIES[family], preprocessed=False, **drops)
        for _ in range(2)
    )
    for variable, source in zip(other.variables, plain.variables, strict=True):
        variable.assign(np.array(keras.ops.convert_to_numpy(source)))
    train.checkpoint_gradients(other)
    train.checkpoint_gradients(other)  # twice is once
    assert all(inspect.ismethod(block.call.__wrapped__) for block in other.backbone.blocks)
    x = RNG.normal(size=(4, *plain.image_size, 3)).astype("float32")
    (losses, variables), (again, others) = trained(plain, x), trained(other, x)
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    for one, two in zip(variables, others, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5)
    np.testing.assert_allclose(  # in inference there is nothing to recompute
        *(keras.ops.convert_to_numpy(model(x)) for model in (plain, other)), atol=1e-4
    )


def test_what_cannot_be_is_said(monkeypatch):
    monkeypatch.setattr(checkpointing, "SAVES", ("tensorflow", keras.backend.backend()))
    with pytest.raises(ValueError, match="needs a model with blocks.*Dense"):
        train.checkpoint_gradients(keras.layers.Dense(2))
    monkeypatch.setattr(checkpointing, "SAVES", ("tensorflow", "torch"))
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match=r"not been shown.*'jax'.*KERAS_BACKEND=tensorflow"):
        train.checkpoint_gradients(keras.layers.Dense(2))

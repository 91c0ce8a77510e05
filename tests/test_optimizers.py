"""keras_vit.train.optimizer: against PyTorch's AdamW with parameter groups; saved and loaded."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import classifier

from keras_vit import HybridViT, train
from keras_vit.train import optimizers


def arrays(variables):
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def gradients(variables, seed):
    random = np.random.default_rng(seed)
    return [random.normal(0, 1, v.shape).astype("float32") for v in variables]


def levels_by_name(model):
    of, count = optimizers.levels(model)
    found = {}
    for variable in model.trainable_variables:
        name = variable.path.split("/")[0]
        found.setdefault(name, set()).add(of.get(id(variable), count + 1))
    return {name: level for name, (level,) in found.items()}


def test_levels_are_those_of_beit_and_mae():
    assert levels_by_name(classifier()) == {
        "patch_embed": 0,
        "blocks_0": 1,
        "blocks_1": 2,
        "norm": 3,
        "head": 3,
    }
    hybrid = levels_by_name(classifier(HybridViT, stages=(1, 1), patch_size=1))
    blocks = {"blocks_0": 1, "blocks_1": 2, "norm": 3, "head": 3}
    assert {name: level for name, level in hybrid.items() if name in blocks} == blocks
    assert all(level == 0 for name, level in hybrid.items() if name not in blocks)


def test_a_layer_between_blocks_has_the_level_before_it():
    class Pyramid(train.optimizers.Backbone):
        """Two stages, with a dense layer between them, as Swin has."""

        @staticmethod
        def graph(*, image_size=8, dtype=None):
            x = inputs = keras.Input((*image_size, 3))
            for name in ("stem", "a", "b", "down", "c", "norm"):
                x = keras.layers.Dense(3, name=name)(x)
            return inputs, x

        @staticmethod
        def grid(options):
            return options["image_size"]

        @property
        def blocks(self):
            return [self.get_layer(name) for name in "abc"]

    assert levels_by_name(Pyramid()) == {"stem": 0, "a": 1, "b": 2, "down": 2, "c": 3, "norm": 4}


def test_layer_decay_needs_blocks():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    train.optimizer(model, 0.1)
    with pytest.raises(ValueError, match="Received: Sequential, which has none"):
        train.optimizer(model, 0.1, layer_decay=0.5)
    with pytest.raises(ValueError, match="adamw, sgd. Received: 'adam'"):
        train.optimizer(model, 0.1, kind="adam")
    with pytest.raises(ValueError, match="total_steps must be more than 5"):
        train.optimizer(model, 0.1, warmup_steps=5)


def torch_groups(torch, model, rate, decay, layer_decay):
    """Parameters as PyTorch's, each a group of its own; the rule is written out again here."""
    last = 3
    level = {"patch_embed": 0, "blocks_0": 1, "blocks_1": 2}
    groups = []
    for variable in model.trainable_variables:
        scale = layer_decay ** (last - level.get(variable.path.split("/")[0], last))
        matrix = len(variable.shape) > 1 and not variable.path.endswith(("token", "embed"))
        value = torch.nn.Parameter(torch.tensor(arrays([variable])[0]))
        groups.append({"params": [value], "lr": rate * scale, "weight_decay": decay * matrix})
    return groups


@pytest.mark.parametrize("kind, layer_decay", [("adamw", 0.5), ("adamw", 1.0), ("sgd", 0.5)])
def test_it_does_what_pytorch_does(kind, layer_decay):
    torch = pytest.importorskip("torch")
    model = classifier()
    ours = train.optimizer(
        model,
        0.01,
        weight_decay=0.3,
        layer_decay=layer_decay,
        clip_norm=2.0,
        kind=kind,
        **({"epsilon": 1e-14} if kind == "adamw" else {}),
    )  # Keras adds epsilon before it corrects the bias of the moments, PyTorch after
    groups = torch_groups(torch, model, 0.01, 0.3, layer_decay)
    if kind == "adamw":
        theirs = torch.optim.AdamW(groups, eps=1e-14)
    else:  # torch's SGD adds the decay to the gradient; here it is decoupled
        decays = [group.pop("weight_decay") for group in groups]
        theirs = torch.optim.SGD(groups, momentum=0.9)
    parameters = [group["params"][0] for group in groups]
    ours.build(model.trainable_variables)
    for step in range(3):
        new = gradients(model.trainable_variables, step)
        for parameter, gradient in zip(parameters, new, strict=True):
            parameter.grad = torch.tensor(gradient)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        assert norm > 2
        if kind == "sgd":
            for group, decay in zip(groups, decays, strict=True):
                group["params"][0].data.mul_(1 - group["lr"] * decay)
        theirs.step()
        ours.apply([ops.convert_to_tensor(g) for g in new])
    for found, parameter in zip(arrays(model.trainable_variables), parameters, strict=True):
        np.testing.assert_allclose(found, parameter.detach().numpy(), atol=2e-6)


def test_steps_count_batches_when_gradients_are_accumulated():
    models = [classifier(depth=1) for _ in range(2)]
    options = {"total_steps": 6, "warmup_steps": 2, "ema": 0.9}
    made = [
        train.optimizer(m, 0.1, accumulation=k, **options)
        for m, k in zip(models, (1, 2), strict=True)
    ]
    rates = []
    for step in range(6):
        new = gradients(models[0].trainable_variables, step // 2)
        for optimizer, model in zip(made, models, strict=True):
            optimizer.build(model.trainable_variables)
        if step % 2:  # as often as the other updates
            made[0].apply([ops.convert_to_tensor(g) for g in new])
        rates.append(float(made[1].learning_rate))
        made[1].apply([ops.convert_to_tensor(g) for g in new])
    expected = [0, 0.05, 0.1, *(0.05 * (1 + np.cos(np.pi * np.array([1, 2, 3]) / 4)))]
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    assert int(made[0].iterations) == int(made[1].iterations) == 3


def test_the_average_warms_up_and_is_exchanged():
    model = classifier(depth=1)
    optimizer = train.optimizer(model, 0.1, ema=0.5)
    optimizer.build(model.trainable_variables)
    history = []
    for step in range(4):
        new = gradients(model.trainable_variables, step)
        optimizer.apply([ops.convert_to_tensor(g) for g in new])
        history.append(arrays(model.trainable_variables))
    average = history[0]
    for t in (1, 2, 3):
        m = min(0.5, (1 + t) / (10 + t))
        average = [m * a + (1 - m) * w for a, w in zip(average, history[t], strict=True)]
    for use, expected in ((True, average), (True, average), (False, history[3]), (True, average)):
        optimizer.use_average(use)
        for found, value in zip(arrays(model.trainable_variables), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
    optimizer.use_average(False)
    optimizer.finalize_variable_values(model.trainable_variables)
    for found, value in zip(arrays(model.trainable_variables), average, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), "uint8")
LABELS = np.arange(8) % 7


def compiled(**options):
    model = classifier(depth=1)
    made = train.optimizer(
        model, 0.01, weight_decay=0.3, layer_decay=0.5, total_steps=8, warmup_steps=1, **options
    )
    eager = keras.backend.backend() == "tensorflow"  # a graph takes longer than these few steps
    model.compile(made, metrics=["accuracy"], run_eagerly=eager)
    return model


def fit(model, callbacks=(), epochs=2, **options):
    return model.fit(
        IMAGES, LABELS, batch_size=4, verbose=0, epochs=epochs, callbacks=[*callbacks], **options
    )


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"kind": "sgd"}], ids=str)
def test_a_saved_model_is_trained_as_before(options, tmp_path):
    model = compiled(**options)
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(model.optimizer)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert loaded.optimizer._of_index == model.optimizer._of_index
    assert {False, True} == {decays for _, decays in loaded.optimizer._of_index}
    new = [ops.convert_to_tensor(g) for g in gradients(model.trainable_variables, 5)]
    for each in (model, loaded):
        each.optimizer.apply(new)
    for one, other in zip(arrays(model.variables), arrays(loaded.variables), strict=True):
        np.testing.assert_array_equal(one, other)


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise InterruptedError


@pytest.mark.parametrize("keeper", ["Resume", "BackupAndRestore"])
def test_an_interrupted_training_goes_on_with_its_average(keeper, tmp_path):
    def callbacks():
        where = tmp_path / keeper
        keep = (
            train.Resume(where) if keeper == "Resume" else keras.callbacks.BackupAndRestore(where)
        )
        return [train.Average(), keep]

    whole = compiled(ema=0.9)
    history = fit(whole, [train.Average()], 4, validation_data=(IMAGES, LABELS)).history
    first, second = compiled(ema=0.9), compiled(ema=0.9)
    with pytest.raises(InterruptedError):
        fit(first, [*callbacks(), Stop()], 4)
    fit(second, callbacks(), 4)
    for one, other in zip(arrays(whole.variables), arrays(second.variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    right = whole.predict(IMAGES, verbose=0).argmax(-1) == LABELS
    assert right.mean() == pytest.approx(history["val_accuracy"][-1])


def test_the_rates_of_another_model_are_refused():
    optimizer = train.optimizer(classifier(), 0.1, layer_decay=0.5)
    copy = type(optimizer).from_config(optimizer.get_config())
    other = classifier(depth=3)
    with pytest.raises(ValueError, match="layer-wise rates of another model.*blocks_2"):
        copy.build(other.trainable_variables)
    with pytest.raises(ValueError, match="lost when the optimizer is saved"):
        optimizer.exclude_from_weight_decay(var_names=["bias"])


def test_frozen_layers_and_lora_need_no_other_optimizer():
    model = classifier()
    model.backbone.enable_lora(2)
    optimizer = train.optimizer(model, 0.1, layer_decay=0.5)
    optimizer.build(model.trainable_variables)
    found = dict(zip([v.path for v in model.trainable_variables], optimizer._of_index, strict=True))
    assert found["blocks_0/attn/qkv/lora_kernel_a"] == (0.25, True)
    assert found["head/bias"] == (1.0, False)
    table = optimizer.table().splitlines()
    assert [float(line.split()[0]) for line in table[1:]] == [1, 0.5, 0.25, 0.125]
    assert "head" in table[1] and "patch_embed" in table[-1]


REPLICAS = """
import sys
import numpy as np
import tensorflow as tf
count = int(sys.argv[1])
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
import keras
from tiny_models import classifier
from keras_vit import train
strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])
random = np.random.default_rng(0)
x = random.integers(0, 256, (16, 32, 32, 3), "uint8")
data = tf.data.Dataset.from_tensor_slices((x, np.arange(16) % 7)).batch(8)
with strategy.scope():
    model = classifier(depth=1)
    optimizer = train.optimizer(model, 0.01, layer_decay=0.5, clip_norm=0.5, ema=0.9)
    model.compile(optimizer, jit_compile=False)
loss = model.fit(data, epochs=2, verbose=0).history["loss"]
total = sum(float(np.abs(w).sum()) for w in model.get_weights())
print("RESULT", *loss, total)
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_two_replicas_equal_one_device():
    folder = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": f"{os.path.dirname(folder)}:{folder}"}
    found = []
    for count in "12":
        done = subprocess.run(
            [sys.executable, "-c", REPLICAS, count],
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        found.append([float(word) for word in line.split()[1:]])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)

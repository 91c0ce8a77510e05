"""keras_vit.train.Resume: whenever the process is killed, training goes on to the same numbers."""

import os
import random
import signal
import time
import zipfile
from unittest import mock

import keras
import numpy as np
import pytest
from forking import fresh_server
from tiny_models import classifier, full_disk

from keras_vit import train

EPOCHS, STEPS = 6, 4
STATE = "training.state"
LAST = "the last epoch has ended"


# --- In processes that are killed ---


class Data(keras.utils.PyDataset):
    """Two clouds of points: the same batches in each epoch."""

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        points = np.random.default_rng(index).normal(0, 1, (8, 12)).astype("float32")
        return points, (points.sum(-1, keepdims=True) > 0).astype("float32")


def small_model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16), keras.layers.Dropout(0.2, seed=1), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((12,)), *layers])
    model.compile("adam", "mse", run_eagerly=True)
    return model


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Recorder(keras.callbacks.Callback):
    """Keeps the weights after each epoch, or kills the process at a chosen point."""

    def __init__(self, point=None, started=None):
        super().__init__()
        self.point, self.started, self.weights = point, started, []

    def on_train_begin(self, logs=None):
        if self.point == "training begins":
            die()

    def on_train_batch_begin(self, batch, logs=None):
        if self.point == "a batch" and batch == 2 and self.weights:
            die()

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())
        if self.started is not None:
            self.started.set()
            if epoch == self.params["epochs"] - 1:
                open(LAST, "x").close()
        if self.point == "an epoch ends" and epoch == 1:
            die()

    def on_train_end(self, logs=None):
        if self.point == "training ends":
            die()


def fatal(function, before, count):
    """The function; the process dies before or after the call of that number, from 1."""
    calls = []

    def call(*args, **kwargs):
        calls.append(args)
        if before and len(calls) == count:
            die()
        result = function(*args, **kwargs)
        if len(calls) == count:
            die()
        return result

    return call


def patched(point):
    """A context in which the process dies at that point of the second epoch's state."""
    replace, write = os.replace, zipfile._ZipWriteFile.write
    return {
        "before the rename": mock.patch("os.replace", fatal(replace, True, 2)),
        "after the rename": mock.patch("os.replace", fatal(replace, False, 2)),
        "variables are written": mock.patch.object(
            zipfile._ZipWriteFile, "write", fatal(write, True, 20)
        ),
        "variables are loaded": mock.patch.object(
            zipfile.ZipExtFile, "read", fatal(zipfile.ZipExtFile.read, False, 20)
        ),
    }.get(point, mock.patch("os.sep", os.sep))


def run(folder, point=None, epochs=EPOCHS, started=None):
    """Train until the end, or until killed; the weights and the history go to a file."""
    os.chdir(folder)
    model, callbacks = small_model(), [train.Resume(STATE), Recorder(point, started)]
    with patched(point):
        history = model.fit(Data(), epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)
    arrays = {f"{i}": w for i, w in enumerate(model.get_weights())}
    np.savez("end.npz", losses=history.history["loss"], epochs=history.epoch, **arrays)


@pytest.fixture(scope="module")
def processes():
    return fresh_server("keras_vit", "test_resume")


@pytest.fixture
def start(processes):
    """What starts a process that runs `run` with given arguments."""

    def call(*args):
        process = processes.Process(target=run, args=args)
        process.start()
        return process

    return call


def ended(folder):
    with np.load(folder / "end.npz") as file:
        return {name: file[name] for name in file.files}


def unbroken(epochs):
    """The weights after each epoch, and the losses, of a training that nobody interrupts."""
    recorder = Recorder()
    options = {"callbacks": [recorder], "shuffle": False, "verbose": 0}
    history = small_model().fit(Data(), epochs=epochs, **options)
    return recorder.weights, history.history["loss"]


@pytest.fixture(scope="module")
def six_epochs():
    return unbroken(EPOCHS)


def check_end(folder, unbroken):
    weights, losses = unbroken
    found = ended(folder)
    np.testing.assert_array_equal(found.pop("losses"), losses)
    np.testing.assert_array_equal(found.pop("epochs"), range(len(losses)))
    for wanted, array in zip(weights[-1], found.values(), strict=True):
        np.testing.assert_array_equal(array, wanted)


def check_state(path, unbroken):
    """What a killed process has left is nothing, or the whole state after one epoch."""
    if not path.exists():
        return 0
    model = small_model()
    epoch = train.load_state(path, model)["epoch"]
    for wanted, array in zip(unbroken[0][epoch - 1], model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert int(model.optimizer.iterations) == epoch * STEPS
    return epoch


POINTS = {  # the point, and how many epochs its state has
    "training begins": 0,
    "a batch": 1,
    "variables are written": 1,
    "before the rename": 1,
    "after the rename": 2,
    "an epoch ends": 2,
    "training ends": EPOCHS,
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_chosen_point(point, start, tmp_path, six_epochs):
    process = start(tmp_path, point)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    if point == "training ends":  # the callback before has deleted the file
        assert not (tmp_path / STATE).exists()
    else:
        assert check_state(tmp_path / STATE, six_epochs) == POINTS[point]
    process = start(tmp_path)
    process.join()
    assert process.exitcode == 0 and os.listdir(tmp_path) == ["end.npz"]
    check_end(tmp_path, six_epochs)


def test_killed_while_the_state_is_loaded(start, tmp_path, six_epochs):
    for point in ("an epoch ends", "variables are loaded"):
        process = start(tmp_path, point)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert check_state(tmp_path / STATE, six_epochs) == 2
    process = start(tmp_path)
    process.join()
    check_end(tmp_path, six_epochs)


def test_killed_twenty_times_at_random(processes, start, tmp_path):
    chance, epochs, begin = random.Random(0), [0], time.monotonic()
    expected = unbroken(60)
    epoch = (time.monotonic() - begin) / 60
    for _ in range(20):
        started = processes.Event()
        process = start(tmp_path, None, 60, started)
        while not started.wait(0.1) and process.is_alive():
            pass  # after an epoch each process gets further; one may resume from the last
        time.sleep(chance.uniform(0, 4 * epoch))
        process.kill()
        process.join()
        if (tmp_path / STATE).exists():
            epochs.append(check_state(tmp_path / STATE, expected))
            assert epochs[-1] > epochs[-2]
        else:  # deleted at the end, and at no other time: once more from the start
            (tmp_path / LAST).unlink()
            epochs.append(0)
            if (tmp_path / "end.npz").exists():  # it was not killed just before
                check_end(tmp_path, expected)
                (tmp_path / "end.npz").unlink()
    process = start(tmp_path, None, 60)
    process.join()
    check_end(tmp_path, expected)
    (tmp_path / LAST).unlink(missing_ok=True)
    assert os.listdir(tmp_path) == ["end.npz"]


# --- In this process ---


def images():
    random = np.random.default_rng(3)
    labels = np.arange(24) % 3
    pixels = random.integers(0, 100, (24, 32, 32, 3)) + 50 * labels[:, None, None, None]
    return pixels.astype("uint8"), labels


def model_of(kind, optimizer="adamw", **options):
    noise = {"drop_rate": 0.2, "drop_path_rate": 0.2}
    model = classifier(**{"num_classes": 3, "depth": 1, "dtype": KINDS[kind], **noise, **options})
    if kind == "LoRA":
        model.backbone.enable_lora(2)
    # Step by step: a graph takes longer to make than these few steps.
    model.compile(optimizer, LOSS, metrics=["accuracy"], run_eagerly=True, jit_compile=False)
    return model


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
KINDS = {  # and its dtype policy
    "float32": None,
    "mixed_bfloat16": "mixed_bfloat16",
    "mixed_float16": "mixed_float16",  # with a LossScaleOptimizer
    "LoRA": None,
}


class Stop(keras.callbacks.Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.now = epoch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch and batch == 1:
            raise KeyboardInterrupt


def fit(model, *callbacks, epochs=4, **options):
    options = {"batch_size": 8, "verbose": 0, "validation_data": images(), **options}
    return model.fit(*images(), epochs=epochs, callbacks=list(callbacks), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_goes_on_to_the_same_numbers(kind, tmp_path):
    expected = model_of(kind)
    history = fit(expected)
    with pytest.raises(KeyboardInterrupt):
        fit(model_of(kind), train.Resume(tmp_path / STATE), Stop(2))
    model = model_of(kind)
    found = fit(model, train.Resume(tmp_path / STATE))
    assert found.history == history.history and found.epoch == history.epoch == [0, 1, 2, 3]
    for one, other in zip(expected.variables, model.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)), one.path)
    assert os.listdir(tmp_path) == []
    fit(model, epochs=1)  # from its beginning, not from where the other fit went on
    assert model.history.epoch == [0]


def test_a_training_that_has_ended_is_not_repeated(tmp_path):
    resume = train.Resume(tmp_path / "new" / STATE, delete_checkpoint=False, settings={"rate": 0.1})
    model = model_of("float32")
    history = fit(model, resume, epochs=2).history
    state = train.read_state(resume.path)
    assert state["settings"] == {"rate": 0.1} and state["epoch"] == 2
    assert state["history"] == history
    again = model_of("float32")
    assert fit(again, train.Resume(resume.path), epochs=2).history == history
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])
    assert not resume.path.exists()


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The state of a trained model, in bytes."""
    path = tmp_path_factory.mktemp("state") / STATE
    fit(model_of("float32"), train.Resume(path, delete_checkpoint=False), epochs=1)
    return path.read_bytes()


def damaged(content):
    """The same with one byte of a weight changed."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_any_changed_byte_is_seen(state, tmp_path):
    """A state with a changed byte is refused, unless the byte says nothing, as a date."""
    model, path = model_of("float32"), tmp_path / STATE
    path.write_bytes(state)
    before = train.load_state(path, model), model.get_weights()
    chance = np.random.default_rng(0)
    places = np.r_[:60, -200:0, chance.integers(0, len(state), 100)] % len(state)
    refused = 0
    for place in places:
        content = bytearray(state)
        content[place] ^= 1 << chance.integers(8)
        path.write_bytes(content)
        try:
            found = train.load_state(path, model)
        except ValueError:
            refused += 1
        else:
            assert found == before[0]
        for one, other in zip(before[1], model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    assert refused > 250


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[: len(content) // 2], "not a whole state"),
        (damaged, "not a whole state"),
        (lambda content: b"", "not a whole state"),
        (lambda content: b"no state", "not a whole state"),
    ],
)
def test_a_damaged_state_is_refused(change, message, state, tmp_path):
    (tmp_path / STATE).write_bytes(change(state))
    model = model_of("float32")
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(model, train.Resume(tmp_path / STATE))
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "optimizer", "message"),
    [
        ({"num_classes": 4}, "adamw", r"another model: head/kernel has the shape \(48, 3\)"),
        ({"depth": 2}, "adamw", "another model"),
        ({"dtype": "bfloat16"}, "adamw", "float32. Received: .* bfloat16"),
        ({}, "adam", "a training with AdamW. Received: Adam"),
    ],
)
def test_the_state_of_another_model_is_refused(options, optimizer, message, state, tmp_path):
    (tmp_path / STATE).write_bytes(state)
    model = model_of("float32", optimizer, **options)
    with pytest.raises(ValueError, match=message):
        fit(model, train.Resume(tmp_path / STATE))


def test_weights_alone(state, tmp_path):
    (tmp_path / STATE).write_bytes(state)
    model = model_of("float32")
    with_optimizer = model_of("float32")
    train.load_state(tmp_path / STATE, with_optimizer)
    assert train.load_state(tmp_path / STATE, model, optimizer=False)["epoch"] == 1
    assert int(model.optimizer.iterations) == 0 < int(with_optimizer.optimizer.iterations)
    np.testing.assert_array_equal(model.get_weights()[0], with_optimizer.get_weights()[0])


def test_a_full_disk_leaves_the_state_before(tmp_path):
    resume = train.Resume(tmp_path / STATE)
    model = model_of("float32")
    with pytest.raises(KeyboardInterrupt):
        fit(model, resume, Stop(1))
    before = resume.path.read_bytes()
    with full_disk(len(before) // 2), pytest.warns(UserWarning, match="after epoch 2 is not saved"):
        with pytest.raises(KeyboardInterrupt):
            fit(model, resume, Stop(2))
    assert resume.path.read_bytes() == before and os.listdir(tmp_path) == [STATE]


def test_a_state_with_nan_is_not_saved(tmp_path):
    resume = train.Resume(tmp_path / STATE, delete_checkpoint=False)
    model = model_of("float32")
    fit(model, resume, epochs=1)
    before = resume.path.read_bytes()
    model.backbone.get_layer("patch_embed").set_weights(
        [w * np.nan for w in model.backbone.get_layer("patch_embed").get_weights()]
    )
    with pytest.raises(ValueError, match="values that are not finite"):
        train.save_state(resume.path, model, {})
    assert resume.path.read_bytes() == before

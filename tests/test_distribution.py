"""Several devices: keras.distribution on JAX, and what fails elsewhere."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from tiny_models import classifier

from keras_vit import data

TESTS = pathlib.Path(__file__).parent

PARALLEL = """
import json, sys
import keras
import numpy as np
import tensorflow as tf
kind, *place = sys.argv[1:]
if place:
    keras.distribution.initialize(place[0], 2, int(place[1]))
devices = keras.distribution.list_devices()
assert len(devices) == 2
from tiny_models import classifier
from keras_vit import train
if kind in ("data", "processes"):
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
if kind == "model":
    mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], devices)
    layouts = train.layout_map(classifier(depth=1), mesh)
    parallel = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    keras.distribution.set_distribution(parallel)
model = classifier(depth=1)
split = sum(
    v.value.addressable_shards[0].data.shape != v.shape for v in model.trainable_variables
)
model.compile(train.optimizer(model, 0.01, layer_decay=0.5, clip_norm=0.5))
x = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), "uint8")
data = tf.data.Dataset.from_tensor_slices((x, np.arange(16) % 7))
data = data.batch(8, drop_remainder=True)
history = model.fit(data, epochs=2, verbose=0).history["loss"]
total = sum(float(np.abs(v.value.addressable_data(0)).sum()) for v in model.weights)
numbers = [*history] if split else [*history, total]
print("RESULT", json.dumps({"split": split, "numbers": numbers}))
"""


def start(kind, *place, devices=2):
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
    }
    command = [sys.executable, "-c", PARALLEL, kind, *place]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def result(process):
    out, error = process.communicate(timeout=600)
    assert process.returncode == 0, error[-2000:]
    line = next(line for line in out.splitlines() if line.startswith("RESULT"))
    return json.loads(line.removeprefix("RESULT"))


@pytest.fixture(scope="module")
def one_device():
    pytest.importorskip("jax")
    return result(start("one"))


@pytest.mark.parametrize("kind", ["data", "model"])
def test_jax_on_two_devices_equals_one(kind, one_device):
    found = result(start(kind))
    # qkv, proj, fc1, fc2 and the patches' projection; the biases of three of them; 7 is odd.
    assert one_device["split"] == 0 and found["split"] == {"data": 0, "model": 8}[kind]
    wanted = one_device["numbers"][: len(found["numbers"])]
    np.testing.assert_allclose(found["numbers"], wanted, rtol=1e-4)


def test_two_processes_of_jax_equal_one(one_device):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [start("processes", address, str(i), devices=1) for i in range(2)]
    for found in map(result, processes):
        np.testing.assert_allclose(found["numbers"], one_device["numbers"], rtol=1e-6)


def test_two_processes_need_batches_of_one_size(monkeypatch):
    jax = pytest.importorskip("jax")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    unknown = keras.KerasTensor((None, 32, 32, 3))
    data._check_batch_size(unknown)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    data._check_batch_size(keras.KerasTensor((8, 32, 32, 3)))
    with pytest.raises(ValueError, match="drop_remainder=True"):
        data._check_batch_size(unknown)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_several_workers_of_tensorflow_are_refused(monkeypatch):
    import tensorflow as tf

    class Strategy:
        """As MultiWorkerMirroredStrategy, which starts servers."""

    model = classifier()
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", Strategy)
    monkeypatch.setattr(type(model), "distribute_strategy", Strategy())
    with pytest.raises(RuntimeError, match="20585.*keras.distribution.*jax"):
        model.fit(np.zeros((2, 32, 32, 3), "uint8"), np.zeros(2))

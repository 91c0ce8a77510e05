"""Several devices: keras.distribution on JAX, and what fails elsewhere."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from tiny_models import classifier

TESTS = pathlib.Path(__file__).parent

PARALLEL = """
import json, sys
import jax
import keras
import numpy as np
from tiny_models import classifier
from keras_vit import train
kind = sys.argv[1]
devices = keras.distribution.list_devices()
assert len(devices) == 2
if kind == "data":
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
history = model.fit(x, np.arange(16) % 7, batch_size=8, epochs=2, verbose=0).history["loss"]
total = sum(float(np.abs(w).sum()) for w in model.get_weights())
print("RESULT", json.dumps({"split": split, "numbers": [*history, total]}))
"""


def test_jax_on_two_devices_equals_one():
    pytest.importorskip("jax")
    found = {}
    for kind in ("one", "data", "model"):
        environment = {
            **os.environ,
            "KERAS_BACKEND": "jax",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
        }
        done = subprocess.run(
            [sys.executable, "-c", PARALLEL, kind],
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        found[kind] = json.loads(line.removeprefix("RESULT"))
    assert found["one"]["split"] == found["data"]["split"] == 0
    # qkv, proj, fc1, fc2 and the patches' projection; the biases of three of them; 7 is odd.
    assert found["model"]["split"] == 8
    for kind in ("data", "model"):
        np.testing.assert_allclose(found[kind]["numbers"], found["one"]["numbers"], rtol=1e-4)


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

"""A family is added by its own files alone: the toy of tests/toy, in a copy of the package."""

import os
import pathlib
import shutil
import subprocess
import sys

import keras
import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOY = ROOT / "tests/toy"
FILES = {  # what CONTRIBUTING.md says
    "toy.py": "keras_vit/models",
    "toy.toml": "presets",
    "toy-toy.npz": "tests/goldens",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package and its tests with the toy in it."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("keras_vit", "keras_vit_command", "presets", "tests"):
        ignore = shutil.ignore_patterns("__pycache__", "toy")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("keras_vit_presets.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name, place in FILES.items():
        shutil.copy(TOY / name, folder / place)
    return folder


def run(house, *command):
    environment = {**os.environ, "PYTHONPATH": str(house)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=house,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_the_generic_tests_know_it(house):
    """Parity with its golden at two sizes, gradients, parameter counts, export bit by bit, and the
    rules of the house."""
    files = [f"tests/test_{name}.py" for name in ("models", "presets", "weights", "structure")]
    said = run(house, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "toy", *files)
    assert " passed" in said and "failed" not in said


USE = """
import inspect, sys
import keras, keras_hub, numpy as np
import keras_vit
from safetensors.numpy import save_file
sys.path.insert(0, "tests")
import goldens

assert keras_vit.__file__.startswith(sys.argv[1]), keras_vit.__file__
assert keras_vit.list_presets("toy*") == ["toy_small_128.test", "toy_deep_160.test"]
assert keras_vit.preset_info("toy_small_128.test")["params"] == 11_321
folder = goldens.repository("toy-toy", "toy")
golden = goldens.arrays("toy-toy")

# A fresh head keeps the trained norm before it.
model = keras_vit.Toy.from_preset(folder, num_classes=3, drop_path_rate=0.1)
norm = keras.ops.convert_to_numpy(model.get_layer("fc_norm").gamma)
np.testing.assert_array_equal(norm, golden["weights/head.norm.weight"])
assert keras_vit.from_preset(folder, image_size=32, in_channels=1).backbone.grid_size == (8, 8)

# Its levels, as KerasHub's detectors read them.
assert isinstance(model.backbone, keras_hub.models.FeaturePyramidBackbone)
shapes = {name: x.shape[1:] for name, x in model.backbone.pyramid_outputs.items()}
assert shapes == {"P1": (4, 6, 8), "P2": (2, 3, 16)}, shapes

# fit, and a round trip.
images = np.random.default_rng(0).integers(0, 256, (12, 20, 30, 3), "uint8")
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
history = model.fit(images, np.arange(12) % 3, epochs=2, batch_size=4, verbose=0)
assert np.isfinite(history.history["loss"]).all()
model.save_to_preset("saved")
again = keras_vit.from_preset("saved")
wanted = model.predict(images, verbose=0)
np.testing.assert_array_equal(again.predict(images, verbose=0), wanted)
larger = keras_vit.from_preset("saved", image_size=(16, 24))
assert larger.predict(images, verbose=0).shape == (12, 3)
keras.saving.save_model(model, "toy.keras")
loaded = keras.saving.load_model("toy.keras")
np.testing.assert_array_equal(loaded.predict(images, verbose=0), wanted)
model.save_to_timm("timm")
back = keras_vit.from_preset("timm").predict(images, verbose=0)
np.testing.assert_allclose(back, wanted, atol=1e-6)

# Its constructor says what it takes.
signature = str(inspect.signature(keras_vit.ToyBackbone))
assert "depths: collections.abc.Sequence[int] = (1, 1)" in signature, signature
for arguments, options in (((224,), {}), ((), {"size": 3})):
    try:
        keras_vit.ToyBackbone(*arguments, **options)
    except (TypeError, ValueError) as error:
        assert "image_size" in str(error), error
    else:
        raise AssertionError(arguments)

# Its first stage has no attention.
(maps,) = keras_vit.explain.attention_maps(model, images)
tokens = model.backbone.grid_size[0] * model.backbone.grid_size[1]
assert maps.shape == (12, 2, tokens, tokens), maps.shape

if keras.backend.backend() == "tensorflow":
    for name, options in (("toy.tflite", {}), ("int8.tflite", {"quantize": "int8_dynamic"})):
        path = keras_vit.export.to_tflite(model, name, **options)
        found = keras_vit.export.compare(path, model, images)
        assert found.partitions == 1, found
        assert found.largest_difference < (0.05 if options else 1e-5), found
    keras_vit.export.to_saved_model(model, "toy_saved")
print("done")
"""


def test_it_is_used_like_any_other(house, tmp_path):
    assert run(house, "-c", USE, str(house)).endswith("done\n")


def test_the_command_lists_it(house):
    said = run(house, "-c", "from keras_vit_command import run; run(['list', 'toy'])")
    assert "toy_small_128.test" in said and "toy_deep_160.test" in said


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one backend will do")
def test_no_trace_of_it_is_here():
    import keras_vit

    assert "Toy" not in keras_vit.__all__ and keras_vit.list_presets("toy*") == []

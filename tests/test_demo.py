"""The demo: the whole way on scikit-learn's digits, with the checkpoint in the package."""

import io
import json
import re

import keras
import numpy as np
import pytest
import rich.console
from PIL import Image
from safetensors.numpy import load_file, save_file

import keras_vit_presets as presets
from keras_vit import demo, from_preset, preset_info

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the demo exports, on the TensorFlow backend"
)


def test_the_checkpoint_of_the_package_is_what_its_row_says():
    model, info = from_preset(demo.PRESET), preset_info(demo.PRESET)
    assert model.count_params() == info["params"]
    assert model.image_size == (32, 32) and model.labels == [str(i) for i in range(10)]
    converter = model.preprocessor.image_converter
    assert converter.mean == info["mean"] and converter.std == info["std"]
    folder = presets.FOLDER / "vit_digits"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1_000_000
    same = from_preset(str(folder))  # as a directory in timm's layout
    assert same.labels == model.labels and same.image_size == model.image_size
    images = demo.digits()[0][:50]
    np.testing.assert_array_equal(same.predict(images, verbose=0), model.predict(images, verbose=0))


def test_it_reads_digits_that_it_was_not_trained_on():
    images, labels = demo.digits()
    held_out = images[demo.CHECKPOINT_DIGITS :], labels[demo.CHECKPOINT_DIGITS :]
    model = from_preset(demo.PRESET)
    assert demo.accuracy(model, *held_out) == pytest.approx(0.969, abs=0.005)
    assert demo.accuracy(model, 255 - held_out[0], held_out[1]) < 0.2


def run(preset, folder):
    """What the demo prints."""
    text = io.StringIO()
    demo.run(preset, folder, rich.console.Console(file=text, width=200, highlight=False))
    return text.getvalue()


def test_the_demo(tmp_path):
    text = run(None, tmp_path / "out")
    before, after = map(float, re.search(r"([\d.]+)% before, ([\d.]+)% after", text).groups())
    assert before < 20 and after > 80
    for name, least in (("float32", 100), ("int8", 97)):
        row = re.search(rf"{name}\.tflite +([\d.]+) MB +([\d.]+)% +([\d.]+)%", text)
        size, accuracy, agreement = map(float, row.groups())
        assert size < 1 and agreement >= least and abs(accuracy - after) <= 3
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"model", "float32.tflite", "int8.tflite", "attention.png"}
    assert all(name in text for name in found)
    with Image.open(tmp_path / "out" / "attention.png") as picture:
        assert np.asarray(picture).std() > 10
    images, labels = demo.digits()
    validation = (
        255 - images[demo.CHECKPOINT_DIGITS + demo.TRAINING_DIGITS :],
        labels[demo.CHECKPOINT_DIGITS + demo.TRAINING_DIGITS :],
    )
    tuned = from_preset(str(tmp_path / "out" / "model"))
    assert 100 * demo.accuracy(tuned, *validation) == pytest.approx(after, abs=0.06)


@pytest.fixture
def in_colour(tmp_path):
    """The checkpoint of the package as someone else's: a directory, for images in colour."""
    source, folder = presets.FOLDER / "vit_digits", tmp_path / "colour"
    config = json.loads((source / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    config["model_args"] = {"in_chans": 3}
    tensors = load_file(source / "model.safetensors")
    kernel = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = np.repeat(kernel / 3, 3, axis=1)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_demo_of_another_checkpoint(in_colour, tmp_path):
    text = run(str(in_colour), tmp_path / "out")
    assert re.search(r"china\.jpg: \d \d+%, \d \d+%, \d \d+%", text)
    assert "input of 24 x 24 pixels" in text
    before, after = map(float, re.search(r"([\d.]+)% before, ([\d.]+)% after", text).groups())
    assert before < 40 and after > 70
    with Image.open(tmp_path / "out" / "attention.png") as picture:
        assert np.asarray(picture).std() > 10
    assert from_preset(str(tmp_path / "out" / "model")).num_classes == 10


def test_photographs_are_named_as_timm_names_them(deit_tiny):
    model, china = from_preset(deit_tiny), demo.photographs()["china.jpg"]
    found = [(name, round(share, 2)) for name, share in model.classify(china, top=3)]
    assert found == [("palace", 0.23), ("church", 0.14), ("monastery", 0.13)]

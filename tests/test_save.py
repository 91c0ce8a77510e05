"""The way back: what timm and transformers are given has the tensors that came from them."""

import json
import pathlib

import goldens
import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

import keras_vit

# The structure of test_vit4 belongs to no checkpoint, so timm has no name to give it.
TIMM = [n for n in goldens.CONFIGS if n.startswith(("vit-", "deit-")) and n != "vit-test4"]
PLAIN = ["hf-vit", "hf-deit-teacher", "hf-vit-model-no_pooler"]


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


@pytest.mark.parametrize("name", TIMM)
def test_timm_to_keras_to_timm_is_bit_exact(name, tmp_path):
    directory = pathlib.Path(goldens.repository(name, tmp_path))
    keras_vit.from_preset(directory).save_to_timm(tmp_path / "back")
    before = load_file(directory / "model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)
    again = keras_vit.from_preset(tmp_path / "back")
    golden = goldens.arrays(name)
    np.testing.assert_allclose(run(again, golden["x"]), golden["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_transformers_to_keras_to_transformers_is_bit_exact(name, tmp_path):
    directory = pathlib.Path(goldens.repository(name, tmp_path))
    model = keras_vit.from_preset(directory)
    model.save_to_transformers(tmp_path / "back")
    before = load_file(directory / "model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)
    again = keras_vit.from_preset(tmp_path / "back")
    x = goldens.arrays(name)["x"]
    np.testing.assert_array_equal(run(again, x), run(model, x))


def test_the_card_has_the_training_log_and_the_labels(tmp_path):
    directory = goldens.repository("vit-plain", tmp_path)
    model = keras_vit.from_preset(directory, num_classes=2)
    model.labels = ["cat", "dog"]
    model.compile(loss="sparse_categorical_crossentropy", run_eagerly=True)
    images = np.zeros((4, 40, 40, 3), "uint8")
    model.fit(images, np.array([0, 1, 0, 1]), epochs=2, verbose=0)
    model.save_to_timm(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| epoch | loss |" in card and "| 2 | " in card and "cat, dog" in card
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["label_names"] == ["cat", "dog"] and config["num_classes"] == 2


def test_what_transformers_cannot_hold_is_named(tmp_path):
    model = keras_vit.from_preset(goldens.repository("vit-dinov2_reg4", tmp_path))
    with pytest.raises(ValueError, match="init_values.*reg_tokens|reg_tokens.*init_values"):
        model.save_to_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Directories that save_to_preset wrote: what their configs and files may ask for."""

import json
import shutil

import h5py
import keras
import numpy as np
import pytest

import keras_vit
from keras_vit.weights import WeightsError

DIGITS = "vit_digits_patch4_32.sklearn"
WEIGHTS = ["model.weights.h5", "task.weights.h5"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "digits"
    keras_vit.from_preset(DIGITS).save_to_preset(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, to write there."""
    return shutil.copytree(saved, tmp_path / "digits")


def edit(path, *keys, **fields):
    """Change fields of a JSON file, of the object under those keys."""
    content = json.loads(path.read_text())
    found = content
    for key in keys:
        found = found[key]
    found.update(fields)
    path.write_text(json.dumps(content))


def change(folder, **options):
    """Change options of the backbone, in both files that have them."""
    edit(folder / "config.json", "config", **options)
    edit(folder / "task.json", "config", "backbone", "config", **options)


def test_it_loads_exactly(folder):
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype("float32")
    one, two = keras_vit.from_preset(folder), keras_vit.from_preset(DIGITS)
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(m(x)) for m in (one, two)))
    assert one.optimizer is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 100000}, "depth must be a whole number from 1 to 256. Received: 100000"),
        ({"depth": 64}, "describes .* weights, its files hold 206,026"),
        ({"mlp_ratio": 1e6}, "more than any known model"),
        ({"mlp_ratio": 40.0}, "describes .* weights, its files hold"),
        ({"embed_dim": 1 << 20}, "embed_dim must be a whole number"),
        ({"embed_dim": 4096}, "describes .* weights, its files hold"),
        ({"image_size": [100000, 4]}, "image_size must be a whole number"),
        ({"image_size": [4096, 4096]}, "describes .* weights, its files hold"),
        ({"num_heads": 0}, "num_heads must be a whole number"),
        ({"num_heads": 7}, "7"),
        ({"depth": None}, "depth must be a whole number"),
        ({"norm_eps": "small"}, "norm_eps must be a number"),
        ({"activation": "tan"}, "tan"),
    ],
)
@pytest.mark.parametrize("options_of_the_load", [{}, {"num_classes": 3}])
def test_a_config_that_asks_for_what_cannot_be(folder, options, message, options_of_the_load):
    change(folder, **options)
    with pytest.raises(ValueError, match=message):
        keras_vit.from_preset(folder, **options_of_the_load)


def test_an_option_that_there_is_not(folder):
    change(folder, unknown=3)
    with pytest.raises(ValueError, match="has no argument unknown"):
        keras_vit.from_preset(folder)


@pytest.mark.parametrize(
    ("keys", "fields", "message"),
    [
        ((), {"registered_name": "keras_hub>BertBackbone"}, "holds a ViT, which is not"),
        ((), {"registered_name": None}, "not a model of this package"),
        ((), {"registered_name": []}, "wrong type|not a model of this package"),
        ((), {"config": None}, "config of task.json must be an object"),
        (("config",), {"num_classes": 10**9}, "num_classes must be a whole number"),
        (("config",), {"num_classes": 100, "labels": None}, "describes .* weights, its files hold"),
        (("config",), {"num_classes": "ten"}, "num_classes must be a whole number"),
        (("config",), {"representation_size": 1 << 20}, "representation_size must be"),
        (("config",), {"drop_rate": 7}, "drop_rate must be from 0"),
        (("config",), {"pooling": "max"}, "pooling must be one of"),
        (("config",), {"labels": 5}, "labels"),
        (("config",), {"representation_size": 60000}, "describes .* weights, its files hold"),
        (("config",), {"backbone": None}, "wrong type"),
        (("config", "backbone", "config"), {"depth": 5}, "They differ in: depth"),
        (("config", "backbone"), {"registered_name": "keras_hub>BertBackbone"}, "."),
        (
            ("config", "preprocessor"),
            {"config": {"image_converter": 3}},
            "its preprocessor has no image conv",
        ),
    ],
)
def test_a_task_that_describes_no_model_of_ours(folder, keys, fields, message):
    edit(folder / "task.json", *keys, **fields)
    with pytest.raises(ValueError, match=message):
        keras_vit.from_preset(folder)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("how", ["unallocated", "compressed", "virtual", "external"])
def test_weights_that_the_file_does_not_hold_itself(folder, name, how):
    """A gigabyte each; nothing of it may be read."""
    path, shape = folder / name, (1 << 14, 1 << 14)
    with h5py.File(path, "r+") as file:
        group = file["layers"]
        if how == "unallocated":
            group.create_dataset("big/vars/0", shape, "float32")
        elif how == "compressed":
            options = {"chunks": (1 << 12, 1 << 12), "compression": "gzip"}
            group.create_dataset("big/vars/0", shape, "float32", **options)
        elif how == "virtual":
            layout = h5py.VirtualLayout(shape, "float32")
            group.create_virtual_dataset("big/vars/0", layout)
        else:
            place = [("/dev/zero", 0, 4 * shape[0] * shape[1])]
            group.create_dataset("big/vars/0", shape, "float32", external=place)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(WeightsError, match=f"big/vars/0 of .*{name} has 1,073,741,824 bytes"):
        keras_vit.from_preset(folder)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kept", [0, 100, 9000])
def test_a_file_that_is_cut_off(folder, name, kept):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:kept])
    with pytest.raises(WeightsError, match=f"{name} is not a complete Keras weights file"):
        keras_vit.from_preset(folder)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_file_that_is_missing(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"it has no {name}"):
        keras_vit.from_preset(folder)
    assert keras_vit.from_preset(folder, load_weights=False).num_classes == 10


def test_a_tensor_of_another_shape_is_a_value_error(folder):
    with h5py.File(folder / WEIGHTS[1], "r+") as file:
        place = file["layers/dense/vars"]
        del place["0"]
        place["0"] = np.zeros((64, 11), "float32")
    with pytest.raises(ValueError, match="is not a complete Keras preset: "):
        keras_vit.from_preset(folder)

"""Text from files and servers is shown without what controls a terminal."""

import json
import shutil
import zipfile

import goldens
import h5py
import numpy as np
import pytest
import tiny_checkpoints as tiny
from hub_server import HubServer, client_of
from PIL import Image
from safetensors.numpy import load_file, save_file

import keras_vit
from keras_vit.hub import HubError, Repository
from keras_vit.hub_errors import NotCached
from keras_vit.text import printable
from keras_vit.weights import WeightsError
from keras_vit_command import run as main

CLEAR = "\x1b[2J"  # clears a terminal
EVIL = f"rose{CLEAR}\x07\u202e\x9b0m"
SHOWN = "rose\\x1b[2J\\x07\\u202e\\x9b0m"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a rose", "a rose"),
        ("Gänseblümchen 雏菊 गुलाब", "Gänseblümchen 雏菊 गुलाब"),
        ("👩\u200d🌾", "👩\u200d🌾"),  # joined emoji
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),  # spaces
        ("one\ntwo\r\n\tthree", "one two   three"),
        (EVIL, SHOWN),
        ("\u2028\u2029\u2066\u200e", "\\u2028\\u2029\\u2066\\u200e"),
        ("\ud800", "\\ud800"),  # which no terminal can be told
        (SHOWN, SHOWN),
        (5, "5"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_labels_of_every_layout(tmp_path):
    names = {str(i): EVIL for i in range(11)}
    model = keras_vit.from_preset(goldens.repository("hf-vit", tmp_path / "hf", id2label=names))
    assert model.labels == [SHOWN] * 11
    timm = goldens.repository("vit-plain", tmp_path / "timm", label_names=[EVIL] * 7)
    model = keras_vit.from_preset(timm)
    assert model.labels == [SHOWN] * 7
    model.save_to_preset(tmp_path / "keras")
    path = tmp_path / "keras/task.json"
    task = json.loads(path.read_text())
    task["config"]["labels"] = [EVIL] * 7
    path.write_text(json.dumps(task))
    assert keras_vit.from_preset(tmp_path / "keras").labels == [SHOWN] * 7
    assert (
        keras_vit.from_preset(tmp_path / "keras", num_classes=None, mean=0.5).labels == [SHOWN] * 7
    )


def clean(error):
    text = str(error.value)
    assert "\x1b" not in text and "\x07" not in text and "\x9b" not in text
    return text


def test_names_of_tensors(tmp_path):
    folder = tiny.write(tmp_path / "timm", tiny.timm_files())
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, EVIL: np.zeros(2, "float32")}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="not used by the model") as error:
        keras_vit.from_preset(folder)
    assert SHOWN in clean(error)
    save_file({EVIL: np.zeros(2, "int32")}, folder / "model.safetensors")
    with pytest.raises(WeightsError) as error:
        Repository(folder).tensors()[EVIL].read()
    assert SHOWN in clean(error)
    save_file({EVIL: np.zeros(2, "float32")}, tmp_path / "one.safetensors")
    np.savez(tmp_path / "one.npz", **{EVIL: np.zeros(2, "float32")})
    for name in ("one.safetensors", "one.npz"):
        with pytest.raises(ValueError, match="The file has: ") as error:
            keras_vit.from_preset(tmp_path / name)
        assert SHOWN in clean(error)


@pytest.mark.parametrize(
    "config",
    [
        {EVIL: 3},
        {"architecture": EVIL},
        {"model_type": EVIL},
        {"registered_name": EVIL},
        {"registered_name": f"keras_hub>{EVIL}", "config": {}},
        {**tiny.timm_config(), "model_args": {EVIL: 3}},
        {**tiny.transformers_config(), "hidden_act": EVIL},
        {**tiny.transformers_config(), "id2label": {EVIL: "a"}},
    ],
)
def test_words_of_configs(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        keras_vit.from_preset(tmp_path)
    clean(error)


def test_what_a_server_says(tmp_path):
    with HubServer({"me/timm": tiny.timm_files()}) as hub, client_of(hub, tmp_path):
        hub.fail(status=403, headers={"X-Error-Message": "no\x9b0m"})
        with pytest.raises(HubError, match="HTTP 403") as error:
            keras_vit.from_preset("me/timm")
        assert "no\\x9b0m" in clean(error)


# --- Pointers of Git LFS ---

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 22881040\n" % (
    b"0" * 64
)


def test_a_pointer_in_the_place_of_weights_or_config(tmp_path):
    folder = tiny.write(tmp_path / "timm", tiny.timm_files())
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes(POINTER)
        with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer.* `git lfs pull` in"):
            keras_vit.from_preset(folder)


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.npz"])
def test_a_pointer_in_the_place_of_a_file(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer.* `git lfs pull` in"):
        keras_vit.from_preset(tmp_path / name)


@pytest.mark.parametrize("name", ["model.weights.h5", "task.weights.h5"])
def test_a_pointer_in_the_place_of_keras_weights(tmp_path, name):
    keras_vit.from_preset("vit_digits_patch4_32.sklearn").save_to_preset(tmp_path)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer.* `git lfs pull` in"):
        keras_vit.from_preset(tmp_path)


def test_the_pointer_among_the_shared_cases(shared, tmp_path):
    shutil.copyfile(shared / "cases/lfs_pointer.safetensors", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is a Git LFS pointer"):
        keras_vit.from_preset(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"version", b"{}", zipfile.stringEndArchive])
def test_other_damage_is_no_pointer(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        keras_vit.from_preset(tmp_path / "a.safetensors")


# --- What to delete ---


def test_only_files_of_the_cache_are_named_as_those_to_delete(tmp_path):
    outside = tmp_path / "precious.safetensors"
    outside.write_bytes(b"")
    with HubServer({"me/timm": tiny.timm_files()}) as hub, client_of(hub, tmp_path / "cache"):
        link = Repository("me/timm").file("model.safetensors")
        link.unlink()
        link.symlink_to(outside)
        with pytest.raises(WeightsError) as error:
            keras_vit.from_preset("me/timm")
    assert f"Delete {link} and load again" in str(error.value)
    assert "precious" not in str(error.value)


def test_an_unreachable_hub_is_said_in_one_line(tmp_path):
    with HubServer({}) as hub, client_of(hub, tmp_path / "cache"):
        hub.__exit__()
        with pytest.raises(NotCached) as error:
            keras_vit.from_preset("me/timm")
    assert "\n" not in str(error.value)


def test_names_of_images(tmp_path, capsys):
    folder = tmp_path / "a\x1b[31m"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "b\x1b[2J.png")
    (folder / "c\x1b[2J.png").write_bytes(b"none")
    assert main(["predict", "vit_digits_patch4_32.sklearn", str(folder)]) == 2
    (folder / "b\x1b[2J.png").unlink()
    assert main(["predict", "vit_digits_patch4_32.sklearn", str(folder)]) == 2
    shown = "".join(capsys.readouterr())
    assert "\x1b[31m" not in shown and "\x1b[2J" not in shown
    assert r"b\x1b[2J.png" in shown and r"no readable image in" in shown


def test_names_in_hdf5(tmp_path):
    keras_vit.from_preset("vit_digits_patch4_32.sklearn").save_to_preset(tmp_path)
    with h5py.File(tmp_path / "model.weights.h5", "r+") as file:
        file["layers"].create_dataset(EVIL, (1 << 20,), "float32")
    with pytest.raises(WeightsError) as error:
        keras_vit.from_preset(tmp_path)
    assert SHOWN in clean(error)

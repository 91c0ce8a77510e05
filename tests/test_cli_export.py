"""keras-vit export, compare and benchmark: files, what they cost and give, and what goes wrong."""

import json
import os
import re

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vit.demo import digits
from keras_vit_command import run as main
from keras_vit_command.exporting import ONNX, SAVED_MODEL, TFLITE, classes, format_of
from keras_vit_command.parser import parser

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="files are made on the TensorFlow backend"
)
PRESET = "vit_digits_patch4_32.sklearn"  # its classes are 0 to 9


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders 3, 5 and 8 with four handwritten digits each, of the held-out part."""
    folder = tmp_path_factory.mktemp("pictures")
    images, labels = digits()
    for number in (3, 5, 8):
        (folder / str(number)).mkdir()
        for i in np.flatnonzero(labels == number)[-4:]:
            Image.fromarray(images[i, ..., 0]).save(folder / str(number) / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "digits.tflite"
    assert main(["export", PRESET, str(path)]) == 0
    return path


def fails(capsys, words, *parts):
    """Status 2, nothing but one line on stderr, and these words in it."""
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("keras-vit: ") and said.err.count("\n") == 1
    for part in parts:
        assert part in said.err


# --- export --check ---


def test_a_table_with_accuracy(pictures, tmp_path, capsys):
    path = tmp_path / "m.tflite"
    words = ["export", PRESET, path, "--quantize", "float16", "--check", pictures, "--threads", 1]
    assert main(list(map(str, words))) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for part in (
        "was checked on 4 generated test images: the relative error of its logits is ",
        f"on the images in {pictures}",
        "100.0% of 12 images",
        "accuracy",
        "1 thread, median",
    ):
        assert part in said.out
    assert "FULLY_CONNECTED" in said.out and "XNNPACK partitions" in said.out


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx", "m"])
def test_json_of_each_format(name, pictures, tmp_path, capsys):
    if name == "m.onnx":
        pytest.importorskip("tf2onnx")
        pytest.importorskip("onnxruntime")
    words = ["export", PRESET, tmp_path / name, "--check", pictures, "--runs", 2, "--json"]
    assert main(list(map(str, words))) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.err == ""
    assert found["images"] == 12 and found["agreement"] == 1.0
    assert found["accuracy"] == found["model_accuracy"] > 0.7
    assert found["largest_logit_difference"] < 1e-3
    assert bool(found["operations"]) == (name != "m")
    assert found["path"] == str(tmp_path / name) and found["size"] > 800_000


def test_int8_from_calibration_pictures(pictures, tmp_path, capsys):
    pytest.importorskip("ai_edge_quantizer")
    path = tmp_path / "m.tflite"
    words = ["export", PRESET, path, "--quantize", "int8", "--calibration", pictures]
    assert main([*map(str, words), "--check", str(pictures), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agreement"] >= 11 / 12 and found["size"] < 400_000


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx", "m"])
def test_it_says_what_was_checked(name, tmp_path, capsys):
    if name == "m.onnx":
        pytest.importorskip("tf2onnx")
    assert main(["export", PRESET, str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert "was checked on" in said and "generated test images" in said
    error, limit = map(float, re.search(r"is ([\d.e-]+) \(.*limit is ([\d.e-]+)\)", said).groups())
    assert 0 <= error < limit
    assert "agrees" not in said


def test_options_reach_the_file(tmp_path, capsys):
    import tensorflow as tf

    path = tmp_path / "saved"
    assert main(["export", PRESET, str(path), "--attention", "--batch-size", "2"]) == 0
    signatures = tf.saved_model.load(str(path)).signatures
    images = signatures["attention"].structured_input_signature[1]["images"]
    assert images.shape.as_list() == [2, None, None, 1]
    path = tmp_path / "m.tflite"
    assert main(["export", PRESET, str(path), "--gpu", "--image-size", "40x32"]) == 0
    capsys.readouterr()
    assert main(["benchmark", str(path), "--runs", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs"] == {"images": ["float32", [1, 40, 32, 1]]}


def test_folders_and_classes(pictures, capsys):
    paths = [str(path) for path in sorted(pictures.rglob("*.png"))]
    names = [str(i) for i in range(10)]
    assert classes(paths, pictures, names) == [3] * 4 + [5] * 4 + [8] * 4
    assert classes(paths[:4], pictures / "3", names) is None  # pictures alone
    assert capsys.readouterr().err == ""
    for others in (None, names[:8], [*names, "8"]):  # none, one missing, one twice
        assert classes(paths, pictures, others) is None
        assert "no accuracy is reported: there is a folder" in capsys.readouterr().err


# --- compare and benchmark ---


def test_compare_an_old_file(file, pictures, tmp_path, capsys):
    before = file.read_bytes()
    words = ["compare", PRESET, file, pictures / "5", "--runs", 2]
    assert main(list(map(str, words))) == 0
    said = capsys.readouterr()
    assert "100.0% of 4 images" in said.out and "accuracy" not in said.out
    assert file.read_bytes() == before
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "good.png").write_bytes(next((pictures / "5").iterdir()).read_bytes())
    (tmp_path / "5" / "bad.png").write_text("no picture")
    assert main(["compare", PRESET, str(file), str(tmp_path), "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["images"] == 1
    assert "1 file skipped" in said.err and "bad.png" in said.err


def test_benchmark(file, capsys):
    assert main(["benchmark", str(file), "--threads", "1", "--runs", "3"]) == 0
    said = capsys.readouterr().out
    for part in (PRESET, "3 runs, 1 thread", "images: uint8 (1, 32, 32, 1)", "10: 0, 1, 2, 3, 4"):
        assert part in said
    assert main(["benchmark", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "TFLite" and found["runs"] == 50 and found["preset"]["name"] == PRESET
    assert found["partitions"] == 1 and found["operations"]["SOFTMAX"] == 5


# --- What goes wrong ---


def test_there_are_no_pictures(file, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "m.tflite"
    for words in (["export", PRESET, out, "--check"], ["compare", PRESET, file]):
        fails(capsys, [*words, tmp_path / "empty"], "There is no readable image", "empty")
        fails(capsys, [*words, tmp_path / "none"], "There is no folder", "none")
    int8 = ["export", PRESET, out, "--quantize", "int8", "--calibration"]
    fails(capsys, [*int8, tmp_path / "none"], "There is no folder", "none")
    assert not out.exists()


def test_files_of_another_model_and_other_files(file, pictures, tmp_path, capsys):
    words = ["compare", PRESET, file, pictures, "--image-size", 64]
    fails(capsys, words, "was made from another model: it takes images of shape (32, 32, 1)")
    broken = tmp_path / "m.tflite"
    broken.write_bytes(b"not a model")
    for words in (["benchmark", broken], ["compare", PRESET, broken, pictures]):
        fails(capsys, words, "is not a valid TFLite file")
    fails(capsys, ["benchmark", tmp_path / "none.onnx"], "There is no file")
    fails(capsys, ["compare", "vit_base", tmp_path / "none.onnx", pictures], "There is no file")
    fails(capsys, ["benchmark", tmp_path], "is not a SavedModel with the signature")
    pytest.importorskip("onnxruntime")
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    fails(capsys, ["benchmark", tmp_path / "m.onnx"], "is not a valid ONNX file")


@pytest.mark.parametrize(
    "words, part",
    [
        (["m", "--quantize", "int8_dynamic"], "--quantize is for a TFLite file, which ends in"),
        (["m.onnx", "--quantize", "float16"], "--quantize is for a TFLite file"),
        (["m.onnx", "--gpu"], "--gpu is for a TFLite file"),
        (["m", "--input", "float32"], "--input is for a TFLite file, which ends in .tflite or an"),
        (["m.tflite", "--attention"], "--attention is for a SavedModel"),
        (["m.tflite", "--quantize", "int8"], "int8 and --calibration FOLDER go together"),
        (["m.tflite", "--calibration", "x"], "int8 and --calibration FOLDER go together"),
        (["m.tflite", "--json"], "--check FOLDER"),
        (["no/where/m.onnx"], "no folder"),
        (["flowers.tflit"], "'flowers.tflit' ends in '.tflit': write a TFLite file"),
        (["flowers.tf"], "For a directory of this name give 'flowers.tf/'"),
        (["flowers.h5"], "ends in '.h5'"),
    ],
)
def test_options_that_do_not_go_together(words, part, tmp_path, capsys, monkeypatch):
    if any("onnx" in word for word in words):
        pytest.importorskip("tf2onnx")
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["export", PRESET, *words], part)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, made, expected",
    [
        ("m.tflite", None, TFLITE),
        ("M.TFLITE", None, TFLITE),
        ("m.onnx", None, ONNX),
        ("m", None, SAVED_MODEL),
        ("m.v2/", None, SAVED_MODEL),
        ("m.v2", "m.v2", SAVED_MODEL),
    ],
)
def test_the_format_follows_from_the_name(name, made, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if made:
        (tmp_path / made).mkdir()
    assert format_of(name) == expected


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx", "m"])
def test_a_pipe_is_refused_before_the_model_is_loaded(name, tmp_path, capsys):
    if name == "m.onnx":
        pytest.importorskip("tf2onnx")
    os.mkfifo(tmp_path / name)
    fails(capsys, ["export", "no such model", tmp_path / name], "file")
    assert (tmp_path / name).is_fifo()


def test_the_words_are_those_of_the_functions():
    from keras_vit.export import quantize

    for name in filter(None, quantize.TOLERANCES):
        words = ["export", "NAME", "m.tflite", "--quantize", name]
        assert parser().parse_args(words).quantize == name
    with pytest.raises(SystemExit):
        parser().parse_args(["export", "NAME", "m.tflite", "--quantize", "int4"])

"""`keras-vit finetune`'s options, `pretrain`, `evaluate`, `probe`, and `predict` on files."""

import csv
import io
import json
import shutil

import keras
import pytest
from test_cli import PRESET, fails, needs_tensorflow, pictures
from test_cli_finetune import TINY, eager, tune

from keras_vit import from_preset, preset_info, train
from keras_vit.train import masking, pretraining
from keras_vit_command import run as main
from keras_vit_command.parser import PRETRAINING, RECIPES, frozen, parser
from keras_vit_command.unfinished import Keeper, Patience

__all__ = ["eager", "pictures"]  # fixtures


@pytest.fixture(scope="module")
def split(pictures, tmp_path_factory):
    """The pictures divided into train, val and test."""
    folder = tmp_path_factory.mktemp("split")
    for name in ("one", "two", "three"):
        for i, path in enumerate(sorted((pictures / name).iterdir())):
            home = folder / ("train", "val", "test")[max(i - 7, 0)] / name
            home.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, home / path.name)
    return folder


@pytest.fixture(scope="module")
def trained(split, tmp_path_factory):
    output = tmp_path_factory.mktemp("options") / "m"
    options = ("--recipe", "deit", "--layer-decay", 0.5, "--class-weights", "auto", "--balanced")
    options += ("--freeze", "1", "--ema", 0.5, "--epochs", 1)
    assert main([str(word) for word in tune(split, output, *options)]) == 0
    return output


def test_a_folder_that_is_split_and_what_lies_beside_the_model(trained, split, capsys):
    model = from_preset(trained)
    assert "patch_embed/proj" not in {v.path.rpartition("/")[0] for v in model.trainable_variables}
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert evaluation["images"] == 3  # of the test
    card = (trained / "README.md").read_text()
    assert "| training | 24 |" in card and "| test | 3 |" in card and "layer_decay | 0.5" in card
    assert "2012.12877" in card
    _, head, body = card.split("---\n", 2)
    assert "library_name: keras" in head
    table = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {6, 3}  # of the images, and of the options
    if (trained / "curves.png").exists():
        assert (trained / "confusion.png").stat().st_size > 1000
    assert main(["evaluate", str(trained), str(split), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["top1"] == pytest.approx(evaluation["top1"])


def test_the_card_says_what_the_model_began_as(pictures, tmp_path):
    preset = "vit_digits_patch4_32.sklearn"
    options = ("--preset", preset, "--epochs", 1, "--recipe", "vit_transfer")
    assert main([str(word) for word in tune(pictures, tmp_path / "m", *options)]) == 0
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"license: {preset_info(preset)['license']}" in card and f"preset {preset}," in card


def test_ones_own_model_keeps_its_head(trained, pictures, tmp_path):
    words = tune(pictures, tmp_path / "m", "--preset", trained, "--epochs", 1)
    words += ["--learning-rate", "1e-30", "--no-flip"]
    assert main([str(word) for word in words]) == 0
    before, after = (
        from_preset(path).get_layer("head").kernel for path in (trained, tmp_path / "m")
    )
    difference = keras.ops.max(keras.ops.abs(before - after))
    assert float(difference) < 1e-6


def test_lora_and_norms(pictures, tmp_path):
    words = tune(pictures, tmp_path / "m", "--lora", 2, "--epochs", 1, "--mixed-precision")
    assert main([str(word) for word in words]) == 0
    names = {v.path for v in from_preset(tmp_path / "m").trainable_variables}
    assert "blocks_0/attn/qkv/lora_kernel_a" in names and "head/kernel" in names
    made = parser().parse_args(["finetune", "x", "--preset", "y", "--output", "z"])
    assert made.recipe == "finetune" and made.freeze is None
    assert frozen("norms") == {"backbone": True, "except_norms": True}


def test_recipes_and_methods_are_those_of_the_library():
    supervised = {name for name in train.RECIPES if name not in pretraining.METHODS}
    assert set(RECIPES) == supervised
    assert set(PRETRAINING) == set(pretraining.METHODS)


def test_patience():
    keeper = Keeper.__new__(Keeper)
    stop = Patience(keeper, 2)
    model = keras.Sequential([keras.layers.Dense(1)])
    stop.set_model(model)
    model.stop_training = False
    for accuracies, stops in (([0.5], False), ([0.5, 0.4], False), ([0.5, 0.4, 0.3], True)):
        keeper.history = {"val_accuracy": accuracies, "val_loss": [1.0] * len(accuracies)}
        stop.on_epoch_end(len(accuracies) - 1)
        assert model.stop_training == stops


def test_tensorboard_is_named_where_it_is_missing(pictures, tmp_path, capsys, monkeypatch):
    from keras_vit_command import finetuning

    monkeypatch.setattr(finetuning.importlib.util, "find_spec", lambda name: None)
    words = tune(pictures, tmp_path / "m", "--tensorboard", tmp_path / "logs")
    fails(capsys, words, "pip install tensorboard")


def test_evaluate(pictures, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = ["evaluate", PRESET, pictures, "--confusion", tmp_path / "c.png"]
    fails(capsys, words, "no class named 'one', 'three', 'two'")
    for number, name in ((1, "one"), (2, "two"), (3, "three")):
        shutil.copytree(pictures / name, tmp_path / "digits" / str(number))
    words[2] = tmp_path / "digits"
    assert main([str(word) for word in words]) == 0
    text = capsys.readouterr().out
    assert "top-1" in text and "calibration error" in text and "recall" in text
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert main(["predict", PRESET, str(tmp_path / "digits" / "1"), "--csv", "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 20 and 0 <= float(rows[0]["probability"]) <= 1
    assert main(["predict", PRESET, str(tmp_path / "digits" / "1"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["classes"]) == 5


@needs_tensorflow
def test_files_classify_as_their_model(trained, split, tmp_path, capsys):
    path = tmp_path / "m.tflite"
    assert main(["export", str(trained), str(path)]) == 0
    capsys.readouterr()
    found = []
    for name in (trained, path):
        assert main(["evaluate", str(name), str(split), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["confusion"] == found[1]["confusion"]
    assert found[0]["calibration_error"] == pytest.approx(found[1]["calibration_error"], abs=1e-4)
    assert main(["predict", str(path), str(split / "test" / "one"), "--json"]) == 0
    assert {row["class"] for row in json.loads(capsys.readouterr().out)[0]["classes"]} == {
        "one",
        "two",
        "three",
    }
    fails(capsys, ["predict", path, split / "test" / "one", "--image-size", 64], "size of its own")


def test_probe(pictures, tmp_path, capsys):
    words = ["probe", pictures, PRESET, TINY["path"], "--validation", 0.3, "--json"]
    if train.probing.matplotlib_figure():
        words += ["--plot", tmp_path / "p.png"]
    assert main([str(word) for word in words]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["linear"] >= 0.8 and first["name"] == PRESET and second["width"] == 12


def test_pretrain(pictures, tmp_path, capsys, monkeypatch):
    options = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    monkeypatch.setitem(pretraining.METHODS, "mae", lambda *given: train.MAE(*given, **options))
    original = masking.Pretraining.compile

    def compile(self, *given, **more):
        original(self, *given, **{**more, "run_eagerly": keras.backend.backend() == "tensorflow"})

    monkeypatch.setattr(masking.Pretraining, "compile", compile)
    words = ["pretrain", pictures, "--preset", TINY["path"], "--output", tmp_path / "m"]
    words += ["--epochs", 1, "--batch-size", 15]
    assert main([str(word) for word in words]) == 0
    assert "30 images" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.state"))
    assert from_preset(tmp_path / "m").num_classes == 0
    fails(capsys, words, "not empty")
    assert main([str(w) for w in tune(pictures, tmp_path / "n", "--preset", tmp_path / "m")]) == 0
    assert from_preset(tmp_path / "n").labels == ["one", "three", "two"]

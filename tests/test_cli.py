"""The command keras-vit, from its words to its exit status."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

import keras_vit_presets as presets
from keras_vit import from_preset
from keras_vit.demo import digits
from keras_vit.explain.methods import METHODS
from keras_vit_command import commands
from keras_vit_command import run as main
from keras_vit_command.parser import EXPLANATIONS as NAMES

PRESET = "vit_digits_patch4_32.sklearn"
needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="files are made on the TensorFlow backend"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Class folders one, two and three, with ten handwritten digits in each."""
    folder = tmp_path_factory.mktemp("pictures")
    images, labels = digits()
    for number, name in ((1, "one"), (2, "two"), (3, "three")):
        (folder / name).mkdir()
        for i in np.flatnonzero(labels == number)[-10:]:
            Image.fromarray(images[i, ..., 0]).save(folder / name / f"{i}.png")
    return folder


def finetune(folder, output, *options):
    words = ["finetune", folder, "--preset", PRESET, "--output", output, "--epochs", 2, "--no-flip"]
    return [str(word) for word in (*words, "--batch-size", 6, *options)]


def command(*words, **environment):
    """The command as a program of its own, as the console script starts it."""
    program = "import sys; from keras_vit_command import main; status = main(); "
    program += "print('imported', 'keras' in sys.modules, file=sys.stderr); "
    own = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", program + "sys.exit(status)", *map(str, words)],
        env={**own, **environment},
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )


def fails(capsys, words, *parts):
    """Status 2, nothing but one line on stderr, and these words in it."""
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras-vit: ") and error.count("\n") == 1
    for part in parts:
        assert part in error
    return error


def rows(text):
    return [line.split() for line in text.splitlines()]


# --- list and show ---


def test_list_has_every_preset(capsys):
    assert main(["list"]) == 0
    header, *found = rows(capsys.readouterr().out)
    assert header == ["name", "size", "params", "top-1", "licence"]
    assert [row[0] for row in found] == sorted(presets.checkpoints())
    tiny = next(row for row in found if row[0] == "deit_tiny_patch16_224.fb_in1k")
    assert tiny[1:] == ["224", "5.7M", "72.2", "apache-2.0"]
    own = next(row for row in found if row[0] == PRESET)
    assert own[1:] == ["32", "206k", "-", "apache-2.0"]


@pytest.mark.parametrize(
    "words, column, check",
    [
        (["deit_*"], 0, lambda v: v.startswith("deit_")),
        (["tiny"], 0, lambda v: "tiny" in v),
        (["--license", "MIT"], 4, lambda v: v == "mit"),
        (["--max-params", "6M"], 2, lambda v: v[-1] == "k" or float(v[:-1]) <= 6),
        (["--data", "In21k"], 0, lambda v: "in21k" in v.partition(".")[2]),
        (["--data", "in12k, in1k"], 0, lambda v: re.search(r"in12k_(ft_)?in1k(_\d+)?$", v)),
        (["--size", "384"], 1, lambda v: v == "384"),
        (["--top1", "86"], 3, lambda v: float(v) >= 86),
    ],
)
def test_list_filters(words, column, check, capsys):
    assert main(["list", *words]) == 0
    found = rows(capsys.readouterr().out)[1:]
    assert 1 <= len(found) < len(presets.checkpoints())
    assert all(check(row[column]) for row in found)


@pytest.mark.parametrize(
    "key, value",
    [
        ("top1", lambda row: -(row.top1 or 0)),
        ("params", lambda row: row.params),
        ("size", lambda row: row.image_size),
    ],
)
def test_list_sorts(key, value, capsys):
    assert main(["list", "--sort", key]) == 0
    found = [presets.checkpoints()[row[0]] for row in rows(capsys.readouterr().out)[1:]]
    values = [value(row) for row in found]
    assert len(found) == len(presets.checkpoints()) and values == sorted(values)


def test_list_sorts_by_data_with_the_unknown_last(capsys):
    assert main(["list", "--sort", "data"]) == 0
    found = [presets.checkpoints()[row[0]].trained_on for row in rows(capsys.readouterr().out)[1:]]
    known = [data for data in found if data]
    assert known == sorted(known) and not any(found[len(known) :])
    assert len(known) < len(found) == len(presets.checkpoints())


def test_show_says_the_training_data(capsys):
    assert main(["show", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"]) == 0
    assert ["trained", "on", "in21k,", "in1k"] in rows(capsys.readouterr().out)


def test_tables_fit_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = ["deit_tiny_distilled_patch16_224.fb_in1k", PRESET]
    assert main(["list"]) == 0 and all(main(["show", name]) == 0 for name in names)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    whole = [line for line in lines if line.startswith("vit_tiny_patch16_224.augreg_in21k_ft_in1k")]
    assert len(whole) == 1 and whole[0].split()[-1] == "apache-2.0"


def test_list_of_nothing(capsys):
    fails(capsys, ["list", "deit_tiny_patch17"], "No preset", "deit_tiny_patch16_224.fb_in1k")


@pytest.mark.parametrize("kind", ["row", "directory"])
def test_show(kind, capsys):
    name = PRESET if kind == "row" else str(presets.FOLDER / "vit_digits")
    assert main(["show", name]) == 0
    text = capsys.readouterr().out
    for part in (PRESET, "ViT", "depth 4", "32 x 32", "bicubic", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"):
        assert part in text
    assert ("206,026" in text) == (kind == "row")


def test_show_of_an_unknown_name(capsys):
    fails(capsys, ["show", "vit_digit"], "Unknown preset", PRESET)


# --- predict, explain, export ---


def test_predict(pictures, capsys):
    files = sorted((pictures / "two").iterdir())
    assert main(["predict", PRESET, *map(str, files), str(pictures / "three"), "--top", "2"]) == 0
    header, *found = rows(capsys.readouterr().out)
    assert header == ["picture", "class", "probability"]
    firsts, seconds = found[::2], found[1::2]
    assert [row[0] for row in firsts[:10]] == list(map(str, files))
    assert len(firsts) == len(seconds) == 20 and all(len(row) == 2 for row in seconds)
    paths = [*files, *sorted((pictures / "three").iterdir())]
    best = from_preset(PRESET).classify(paths, top=2)
    for first, second, ((name, share), (other, rest)) in zip(firsts, seconds, best, strict=True):
        assert first[1:] == [name, f"{share:.1%}"] and second == [other, f"{rest:.1%}"]
    assert sum(row[1] == "3" for row in firsts[10:]) > 5


def test_predict_leaves_out_what_is_no_picture(pictures, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    good = next((pictures / "one").iterdir())
    words = ["predict", PRESET, str(broken), str(tmp_path / "missing.png"), str(good)]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "2 files skipped" in said.err and "broken.png" in said.err and "missing.png" in said.err
    assert rows(said.out)[1][0] == str(good)
    assert main(words[:3]) == 2
    assert "There is no readable image in" in capsys.readouterr().err


def test_predict_of_a_model_that_gives_nan(pictures, capsys, monkeypatch):
    model = from_preset(PRESET)
    model.set_weights([w * np.nan for w in model.get_weights()])
    monkeypatch.setattr(commands, "load_model", lambda *_, **__: model)
    picture = next((pictures / "two").iterdir())
    fails(capsys, ["predict", PRESET, picture], "gives NaN for 1 of 1 images", str(picture))


@pytest.mark.parametrize("words", [["predict", "my_flower", "a.png"], ["show", "my_flower"]])
@pytest.mark.parametrize("folder", [".", "runs"])
def test_a_folder_with_a_similar_name_is_suggested(words, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("my_flowers", "my_floors", "other"):
        (tmp_path / folder / name).mkdir(parents=True)
    (tmp_path / folder / "my_flowers" / "config.json").write_text("{}")
    Image.new("L", (8, 8)).save("a.png")
    name = str(pathlib.Path(folder, "my_flower"))
    similar = str(pathlib.Path(folder, "my_flowers"))
    words = [words[0], name, *words[2:]]
    error = fails(capsys, words, f"Did you mean the folder {similar!r}?")
    assert "floors" not in error


def test_explain(pictures, tmp_path, capsys):
    output = tmp_path / "seen.png"
    files = [str(path) for path in sorted((pictures / "two").iterdir())[:2]]
    assert main(["explain", PRESET, *files, "--output", str(output)]) == 0
    assert "class token, 2 images" in capsys.readouterr().out
    with Image.open(output) as image:
        assert image.height > image.width  # a row for each picture
    missing = tmp_path / "no" / "seen.png"
    fails(capsys, ["explain", PRESET, files[0], "--output", missing], "no folder")
    fails(capsys, ["explain", PRESET, files[0], "--output", tmp_path / "seen.txt2"], "txt2")
    fails(capsys, ["explain", PRESET, files[0]], "--output FIGURE, --html PAGE")


def test_explain_classes_and_page(pictures, tmp_path, capsys):
    file = str(next((pictures / "two").iterdir()))
    figure, page = str(tmp_path / "seen.svg"), str(tmp_path / "page.html")
    assert (
        main(["explain", PRESET, file, "--output", figure, "--classes", "2", "--html", page]) == 0
    )
    said = capsys.readouterr().out
    assert f"{figure}: attention relevance, 1 image." in said
    assert re.search(r"page.html: 1 image, 0\.\d MB", said)
    assert "<svg" in pathlib.Path(figure).read_text() and "DecompressionStream" in pathlib.Path(
        page
    ).read_text("utf-8")


def test_the_methods_of_explain_are_those_of_the_library():
    assert NAMES == tuple(METHODS)


@needs_tensorflow
def test_export(tmp_path, capsys):
    small, whole = tmp_path / "m.tflite", tmp_path / "saved"
    assert main(["export", PRESET, str(small), "--quantize", "int8_dynamic"]) == 0
    assert main(["export", PRESET, str(whole), "--image-size", "32x64"]) == 0
    said = capsys.readouterr().out
    assert f"{small}: 0.3 MB" in said and str(whole) in said
    assert small.stat().st_size < 400_000 and (whole / "saved_model.pb").is_file()


@pytest.mark.parametrize(
    "words, part",
    [
        (["export", PRESET, "dir", "--quantize", "int8_dynamic"], "ends in .tflite"),
        (["export", PRESET, "no/where/m.tflite"], "no folder"),
        (["export", PRESET, "m.tflite", "--image-size", "30"], "30"),
        (["predict", "vit_base", "x.png"], "no readable image"),
    ],
)
def test_wrong_words(words, part, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert part in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [[], ["dance"], ["predict", PRESET], ["list", "--max-params", "many"]]
    + [["export", PRESET, "m.tflite", "--image-size", size] for size in ("0", "1x2x3", "big")],
)
def test_words_that_argparse_refuses(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: keras-vit" in capsys.readouterr().err


def test_the_whole_traceback_on_demand():
    with pytest.raises(ValueError, match="Unknown preset"):
        main(["show", "vit_digit", "--traceback"])


# --- as a program ---


@pytest.mark.parametrize("words", [["list", "tiny"], ["show", PRESET], ["--version"], ["--help"]])
def test_tables_and_help_do_not_wait_for_keras(words):
    done = command(*words)
    assert done.returncode == 0 and done.stdout
    if not words[0].startswith("--"):  # argparse leaves before that
        assert done.stderr == "imported False\n"


def test_a_prediction_is_all_that_is_printed(pictures):
    picture = next((pictures / "three").iterdir())
    done = command("predict", PRESET, picture, "--top", 1)
    assert done.returncode == 0
    assert done.stderr == "imported True\n"  # no greeting of TensorFlow
    assert [row[0] for row in rows(done.stdout)] == ["picture", str(picture)]


def test_demo_without_network_says_so(tmp_path):
    words = ("demo", "--preset", "hf://nobody/nothing", "--output", tmp_path / "out")
    done = command(*words, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "`keras-vit demo` without --preset needs no network" in done.stdout
    assert "nobody/nothing is not in the cache" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()

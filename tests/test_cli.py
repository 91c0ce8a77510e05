"""The command keras-vit, from its words to its exit status."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vit import from_preset, presets, train
from keras_vit.cli import main
from keras_vit.cli.finetuning import learn, staging
from keras_vit.cli.main import parser
from keras_vit.cli.tables import console
from keras_vit.demo import digits

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


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """What `finetune` leaves behind, and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    output = folder / "deep" / "model"
    export = () if keras.backend.backend() != "tensorflow" else ("--export", folder / "m.tflite")
    assert main(finetune(pictures, output, *export)) == 0
    return output


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
        (["--data", "in12k, in1k"], 0, lambda v: v.endswith(("in12k_ft_in1k", "in12k_in1k"))),
        (["--size", "384"], 1, lambda v: v == "384"),
        (["--top1", "86"], 3, lambda v: float(v) >= 86),
    ],
)
def test_list_filters(words, column, check, capsys):
    assert main(["list", *words]) == 0
    found = rows(capsys.readouterr().out)[1:]
    assert 1 <= len(found) < len(presets.checkpoints())
    assert all(check(row[column]) for row in found)


@pytest.mark.parametrize("key, sign", [("top1", -1), ("params", 1), ("size", 1)])
def test_list_sorts(key, sign, capsys):
    assert main(["list", "--sort", key]) == 0
    found = [presets.checkpoints()[row[0]] for row in rows(capsys.readouterr().out)[1:]]
    values = [sign * row.get(key, 0) for row in found]
    assert len(found) == len(presets.checkpoints()) and values == sorted(values)


def test_list_sorts_by_data_with_the_unknown_last(capsys):
    assert main(["list", "--sort", "data"]) == 0
    found = [presets.trained_on(row[0]) for row in rows(capsys.readouterr().out)[1:]]
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
    assert "2 files left out" in said.err and "broken.png" in said.err and "missing.png" in said.err
    assert rows(said.out)[1][0] == str(good)
    assert main(words[:3]) == 2
    assert "There is no picture to look at" in capsys.readouterr().err


def test_explain(pictures, tmp_path, capsys):
    output = tmp_path / "seen.png"
    files = [str(path) for path in sorted((pictures / "two").iterdir())[:2]]
    assert main(["explain", PRESET, *files, "--output", str(output)]) == 0
    assert "class token, 2 pictures" in capsys.readouterr().out
    with Image.open(output) as image:
        assert image.height > image.width  # a row for each picture
    missing = tmp_path / "no" / "seen.png"
    fails(capsys, ["explain", PRESET, files[0], "--output", missing], "no folder")
    fails(capsys, ["explain", PRESET, files[0], "--output", tmp_path / "seen.txt2"], "txt2")


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
        (["predict", "vit_base", "x.png"], "no picture"),
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


# --- finetune ---


def test_finetune_leaves_a_model_its_labels_and_a_log(trained, pictures, capsys):
    model = from_preset(trained)
    assert model.labels == ["one", "three", "two"] and model.num_classes == 3
    assert (trained / "labels.txt").read_text().split() == model.labels
    with open(trained / "training.csv") as log:
        log = list(csv.DictReader(log))
    assert [row["epoch"] for row in log] == ["0", "1"]
    assert all(0 <= float(row["val_accuracy"]) <= 1 for row in log)
    assert [path.name for path in trained.parent.iterdir()] == ["model"]
    if keras.backend.backend() == "tensorflow":
        assert (trained.parents[1] / "m.tflite").stat().st_size > 500_000
    assert main(["predict", str(trained), str(pictures / "two")]) == 0
    assert {row[-2] for row in rows(capsys.readouterr().out)[1:]} == {"one", "two", "three"}


def test_finetune_reports_broken_files_and_goes_on(pictures, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in sorted((pictures / name).iterdir())[:4]:
            (tmp_path / "data" / name / path.name).write_bytes(path.read_bytes())
    (tmp_path / "data" / "one" / "notes.jpg").write_text("no picture")
    assert (
        main(finetune(tmp_path / "data", tmp_path / "m", "--epochs", 1, "--validation", 0.5)) == 0
    )
    said = capsys.readouterr()
    assert "1 file left out" in said.err and "notes.jpg" in said.err
    assert "8 pictures of 2 classes: one, two" in said.out
    assert "4 to train on, 4 to judge by" in said.out


@pytest.mark.parametrize("epoch", [0, 2])
def test_ctrl_c_keeps_what_was_learned(epoch, pictures, capsys):
    found = train.read_folder(pictures)
    model = from_preset(PRESET, num_classes=3)

    class Impatient(keras.callbacks.Callback):
        def on_epoch_begin(self, now, logs=None):
            if now == epoch:
                raise KeyboardInterrupt

    args = parser().parse_args(finetune(pictures, "m", "--epochs", 4))
    side = (found.paths, found.labels)
    if not epoch:
        with pytest.raises(KeyboardInterrupt):
            learn(model, side, side, args, Impatient(), console())
        return
    history = learn(model, side, side, args, Impatient(), console())
    assert len(history["val_accuracy"]) == 2
    assert "kept as it is now" in capsys.readouterr().out


def test_an_output_folder_is_kept(trained, pictures, tmp_path, capsys):
    kept = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    fails(capsys, finetune(pictures, trained), "not empty", "--overwrite")
    # It fails half way: the model that lies there is whole.
    assert main([*finetune(pictures, trained, "--overwrite"), "--dtype", "float99"]) == 2
    assert kept == {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    capsys.readouterr()
    fails(capsys, finetune(pictures, tmp_path / "mine", "--overwrite"), "No model lies in")
    fails(capsys, finetune(pictures, tmp_path / "mine" / "letter.txt"), "is a file")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_overwrite_and_a_folder_for_validation(pictures, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / "some" / name).mkdir(parents=True)
        for path in sorted((pictures / name).iterdir())[:3]:
            (tmp_path / "some" / name / path.name).write_bytes(path.read_bytes())
    goal = tmp_path / "model"
    goal.mkdir()
    (goal / "config.json").write_text(json.dumps({"old": True}))
    (goal / "letter.txt").write_text("dear")
    words = finetune(pictures, goal, "--overwrite", "--validation", tmp_path / "some")
    fails(capsys, words, "same class folders", "one, three, two. Received: one, two")
    (tmp_path / "some" / "three").symlink_to(pictures / "three")
    assert main([*words, "--epochs", "1"]) == 0
    assert "30 to train on, 16 to judge by" in capsys.readouterr().out
    assert (goal / "letter.txt").read_text() == "dear"
    assert from_preset(goal).num_classes == 3


@pytest.mark.parametrize(
    "options, part",
    [
        (("--validation", "some"), "--validation takes a part"),
        (("--validation", "1.5"), "between 0 and 1"),
        (("--export", "no/where/m.tflite"), "no folder"),
        (("--export", "m", "--quantize", "int8_dynamic"), "ends in .tflite"),
        (("--preset", "vit_digit"), "Unknown preset"),
        (("--image-size", "31"), "31"),
    ],
)
def test_finetune_says_what_is_wrong(options, part, pictures, tmp_path, capsys):
    assert main(finetune(pictures, tmp_path / "new", *options)) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras-vit: ") and part in error
    assert not any(tmp_path.iterdir())


def test_quantize_without_a_file_to_export(pictures, tmp_path, capsys):
    words = finetune(pictures, tmp_path / "new", "--quantize", "int8")
    fails(capsys, words, "--quantize is for the file of --export")


class Interrupted(list):
    """Paths of pictures; Ctrl-C comes while they are read."""

    def __iter__(self):
        raise KeyboardInterrupt

    def __getitem__(self, index):
        raise KeyboardInterrupt


def test_a_training_that_is_stopped_while_it_reads_leaves_nothing(pictures, tmp_path):
    found = train.read_folder(pictures)
    model = from_preset(PRESET, num_classes=3)
    goal = tmp_path / "some" / "where" / "new"
    args = parser().parse_args(finetune(pictures, goal))
    side = (Interrupted(found.paths), found.labels)
    with pytest.raises(KeyboardInterrupt), staging(goal):
        learn(model, side, side, args, keras.callbacks.Callback(), console())
    assert not any(tmp_path.iterdir())


def test_finetune_on_an_empty_class_folder(pictures, tmp_path, capsys):
    (tmp_path / "data" / "one").mkdir(parents=True)
    (tmp_path / "data" / "two").symlink_to(pictures / "two")
    fails(capsys, finetune(tmp_path / "data", tmp_path / "m"), "No picture in", "data/one'")
    fails(capsys, finetune(tmp_path / "none", tmp_path / "m"), "no folder", "none")
    assert not (tmp_path / "m").exists()


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

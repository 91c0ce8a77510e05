"""`keras-vit finetune`: what it leaves behind, also when it is interrupted, killed or fails."""

import contextlib
import csv
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import unicodedata

import keras
import numpy as np
import pytest
from test_cli import fails, finetune, pictures, rows
from tiny_models import classifier

from keras_vit import ViT, from_preset, train
from keras_vit_command import finetuning
from keras_vit_command import run as main
from keras_vit_command.unfinished import NAME, Keeper, Unfinished

__all__ = ["pictures"]  # a fixture


TINY = {}  # the path of a tiny preset


@pytest.fixture(scope="module", autouse=True)
def eager(tmp_path_factory):
    """Train step by step: making a graph takes longer than these few steps."""
    TINY["path"] = path = tmp_path_factory.mktemp("presets") / "tiny"
    classifier(in_channels=1, embed_dim=12, depth=1).save_to_preset(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViT, "compile", functools.partialmethod(ViT.compile, run_eagerly=True))
        yield


def tune(folder, output, *options):
    """The words to train the tiny model, in two steps per epoch."""
    return finetune(folder, output, "--preset", TINY["path"], "--batch-size", 12, *options)


@pytest.fixture(autouse=True)
def in_the_foreground():
    """nohup and a shell's `&` have some signals ignored, and so has what they start."""
    ours = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    before = {name: signal.signal(getattr(signal, name), how) for name, how in ours.items()}
    yield
    for name, how in before.items():
        signal.signal(getattr(signal, name), how)


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """What `finetune` leaves behind, and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    output = folder / "deep" / "model"
    export = () if keras.backend.backend() != "tensorflow" else ("--export", folder / "m.tflite")
    assert main(finetune(pictures, output, *export)) == 0
    return output


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
    assert "1 file skipped" in said.err and "notes.jpg" in said.err
    assert "8 images of 2 classes: one, two" in said.out
    assert "4 for training, 4 for validation" in said.out


def test_an_output_folder_is_kept(trained, pictures, tmp_path, capsys):
    kept = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    fails(capsys, finetune(pictures, trained), "not empty", "--overwrite")
    # It fails half way: the model that lies there is whole.
    assert main([*finetune(pictures, trained, "--overwrite"), "--dtype", "float99"]) == 2
    assert kept == {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    capsys.readouterr()
    fails(capsys, finetune(pictures, tmp_path / "mine", "--overwrite"), "There is no model in")
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
    assert "30 for training, 16 for validation" in capsys.readouterr().out
    assert (goal / "letter.txt").read_text() == "dear"
    assert from_preset(goal).num_classes == 3


@pytest.mark.parametrize(
    "options, part",
    [
        (("--validation", "some"), "--validation takes a fraction"),
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
    fails(capsys, words, "--quantize applies to the file of --export")


def test_finetune_on_an_empty_class_folder(pictures, tmp_path, capsys):
    (tmp_path / "data" / "one").mkdir(parents=True)
    (tmp_path / "data" / "two").symlink_to(pictures / "two")
    fails(capsys, finetune(tmp_path / "data", tmp_path / "m"), "No picture in", "data/one'")
    fails(capsys, finetune(tmp_path / "none", tmp_path / "m"), "no folder", "none")
    assert not (tmp_path / "m").exists()


# --- Interrupted, killed, resumed ---


@pytest.fixture
def during(monkeypatch):
    """A function that adds code to the training: methods of the callback, by their names."""

    def add(**methods):
        def wrapped(name, method):
            def call(self, number, logs=None):
                method(self, number, logs)
                getattr(Keeper, name)(self, number, logs)

            return call

        methods = {name: wrapped(name, method) for name, method in methods.items()}
        monkeypatch.setattr(finetuning, "Keeper", type("Injected", (Keeper,), methods))

    yield add


def at(epoch, action, batch=None):
    """Methods for `during`: the action happens in that epoch, at its begin or in a batch."""
    state = {}

    def on_epoch_begin(self, now, logs=None):
        state["epoch"] = now
        if now == epoch and batch is None:
            action(self)

    def on_train_batch_end(self, now, logs=None):
        if state["epoch"] == epoch and now == batch:
            action(self)

    return {"on_epoch_begin": on_epoch_begin, "on_train_batch_end": on_train_batch_end}


def send(number):
    return lambda _: os.kill(os.getpid(), number)


def log(output):
    with open(output / "training.csv") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def accuracy(output, folder):
    """Of the model in that folder, on the images that `finetune` keeps for validation."""
    found = train.read_folder(folder)
    rows = train.split_labels(found.labels, 0.2, 0)[1]
    logits = from_preset(output).predict([found.paths[i] for i in rows], verbose=0)
    return np.mean(logits.argmax(-1) == found.labels[rows])


def reported(text):
    """(accuracy, epoch) that `finetune` prints."""
    found = re.search(r"Validation accuracy ([\d.]+)% \(epoch (\d+) of", text)
    return float(found[1]) / 100, int(found[2])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def weights(path):
    """Of a model in a folder, or of a state."""
    if path.is_dir():
        return from_preset(path).get_weights()
    model = from_preset(TINY["path"], num_classes=3)
    train.load_state(path, model, optimizer=False)
    return model.get_weights()


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


STATES = ["best.state", "last.state", "lock"]
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_keeps_what_is_reported(number, status, pictures, tmp_path, capsys, during):
    output = tmp_path / "m"
    during(**at(2, send(number), batch=1))
    words = tune(pictures, output, "--epochs", 4, "--export", tmp_path / "m.tflite")
    assert main(words) == status
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    said = capsys.readouterr()
    assert "Stopped" in said.out and "--resume" in said.out and said.err == ""
    share, epoch = reported(said.out)
    rows = log(output)
    assert len(rows) == 2 and epoch in (1, 2)
    assert rows[epoch - 1]["val_accuracy"] == pytest.approx(share, abs=6e-4)
    assert accuracy(output, pictures) == pytest.approx(share, abs=6e-4)
    state = "best.state" if epoch == 1 else "last.state"
    assert_equal(weights(output), weights(output / NAME / state))
    assert names(output / NAME) == STATES
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize(("number", "status"), SIGNALS[:2])
def test_a_signal_in_the_first_epoch_leaves_nothing(
    number, status, pictures, tmp_path, capsys, during
):
    during(**at(0, send(number), batch=1))
    assert main(tune(pictures, tmp_path / "some" / "where")) == status
    assert capsys.readouterr().err == "\nkeras-vit: stopped.\n"
    assert names(tmp_path) == []


def test_a_signal_while_images_are_read_leaves_nothing(pictures, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.pictures.Pictures, "decode", stop)
    assert main(tune(pictures, tmp_path / "new")) == 130
    assert names(tmp_path) == []


def test_nohup_is_heeded(pictures, tmp_path, during):
    during(**at(1, send(signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(tune(pictures, tmp_path / "m")) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def unbroken(pictures, tmp_path_factory):
    """The output of four epochs without an interruption."""
    output = tmp_path_factory.mktemp("unbroken") / "m"
    assert main(tune(pictures, output, "--epochs", 4, "--keep", "last")) == 0
    return output


def test_resumed_after_a_signal(pictures, unbroken, tmp_path, capsys, during, monkeypatch):
    output = tmp_path / "m"
    words = tune(pictures, output, "--epochs", 4, "--keep", "last")
    during(**at(2, send(signal.SIGTERM), batch=1))
    assert main([*words, "--resume"]) == 143  # there is nothing to resume yet
    monkeypatch.undo()
    capsys.readouterr()
    fails(capsys, words, "interrupted after 2 of 4 epochs", "--resume", "--overwrite")
    assert main([*words, "--resume"]) == 0
    assert "Continuing after 2 of 4 epochs" in capsys.readouterr().out
    assert log(output) == log(unbroken) and names(output) == names(unbroken)
    assert_equal(weights(output), weights(unbroken))
    fails(capsys, [*words, "--resume"], "no interrupted training")


KILLED = """
import functools, os, signal, sys
from keras_vit import ViT
from keras_vit_command import finetuning, run
from keras_vit_command.unfinished import Keeper

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

class Killed(Keeper):
    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if epoch == 2 and sys.argv[1] == "training":
            die()

ViT.compile = functools.partialmethod(ViT.compile, run_eagerly=True)
finetuning.Keeper = Killed
if sys.argv[1] == "saving":
    finetuning.save = die
if sys.argv[1] == "moving":
    rename, calls = os.rename, []
    def counted(*paths):
        calls.append(paths)
        rename(*paths)
        if len(calls) == 3:
            die()
    os.rename = counted
if sys.argv[1] == "discarding":
    finetuning.Unfinished.discard = die
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize("point", ["training", "saving", "moving", "discarding"])
def test_resumed_after_a_kill(point, pictures, unbroken, tmp_path):
    output = tmp_path / "m"
    words = [*tune(pictures, output, "--epochs", 4, "--keep", "last"), "--resume"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, point, *words],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (output / "config.json").exists() == (point == "discarding")
    assert main(words) == 0
    assert log(output) == log(unbroken) and names(output) == names(unbroken)
    assert_equal(weights(output), weights(unbroken))


@pytest.mark.parametrize(
    ("keep", "scores", "epoch"),
    [
        ("best", [(0.5, 1.0), (0.9, 0.5), (0.7, 0.1)], 2),
        ("last", [(0.5, 1.0), (0.9, 0.5), (0.7, 0.1)], 3),
        ("best", [(0.5, 1.0), (0.5, 0.8), (0.5, 0.9)], 2),  # equal accuracy: the lower loss
        ("best", [(0.5, 1.0), (0.6, 1.0), (0.7, 1.0)], 3),
    ],
)
def test_the_epoch_that_is_kept(keep, scores, epoch, pictures, tmp_path, capsys, during):
    kept = []

    def score(self, now, logs):
        logs["val_accuracy"], logs["val_loss"] = scores[now]
        kept.append(self.model.get_weights())

    during(on_epoch_end=score)
    assert main(tune(pictures, tmp_path / "m", "--epochs", 3, "--keep", keep)) == 0
    assert reported(capsys.readouterr().out) == (scores[epoch - 1][0], epoch)
    assert [row["val_accuracy"] for row in log(tmp_path / "m")] == [a for a, _ in scores]
    assert_equal(weights(tmp_path / "m"), kept[epoch - 1])
    assert NAME not in names(tmp_path / "m")


@pytest.fixture
def interrupted(pictures, tmp_path, during, monkeypatch):
    """An output folder with a training that was interrupted after one of four epochs."""
    during(**at(1, send(signal.SIGINT)))
    assert main(tune(pictures, tmp_path / "m", "--epochs", 4)) == 130
    monkeypatch.undo()
    return tmp_path / "m"


def test_resume_with_other_settings(interrupted, pictures, tmp_path, capsys, unbroken):
    for options, part in (
        (("--batch-size", 5), "--batch-size was 12"),
        (("--epochs", 5), "--epochs was 4"),
        (("--preset", unbroken), f"--preset was {TINY['path']}"),
        (("--seed", 1), "--seed was 0"),
        (("--validation", 0.3), "images are not those"),
    ):
        words = tune(pictures, interrupted, "--epochs", 4, "--resume", *options)
        assert main(words) == 2
        error = capsys.readouterr().err
        assert part in error and "--overwrite" in error
    assert names(interrupted / NAME) == STATES
    assert main(tune(pictures, interrupted, "--epochs", 1, "--overwrite")) == 0
    assert NAME not in names(interrupted)


def test_a_damaged_state(interrupted, pictures, capsys):
    path = interrupted / NAME / "last.state"
    path.write_bytes(path.read_bytes()[:1000])
    words = tune(pictures, interrupted, "--epochs", 4)
    fails(capsys, [*words, "--resume"], "last.state", "Delete it to start again")
    assert main([*words, "--overwrite", "--epochs", "1"]) == 0


# --- What fails ---


def test_a_training_that_diverges_replaces_nothing(trained, pictures, capsys):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    words = tune(pictures, trained, "--overwrite", "--learning-rate", 1e30)
    error = fails(capsys, words, "loss is nan in epoch 1", "--learning-rate")
    assert "--resume" not in error
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_a_training_that_diverges_later_goes_on_from_before(
    pictures, tmp_path, capsys, during, monkeypatch
):
    def diverge(self):
        for variable in self.model.trainable_variables:
            variable.assign(variable * np.nan)

    during(**at(2, diverge))
    words = tune(pictures, tmp_path / "m", "--epochs", 3)
    fails(capsys, words, "loss is nan in epoch 3", "kept after 2 of 3 epochs", "--resume")
    assert names(tmp_path / "m") == [NAME]
    monkeypatch.undo()
    assert main([*words, "--resume", "--learning-rate", "1e-5"]) == 0
    assert all(np.isfinite(row["loss"]) for row in log(tmp_path / "m"))
    assert accuracy(tmp_path / "m", pictures) >= 0


@contextlib.contextmanager
def mounted(folder, size):
    """A disk of that many bytes in a folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_onto_a_mount_point(pictures, tmp_path):
    with mounted(tmp_path / "m", 30_000_000) as output:
        (output / "lost+found").mkdir()
        for options in ((), ("--overwrite",)):
            assert main(tune(pictures, output, "--epochs", 1, *options)) == 0
        assert from_preset(output).num_classes == 3
        assert not [name for name in names(output) if name.startswith(".")]


def test_through_a_link_to_another_disk(pictures, tmp_path):
    disk = pathlib.Path("/dev/shm")
    if not disk.is_dir() or os.stat(disk).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip(f"{disk} is not another file system")
    with tempfile.TemporaryDirectory(dir=disk) as target:
        (tmp_path / "m").symlink_to(target)
        assert main(tune(pictures, tmp_path / "m", "--epochs", 1)) == 0
        assert "config.json" in names(pathlib.Path(target)) and (tmp_path / "m").is_symlink()
        assert from_preset(tmp_path / "m").num_classes == 3


def test_a_disk_that_is_too_small(pictures, tmp_path, capsys):
    with mounted(tmp_path / "disk", 100_000) as disk:
        fails(capsys, tune(pictures, disk / "m"), "MB are needed", "Free at least")
        assert names(disk) == []


def test_a_disk_that_is_full_at_the_end(pictures, tmp_path, capsys, during, monkeypatch):
    def fill(self, epoch, logs=None):
        if epoch == 1:
            with (
                open(self.path.parents[2] / "other", "wb", 0) as file,
                contextlib.suppress(OSError),
            ):
                while True:
                    file.write(bytes(10_000))

    during(on_epoch_begin=fill)
    with mounted(tmp_path / "disk", 2_000_000) as disk:
        words = tune(pictures, disk / "m")
        with pytest.warns(UserWarning, match="The state after epoch 2 is not saved"):
            error = fails(capsys, words, "MB are needed", "Free at least", "kept after 1 of 2")
        assert "--resume" in error
        assert names(disk) == ["m", "other"] and names(disk / "m") == [NAME]
        monkeypatch.undo()
        (disk / "other").unlink()
        assert main([*words, "--resume"]) == 0
        assert len(log(disk / "m")) == 2 and from_preset(disk / "m").num_classes == 3


def test_two_trainings_into_one_folder(pictures, tmp_path, capsys):
    output = tmp_path / "m"
    with Unfinished(output).opened():
        fails(capsys, tune(pictures, output), "Another keras-vit finetune", str(output))
    assert main(tune(pictures, output, "--epochs", 1)) == 0


def test_a_model_that_appears_in_the_meantime_is_not_replaced(pictures, tmp_path, capsys, during):
    output = tmp_path / "m"
    during(**at(1, lambda _: (output / "config.json").write_text("theirs")))
    error = fails(capsys, tune(pictures, output), "Another process has written config.json")
    kept = pathlib.Path(re.search("It is now '(.*?)'", error)[1])
    assert (output / "config.json").read_text() == "theirs"
    assert from_preset(kept).num_classes == 3 and kept.parent == output
    assert not [name for name in names(output) if name.startswith(".")]


# --- The images ---


def test_classes_with_a_single_image_are_named(pictures, tmp_path, capsys):
    for name in ("one", "two", "three"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in sorted((pictures / name).iterdir())[: 1 + (name == "two")]:
            (tmp_path / "data" / name / path.name).write_bytes(path.read_bytes())
    words = tune(tmp_path / "data", tmp_path / "m")
    fails(capsys, words, "Only one image of 'one', 'three'", "--validation")


def test_names_are_compared_as_they_are_read(pictures, tmp_path, capsys):
    """macOS writes an accent as a character of its own; the order of the names changes, too."""
    known = {"\u00e9t\u00e9": "one", "f": "two", "ez": "three"}
    for folder, form in (("some", "NFC"), ("others", "NFD")):
        for name, source in known.items():
            target = tmp_path / folder / unicodedata.normalize(form, name)
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(pictures / source)
    some, others = (sorted(os.listdir(tmp_path / folder)) for folder in ("some", "others"))
    assert [unicodedata.normalize("NFC", name) for name in others] != some
    order = finetuning.same_classes("some", "others", some, others)
    assert [unicodedata.normalize("NFC", name) for name in others] == [some[i] for i in order]
    words = tune(tmp_path / "some", tmp_path / "m", "--validation", tmp_path / "others")
    assert main([*words, "--epochs", "1"]) == 0
    assert from_preset(tmp_path / "m").labels == some

"""keras_vit.train: figures of a classifier, probes, freezing, folders that are split already."""

import json

import numpy as np
import pytest
from test_train import coloured
from tiny_models import classifier

from keras_vit import train
from keras_vit.train import probing

RANDOM = np.random.default_rng(0)


def predictions(count=200, classes=8):
    labels = RANDOM.integers(0, classes, count)
    logits = RANDOM.normal(0, 1, (count, classes)) + 2 * np.eye(classes)[labels]
    x = np.exp(logits)
    return x / x.sum(-1, keepdims=True), labels


def test_figures_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    p, labels = predictions()
    found = train.evaluate(p, labels, list("abcdefgh"))
    best = p.argmax(1)
    assert found.top1 == pytest.approx(metrics.accuracy_score(labels, best))
    assert found.top5 == pytest.approx(metrics.top_k_accuracy_score(labels, p, k=5))
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(labels, best))
    precision, recall, _, support = metrics.precision_recall_fscore_support(labels, best)
    for row, expected in zip(
        found.per_class(), zip("abcdefgh", support, recall, precision, strict=True), strict=True
    ):
        assert row[:2] == expected[:2] and row[2:] == pytest.approx(expected[2:])


def test_calibration_error_by_a_loop():
    p, labels = predictions()
    expected = 0
    for i in range(15):
        inside = [(q.max(), q.argmax() == y) for q, y in zip(p, labels, strict=True)]
        inside = [(c, r) for c, r in inside if i / 15 < c <= (i + 1) / 15]
        if inside:
            confidence, right = map(np.mean, zip(*inside, strict=True))
            expected += len(inside) / len(p) * abs(confidence - right)
    assert train.calibration_error(p, labels) == pytest.approx(expected)
    sure = np.eye(3)[[0, 1, 2, 2]]
    assert train.calibration_error(sure, np.array([0, 1, 2, 2])) == 0
    assert train.calibration_error(sure, np.array([1, 1, 2, 2])) == pytest.approx(0.25)


def test_classes_without_images_and_wrong_labels():
    found = train.evaluate(np.eye(3)[[0, 0, 2]], np.array([0, 0, 0]))
    rows = found.per_class()
    assert rows[0] == ("0", 3, pytest.approx(2 / 3), 1.0)
    assert rows[1][1] == 0 and np.isnan(rows[1][2])
    assert json.loads(found.to_json())["per_class"]["1"]["recall"] is None
    with pytest.raises(ValueError, match="from 0 to 2"):
        train.evaluate(np.eye(3), np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="Received: 2 and 3"):
        train.evaluate(np.eye(3), np.array([0, 1]))


def test_drawings(tmp_path):
    pytest.importorskip("matplotlib")
    train.evaluate(*predictions()).figure().savefig(tmp_path / "confusion.png")
    history = {"loss": [2, 1], "accuracy": [0.1, 0.5], "val_loss": [3, 2], "val_accuracy": [0, 1]}
    figure = train.learning_curves(history)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert all(len(axes.lines) == 2 for axes in figure.axes)
    one = train.Probe("tiny", 0.5, 0.4, 0.01, 48, 1000)
    assert len(train.probe_figure([one, one]).axes[0].lines) == 2


def test_a_linear_probe_is_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    labels = RANDOM.integers(0, 4, 300) * 3  # classes 0, 3, 6, 9
    x = RANDOM.normal(0, 1, (300, 20)) * 5 + RANDOM.normal(0, 3, (10, 20))[labels] + 7
    train_x, test_x = x[:200], x[200:]
    mean, deviation = train_x.mean(0), train_x.std(0)
    reference = linear_model.LogisticRegression(C=1 / (200 * 1e-3), max_iter=2000)
    reference.fit((train_x - mean) / deviation, labels[:200])
    expected = reference.predict((test_x - mean) / deviation)
    found = probing.linear(train_x, labels[:200], test_x, steps=2000)
    assert (found == expected).mean() > 0.97


def test_neighbours_by_a_loop():
    labels = RANDOM.integers(0, 3, 60)
    x, queries = RANDOM.normal(0, 1, (60, 5)), RANDOM.normal(0, 1, (9, 5))
    found = probing.neighbours(x, labels, queries, k=7)
    for query, label in zip(queries, found, strict=True):
        s = [query @ a / np.linalg.norm(query) / np.linalg.norm(a) for a in x]
        votes = np.zeros(3)
        for i in sorted(range(60), key=lambda i: -s[i])[:7]:
            votes[labels[i]] += np.exp(s[i] / 0.07)
        assert votes.argmax() == label


def test_probe_of_a_model():
    model = classifier(num_classes=0, depth=1)
    found = train.probe(model, coloured(60), coloured(30, seed=1))
    assert found.linear > 0.8 and found.width == 48 and found.seconds > 0


def trainable(model):
    return {v.path.rpartition("/")[0] for v in model.trainable_variables}


@pytest.mark.parametrize("options", [{"up_to": 1}, {"backbone": True}, "norms"], ids=str)
def test_freeze(options, tmp_path):
    model = classifier(num_classes=3)
    everything = trainable(model)
    if options == "norms":
        train.freeze(model, backbone=True, except_norms=True)
        norms = {f"blocks_{i}/norm{j}" for i in (0, 1) for j in (1, 2)} | {"norm"}
        assert trainable(model) == norms | {"head"}
    else:
        train.freeze(model, **options)
        frozen = [name for name in everything if name.startswith(("patch_embed", "blocks_0"))]
        expected = {"head"} if "backbone" in options else everything - set(frozen)
        assert trainable(model) == expected
    model.save_to_preset(tmp_path / "m")
    assert trainable(type(model).from_preset(tmp_path / "m")) == trainable(model)


def test_freeze_says_what_is_wrong():
    with pytest.raises(ValueError, match="Choose one"):
        train.freeze(classifier())
    with pytest.raises(ValueError, match="has 2 blocks. Received: up_to=3"):
        train.freeze(classifier(), up_to=3)


def test_a_folder_that_is_split(tmp_path):
    assert train.read_parts(tmp_path / "nowhere") == train.read_parts(tmp_path) == {}
    for part in ("Train", "valid", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
    found = train.read_parts(tmp_path)
    assert {side: path.name for side, path in found.items()} == {
        "train": "Train",
        "validation": "valid",
        "test": "test",
    }
    (tmp_path / "Train" / "1.jpg").write_bytes(b"")  # then it is a class
    assert train.read_parts(tmp_path) == {}

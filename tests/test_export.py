"""keras_vit.export: files that compute what the model does, and no file where they do not."""

import io
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import rich.console
import tiny_models
from PIL import Image
from tiny_models import classifier, full_disk, softmax

from keras_vit import atomic
from keras_vit.export import (
    FileClassifier,
    benchmark,
    common,
    compare,
    runtime,
    to_onnx,
    to_saved_model,
    to_tflite,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="files are made on the TensorFlow backend"
)


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def pictures():
    return tiny_models.pictures()


def test_comparison_of_a_tflite_file(model, pictures, tmp_path):
    path = to_tflite(model, tmp_path / "m.tflite", batch_size=2)
    best = model.predict(pictures, verbose=0).argmax(-1)
    result = compare(path, model, pictures, labels=[best[0], best[1], (best[2] + 1) % 7], threads=1)
    assert (result.agreement, result.images, result.output) == (1.0, 3, "probabilities")
    assert result.accuracy == result.model_accuracy == pytest.approx(2 / 3)
    assert result.mean_difference <= result.largest_difference < 2e-5
    assert (result.batch_size, result.threads, result.partitions) == (2, 1, 1)
    assert result.size == path.stat().st_size and result.latency > 0
    assert sum(result.operations.values()) == len(runtime.operations(runtime.interpreter(path, 1)))
    assert json.loads(result.to_json())["agreement"] == 1.0
    text = str(result)
    assert "100.0% of 3 images" in text and "1 thread, median" in text
    assert max(map(len, text.splitlines())) <= 80
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(result)
    assert console.file.getvalue().rstrip() == text


def test_labels_and_numbers_that_cannot_be(model, pictures, tmp_path):
    to_tflite(model, tmp_path / "m.tflite")
    for labels, said in (
        ([1, 2], r"labels of shape \(2,\)"),
        (np.eye(7)[[1, 2, 3]], r"labels of shape \(3, 7\)"),
        (["a", "b", "c"], "Labels must be whole numbers from 0 to 6"),
        ([1, 2, 99], "Labels must be whole numbers from 0 to 6"),
    ):
        with pytest.raises(ValueError, match=said):
            compare(tmp_path / "m.tflite", model, pictures, labels=labels)
    for options in ({"runs": 0}, {"threads": 0}, {"threads": -1}):
        with pytest.raises(ValueError, match="must be a whole number from 1"):
            compare(tmp_path / "m.tflite", model, pictures, **options)
    column = compare(tmp_path / "m.tflite", model, pictures, labels=[[1], [2], [3]])
    flat = compare(tmp_path / "m.tflite", model, pictures, labels=[1, 2, 3])
    assert column.accuracy == flat.accuracy


def test_a_file_classifies_one_image_or_several(model, pictures, tmp_path):
    file = FileClassifier(to_tflite(model, tmp_path / "m.tflite"))
    Image.fromarray(pictures[1]).save(tmp_path / "one.png")
    expected = file.predict(pictures)
    for one in (pictures[1], Image.fromarray(pictures[1]), tmp_path / "one.png"):
        np.testing.assert_allclose(file.predict(one), expected[1:2], atol=1e-6)
        assert file.classify(one, 2) == file.classify(pictures, 2)[1]
    with pytest.raises(ValueError, match="There is no image"):
        file.predict([])


def test_comparison_sees_another_model(model, pictures, tmp_path):
    other = classifier(num_classes=7)
    other.set_weights([w[..., ::-1].copy() for w in model.get_weights()])
    result = compare(to_tflite(model, tmp_path / "m.tflite"), other, pictures, threads=1)
    assert result.largest_difference > 0.05 and result.accuracy is None
    with pytest.raises(ValueError, match="made from another model: it returns 7 numbers .* 5"):
        compare(tmp_path / "m.tflite", classifier(num_classes=5), pictures)
    with pytest.raises(ValueError, match=r"another model: it takes images of shape \(32, 32, 3\)"):
        compare(tmp_path / "m.tflite", classifier(image_size=64), pictures)
    with pytest.raises(ValueError, match="the model has no preprocessor"):
        compare(tmp_path / "m.tflite", classifier(preprocessed=False), np.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize("preprocessing, batch_size", [(True, 2), (False, None)])
def test_comparison_of_a_saved_model(model, pictures, preprocessing, batch_size, tmp_path):
    path = to_saved_model(model, tmp_path / "m", preprocessing, batch_size)
    result = compare(path, model, pictures, runs=2)
    assert result.agreement == 1.0 and result.largest_difference < 2e-3
    assert result.batch_size == (batch_size or 1) and result.partitions is None
    assert result.size == sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def test_comparison_of_features_and_one_picture(pictures, tmp_path):
    model = classifier(num_classes=0, preprocessed=False)
    path = to_tflite(model, tmp_path / "m.tflite", preprocessing=False)
    inputs = np.random.default_rng(2).normal(0, 1, (1, 32, 32, 3)).astype("float32")
    result = compare(path, model, inputs, runs=2)
    assert result.agreement is None and result.output == "features"
    assert result.largest_difference < 1e-3 and "same prediction" not in str(result)


def test_comparison_refuses(model, pictures, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        compare(tmp_path / "m.tflite", model, pictures)
    (tmp_path / "m.tflite").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="is not a valid TFLite file"):
        compare(tmp_path / "m.tflite", model, pictures)
    with pytest.raises(ValueError, match="is not a SavedModel with the signature"):
        compare(tmp_path, model, pictures)
    with pytest.raises(ValueError, match="There is no image"):
        compare(tmp_path / "m.tflite", model, [])


def test_comparison_refuses_files_of_others(model, pictures, tmp_path):
    import tensorflow as tf

    function = tf.function(lambda x: x + 1.0, input_signature=[tf.TensorSpec((1, 4), name="x")])
    convert = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    (tmp_path / "m.tflite").write_bytes(convert.convert())
    with pytest.raises(ValueError, match="was not written by keras_vit.export"):
        compare(tmp_path / "m.tflite", model, pictures)


# --- Bad input ---


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"quantize": "int4"},
            "quantize must be one of None, 'float16', 'int8_dynamic', 'int8'. Received: 'int4'",
        ),
        ({"input": "uint16"}, "input must be"),
        ({"batch_size": None}, "batch_size must be a positive whole number"),
        ({"batch_size": 0}, "batch_size must be a positive whole number"),
    ],
)
def test_unknown_options(model, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_tflite(model, tmp_path / "m.tflite", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export", [to_tflite, to_saved_model])
def test_models_that_cannot_be_exported(export, model, tmp_path):
    with pytest.raises(
        ValueError, match="Export needs a built Keras model .* Received: <Sequential"
    ):
        export(keras.Sequential([keras.layers.Dense(1)]), tmp_path / "m")
    with pytest.raises(ValueError, match="has no preprocessor"):
        export(classifier(preprocessed=False), tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        export(model, tmp_path / "missing" / "m")
    with pytest.raises((ValueError, IsADirectoryError), match="is a folder|is not a SavedModel"):
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "file").touch()
        export(model, tmp_path / "taken")


def named_pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("special", [named_pipe, device])
@pytest.mark.parametrize("export", [to_tflite, to_saved_model, to_onnx])
def test_what_is_no_file_is_not_replaced(export, special, model, tmp_path):
    special(tmp_path / "m")
    before = (tmp_path / "m").lstat()
    with pytest.raises(ValueError, match="not a regular file|is a file"):
        export(model, tmp_path / "m")
    with pytest.raises(ValueError, match="neither a file nor a directory"):
        benchmark(tmp_path / "m")
    assert (tmp_path / "m").lstat().st_mode == before.st_mode
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_known_by_its_content(model, tmp_path):
    path = to_tflite(model, tmp_path / "phone", preprocessing=False)
    assert benchmark(path, runs=1).kind == "TFLite"
    pytest.importorskip("tf2onnx")
    path = to_onnx(model, tmp_path / "server", preprocessing=False)
    assert benchmark(path, runs=1).kind == "ONNX"


@pytest.mark.parametrize("export", [to_tflite, to_saved_model])
def test_a_broken_model_leaves_the_old_file(export, tmp_path):
    model = classifier(depth=1)
    path = export(model, tmp_path / "m", preprocessing=False)
    before = {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}
    norm = model.get_layer("norm").gamma
    norm.assign(np.full(norm.shape, np.nan))
    with pytest.raises(ValueError, match="The model returns NaN"):
        export(model, path, preprocessing=False)
    assert {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()} == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("export", [to_tflite, to_saved_model])
def test_a_full_disk_leaves_the_old_file(export, model, tmp_path):
    path = export(model, tmp_path / "m", preprocessing=False)
    before = {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}
    with pytest.raises(OSError, match="could not be written"), full_disk(50_000):
        export(model, path, preprocessing=False)
    with pytest.raises(OSError, match="File too large"), full_disk(50_000):
        with atomic.replacing(path) as new:
            new.write_bytes(bytes(60_000))
    assert {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()} == before
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_differ_are_seen():
    x = np.random.default_rng(0).normal(0, 1, (2, 9))
    p = softmax(x)
    common.check_outputs(x, x + 1.0, "logits", "softmax", 1e-6, "It")  # an offset of logits is free
    common.check_outputs(p, softmax(x * 1.0001), "probabilities", "softmax", 1e-3, "It")
    for found, name in ((x * 1.1, "logits"), (x + 1.0, "features"), (p[:, :5], "probabilities")):
        with pytest.raises(RuntimeError, match="It does not compute what the model does"):
            expected = p if name == "probabilities" else x
            common.check_outputs(expected, found, name, "softmax", 0.01, "It")
    with pytest.raises(RuntimeError, match="relative error of inf"):
        common.check_outputs(p, p * np.nan, "probabilities", "softmax", 0.01, "It")


def test_other_backends_are_told_how(tmp_path):
    code = (
        "from keras_vit import ViT, ViTBackbone, export\n"
        "m = ViT(ViTBackbone(image_size=32, embed_dim=12, depth=1, num_heads=2), 3)\n"
        "for f in (export.to_tflite, export.to_saved_model):\n"
        "    try: f(m, 'm')\n"
        "    except RuntimeError as error: print(error)\n"
    )
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("in a process with KERAS_BACKEND=tensorflow") == 2, done.stderr[-2000:]

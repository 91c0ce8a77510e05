"""keras_vit.export.benchmark: what a file costs, whoever wrote it."""

import json
import sys

import flatbuffers
import keras
import numpy as np
import pytest
from tiny_models import classifier

from keras_vit.export import benchmark, to_saved_model, to_tflite

tf = pytest.importorskip("tensorflow")
schema = pytest.importorskip("tensorflow.lite.python.schema_py_generated")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="files are made on the TensorFlow backend"
)


def spec(shape, dtype="float32", name="x"):
    return tf.TensorSpec(shape, dtype, name=name)


def foreign_tflite(path, function, *specs):
    """A file without metadata or known names."""
    module = tf.Module()
    module.call = tf.function(function, input_signature=specs)
    traces = [module.call.get_concrete_function()]
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions(traces, module).convert())
    return path


def foreign_saved_model(path, function, *specs):
    module = tf.Module()
    module.serve = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(path), {"serving_default": module.serve})
    return path


def test_a_file_of_ours(tmp_path):
    model = classifier(num_classes=2, labels=["cat", "dog"])
    path = to_tflite(model, tmp_path / "m.tflite", quantize="int8_dynamic", batch_size=2)
    found = benchmark(path, threads=1, runs=4)
    assert (found.kind, found.runs, found.threads) == ("TFLite", 4, 1)
    assert found.size == path.stat().st_size
    assert found.inputs == {"images": ("uint8", (2, 32, 32, 3))}
    assert found.outputs == {"probabilities": ("float32", (2, 2))}
    assert 0 < found.quartiles[0] <= found.latency <= found.quartiles[1] < 10
    assert found.operations["CONV_2D"] == 1 and found.partitions == 1
    assert list(found.operations.values()) == sorted(found.operations.values(), reverse=True)
    assert found.labels == ["cat", "dog"] and found.preset["quantize"] == "int8_dynamic"
    known = json.loads(found.to_json())
    assert known["inputs"]["images"] == ["uint8", [2, 32, 32, 3]]
    assert known["operations"] == found.operations
    text = str(found)
    for part in ("ViT", "images: uint8 (2, 32, 32, 3)", "1 thread", "2: cat, dog", "CONV_2D"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_saved_model_of_ours(tmp_path):
    names = [f"class {i}" for i in range(7)]
    path = to_saved_model(classifier(labels=names, image_size=(32, 48)), tmp_path / "m")
    found = benchmark(path, runs=1)
    assert found.kind == "SavedModel" and found.operations is None and found.partitions is None
    assert found.inputs == {"images": ("uint8", (1, 32, 48, 3))}
    assert found.labels == names and found.preset["std"] == [0.2, 0.3, 0.4]
    assert found.quartiles == (found.latency, found.latency)
    assert "7: class 0, class 1, class 2, class 3, class 4 ..." in str(found)


@pytest.mark.parametrize("write", [foreign_tflite, foreign_saved_model])
def test_files_of_others(write, tmp_path):
    specs = spec((None, 4)), spec((3,), "int32", "y"), spec((), "bool", "z")
    path = write(
        tmp_path / "m.tflite",
        lambda x, y, z: {"sum": x + 1.0, "other": tf.where(z, y, -y)},
        *specs,
    )
    found = benchmark(path, threads=1, runs=2)
    assert found.inputs == {"x": ("float32", (1, 4)), "y": ("int32", (3,)), "z": ("bool", ())}
    assert found.outputs == {"sum": ("float32", (1, 4)), "other": ("int32", (3,))}
    assert found.labels is None and found.preset is None
    assert "made from" not in str(found)


def test_tflite_without_a_signature(tmp_path):
    path = tmp_path / "m.tflite"
    foreign_tflite(path, lambda x: {"y": tf.nn.relu(x)}, spec((1, 8, 3)))
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    model.signatureDefs = None
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    found = benchmark(path, runs=2)
    assert list(found.inputs.values()) == [("float32", (1, 8, 3))]
    assert list(found.outputs.values()) == [("float32", (1, 8, 3))]


def test_images_of_any_size(tmp_path):
    path = foreign_saved_model(
        tmp_path / "m", lambda x: {"y": tf.reduce_mean(x, (1, 2))}, spec((None, None, None, 3))
    )
    assert benchmark(path, runs=1).inputs == {"x": ("float32", (1, 224, 224, 3))}


def test_what_cannot_be_measured(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        benchmark(tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="is not a SavedModel with the signature"):
        benchmark(tmp_path)
    for content in (b"", b"not a model", b"\x1c\0\0\0TFL3" + bytes(100)):
        (tmp_path / "m.tflite").write_bytes(content)
        with pytest.raises(ValueError, match="is not a valid TFLite file"):
            benchmark(tmp_path / "m.tflite")
    path = foreign_saved_model(
        tmp_path / "text", lambda x: {"y": tf.strings.length(x)}, spec((None,), "string")
    )
    with pytest.raises(ValueError, match="input 'x' of .* takes string"):
        benchmark(path)
    for runs in (0, 1.5):
        with pytest.raises(ValueError, match="runs must be a whole number from 1"):
            benchmark(path, runs=runs)


def test_arrays_made_up_are_numbers(tmp_path):
    path = foreign_tflite(
        tmp_path / "m.tflite", lambda x: {"y": tf.reshape(x, (1, 5))}, spec((5,), "int8")
    )
    found = benchmark(path, runs=1)
    assert found.inputs == {"x": ("int8", (5,))}
    assert np.dtype(found.outputs["y"][0]) == np.int8


def test_the_start_with_a_weight_cache(tmp_path):
    pytest.importorskip("ai_edge_litert.compiled_model")
    path = to_tflite(classifier(), tmp_path / "m.tflite")
    found = benchmark(path, threads=1, runs=2, weight_cache=True)
    assert all(0 < seconds < 10 for seconds in found.starts)
    assert "with the weight cache" in str(found)
    assert benchmark(path, threads=1, runs=2).starts is None
    other = to_saved_model(classifier(), tmp_path / "saved")
    with pytest.raises(ValueError, match="weight_cache is for TFLite files"):
        benchmark(other, runs=2, weight_cache=True)


def test_a_weight_cache_needs_litert(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.compiled_model", None)
    path = to_tflite(classifier(), tmp_path / "m.tflite")
    with pytest.raises(ImportError, match=r"keras-vit-zoo\[int8\]"):
        benchmark(path, runs=2, weight_cache=True)

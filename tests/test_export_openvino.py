"""keras_vit.export.to_openvino: what OpenVINO computes is what the model does."""

import importlib.util
import json
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from tiny_models import FAMILIES, classifier, full_disk, outputs, pictures, pixels

import keras_vit
from keras_vit.export import FileClassifier, benchmark, compare, onnx_converters, to_openvino
from keras_vit.export import openvino as exporter
from keras_vit.export import quantize as quantization
from keras_vit_command import run as main

if importlib.util.find_spec("openvino") is None:  # an import by pytest would report itself
    pytest.skip("needs openvino", allow_module_level=True)
openvino = exporter.openvino_packages.openvino()
pytest.importorskip("onnx")
BACKEND = keras.backend.backend()
pytest.importorskip(onnx_converters.PACKAGES.get(BACKEND, "a backend that writes ONNX"))

VARIANTS = {
    **{name: FAMILIES[name] for name in ("ViT", "DeiT", "HybridViT", "MLPMixer", "Swin")},
    **{name: {**FAMILIES[name], "image_size": 64} for name in ("ConvNeXt", "PVT")},
    "features": {"num_classes": 0},
    "one class": {"num_classes": 1},
    "rectangle": {"image_size": (32, 64)},
}


@pytest.fixture(scope="module")
def model():
    return classifier(labels=[f"<{i}> & é" for i in range(7)])


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return to_openvino(model, tmp_path_factory.mktemp("file") / "m.xml")


def run(path, images):
    loaded = exporter.compiled(exporter.read(path), 1)
    (name,) = loaded.inputs[0].names
    return loaded({name: images})[0]


def error(expected, found):
    """The largest difference, relative to the largest value."""
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_it_computes_what_the_model_does(options, tmp_path):
    if BACKEND == "jax" and options is FAMILIES["HybridViT"]:
        pytest.skip("jax2onnx writes a MaxPool that no other program reads")
    model = classifier(**options)
    path = to_openvino(model, tmp_path / "m.xml")
    images = pixels(model)
    for count in (1, 3):
        assert error(outputs(model, images[:count]), run(path, images[:count])) < 1e-5
    assert sorted(x.name for x in tmp_path.iterdir()) == ["m.bin", "m.xml"]


def test_what_the_file_says(model, file):
    graph = exporter.read(file)
    names = ("preset", "labels")
    about = {name: json.loads(graph.get_rt_info(["keras_vit", name]).value) for name in names}
    assert about["labels"] == model.class_names
    assert about["preset"]["class"] == "ViT" and about["preset"]["crop_pct"] == 0.8
    assert about["preset"]["preprocessing"] is True and about["preset"]["quantize"] is None
    (images,), (output,) = graph.inputs, graph.outputs
    assert (images.names, output.names) == ({"images"}, {"probabilities"})
    assert str(images.partial_shape) == "[?,32,32,3]" and str(output.partial_shape) == "[?,7]"
    assert images.element_type.to_dtype() == np.uint8


def test_bare_model_batch_size_and_float_pixels(model, tmp_path):
    x = np.random.default_rng(2).normal(0, 1, (2, 32, 32, 3)).astype("float32")
    path = to_openvino(model, tmp_path / "bare.xml", preprocessing=False, batch_size=2)
    expected = keras.ops.convert_to_numpy(model(x, training=False))
    assert error(expected, run(path, x)) < 1e-5
    (images,), (output,) = exporter.read(path).inputs, exporter.read(path).outputs
    assert (images.names, output.names) == ({"inputs"}, {"logits"})
    assert list(images.shape) == [2, 32, 32, 3]
    path = to_openvino(model, tmp_path / "float.xml", input="float32", image_size=(48, 32))
    (images,) = exporter.read(path).inputs
    assert str(images.partial_shape) == "[?,48,32,3]"
    assert images.element_type.to_dtype() == np.float32


# --- Quantization ---


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_a_model_that_keras_has_quantized(tmp_path):
    model = keras_vit.from_preset("vit_digits_patch4_32.sklearn")
    model.quantize("int8")
    path = to_openvino(model, tmp_path / "m.xml")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), "uint8")
    assert compare(path, model, images, runs=1).mean_difference < 1e-3


@pytest.mark.parametrize(
    "family, quantize",
    [("ViT", "float16"), ("ViT", "int8_dynamic"), ("ViT", "int8"), ("Swin", "int8_dynamic")],
)
def test_quantized(family, quantize, tmp_path):
    if quantize == "int8":
        pytest.importorskip("nncf")
    model = classifier(**FAMILIES[family])
    images = pixels(model, 16)
    given = {"calibration": images} if quantize == "int8" else {}
    path = to_openvino(model, tmp_path / "m.xml", quantize, **given)
    found = compare(path, model, list(images[:5]), runs=1)  # in batches of another size
    assert 0 < found.mean_difference < (0.02 if quantize == "int8" else 0.005), found
    graph = exporter.read(path)
    weights = path.with_suffix(".bin").stat().st_size / model.count_params()
    assert weights < (2.5 if quantize == "float16" else 2)
    assert json.loads(graph.get_rt_info(["keras_vit", "preset"]).value)["quantize"] == quantize
    names = [node.get_type_name() for node in graph.get_ops()]
    assert ("FakeQuantize" in names) == (quantize == "int8")


def test_a_refusal_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("nncf")
    model = classifier(depth=1)
    monkeypatch.setitem(quantization.TOLERANCES, "int8", 1e-6)
    with pytest.raises(RuntimeError, match='use quantize="int8_dynamic"'):
        to_openvino(model, tmp_path / "m.xml", "int8", calibration=pixels(model, 4))
    assert not list(tmp_path.iterdir())


def test_dead_channels_have_a_scale(tmp_path):
    model = classifier(depth=1)
    kernel = model.get_layer("head").kernel
    kernel.assign(kernel * np.arange(7).astype("float32").clip(0, 1))
    path = to_openvino(model, tmp_path / "m.xml", "int8_dynamic")
    assert np.isfinite(run(path, pixels(model))).all()


# --- compare, benchmark, classify and the command ---


def test_comparison_and_benchmark(model, file):
    result = compare(file, model, list(pixels(model)), labels=[1, 2, 3], threads=1, runs=2)
    assert result.agreement == 1.0 and result.accuracy == result.model_accuracy
    assert result.largest_difference < 1e-6 and result.precision == "float32"
    found = benchmark(file, threads=1, runs=3)
    assert (found.kind, found.runs, found.threads) == ("OpenVINO", 3, 1)
    assert found.inputs == {"images": ("uint8", (1, 32, 32, 3))}
    assert found.outputs == {"probabilities": ("float32", (1, 7))}
    assert found.size == sum(x.stat().st_size for x in file.parent.iterdir())
    assert found.operations["MatMul"] > 10 and "Constant" not in found.operations
    assert found.labels == model.class_names and found.preset["class"] == "ViT"
    assert "precision" in str(found)


def test_bfloat16_is_a_choice_when_the_file_is_loaded(model, file):
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ValueError, match="This processor has no bfloat16"):
            benchmark(file, precision="bfloat16")
        return
    result = compare(file, model, list(pixels(model)), precision="bfloat16", runs=1)
    assert result.precision == "bfloat16" and 1e-6 < result.largest_difference < 0.02


def test_classification_of_images_of_any_size(model, file):
    found = FileClassifier(file, threads=1).classify(pictures(), top=2)
    for image, best in zip(pictures(), found, strict=True):
        (expected,) = model.classify([image], top=2)
        assert [name for name, _ in best] == [name for name, _ in expected]
        np.testing.assert_allclose([p for _, p in best], [p for _, p in expected], rtol=1e-4)


def test_the_command(file, tmp_path, capsys):
    for i, image in enumerate(pictures()):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    assert main(["predict", str(file), str(tmp_path), "--top", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 3 and [len(one["classes"]) for one in found] == [2, 2, 2]
    assert found[0]["classes"][0]["class"].startswith("<")
    assert main(["benchmark", str(file), "--runs", "1", "--precision", "float32"]) == 0
    assert "OpenVINO" in capsys.readouterr().out


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the preset's check uses TensorFlow")
def test_export_by_the_command(tmp_path, capsys):
    path = tmp_path / "digits.xml"
    assert main(["export", "vit_digits_patch4_32.sklearn", str(path)]) == 0
    said = capsys.readouterr().out
    assert "The OpenVINO file was checked on 4 generated test images" in said
    size = sum(x.stat().st_size for x in tmp_path.iterdir()) / 1e6
    assert f"{size:.1f} MB" in said
    words = ["export", "no such model", str(path), "--gpu"]
    assert main(words) == 2
    assert "--gpu is for a TFLite file" in capsys.readouterr().err


# --- What goes wrong ---


@pytest.mark.parametrize(
    "options, message",
    [
        ({"input": "uint16"}, 'input must be "uint8" or "float32"'),
        ({"batch_size": 0}, "batch_size must be a positive whole number, or None"),
        ({"quantize": "int4"}, "quantize must be one of"),
        ({"quantize": "int8"}, "needs calibration images"),
        ({"calibration": np.zeros((2, 32, 32, 3))}, 'calibration is for quantize="int8" only'),
        ({"image_size": 30}, "30"),
    ],
)
def test_unknown_options(model, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_openvino(model, tmp_path / "m.xml", **options)
    assert not list(tmp_path.iterdir())


def test_paths_that_cannot_be(model, tmp_path):
    for name in ("m.onnx", "m"):
        with pytest.raises(ValueError, match="must end in .xml"):
            to_openvino(model, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        to_openvino(model, tmp_path / "missing" / "m.xml")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        (tmp_path / "folder.bin").mkdir()
        to_openvino(model, tmp_path / "folder.xml")
    with pytest.raises(FileExistsError, match="m.bin' would be overwritten"):
        (tmp_path / "m.bin").write_text("of another program")
        to_openvino(model, tmp_path / "m.xml")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["folder.bin", "m.bin"]


def test_an_old_pair_stays(tmp_path, monkeypatch):
    model = classifier(depth=1)
    path = to_openvino(model, tmp_path / "m.xml")
    before = {x.name: x.read_bytes() for x in tmp_path.iterdir()}

    def unchanged():
        return {x.name: x.read_bytes() for x in tmp_path.iterdir()} == before

    with pytest.raises(OSError, match="could not be written"), full_disk(50_000):
        to_openvino(model, path)
    assert unchanged()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(exporter, "_loaded", interrupted)
        to_openvino(model, path)
    assert unchanged()
    norm = model.get_layer("norm").gamma
    norm.assign(np.full(norm.shape, np.nan, "float32"))
    with pytest.raises(ValueError, match="The model returns NaN"):
        to_openvino(model, path)
    assert unchanged()
    norm.assign(np.ones(norm.shape, "float32"))
    to_openvino(model, path)
    assert not unchanged() and len(list(tmp_path.iterdir())) == 2


def interrupted(*_):
    raise KeyboardInterrupt


def test_files_that_are_no_openvino(tmp_path, model, file):
    (tmp_path / "m.xml").write_text("<html></html>")
    (tmp_path / "alone.xml").write_bytes(file.read_bytes())
    for name in ("m.xml", "alone.xml"):
        for function in (benchmark, lambda path: compare(path, model, pixels(model))):
            with pytest.raises(ValueError, match="is not a valid OpenVINO file"):
                function(tmp_path / name)
    with pytest.raises(ValueError, match='precision must be "float32" or "bfloat16"'):
        benchmark(file, precision="int8")
    (tmp_path / "m.tflite").write_bytes(b"")
    with pytest.raises(ValueError, match="is for OpenVINO files, which end in .xml"):
        benchmark(tmp_path / "m.tflite", precision="bfloat16")


def test_missing_packages_are_named(model, file, tmp_path, monkeypatch):
    needed = onnx_converters.PACKAGES[BACKEND]
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda x: None if x == needed else find(x))
        with pytest.raises(ImportError, match=f"pip install {needed}$"):
            to_openvino(model, tmp_path / "m.xml")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "nncf", None)
        with pytest.raises(ImportError, match="pip install nncf$"):
            to_openvino(model, tmp_path / "m.xml", "int8", calibration=pixels(model))
    monkeypatch.setitem(sys.modules, "openvino", None)
    for function in (benchmark, lambda path: to_openvino(model, path)):
        with pytest.raises(ImportError, match=r'pip install "keras-vit-zoo\[openvino\]"'):
            function(file)
    assert not list(tmp_path.iterdir())

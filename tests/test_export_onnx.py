"""keras_vit.export.to_onnx: what onnxruntime computes is what the model does."""

import importlib.util
import json
import sys

import keras
import numpy as np
import pytest
from tiny_models import FAMILIES, classifier, full_disk, outputs, pixels, softmax

from keras_vit import from_preset
from keras_vit.export import benchmark, compare, onnx_converters, to_onnx
from keras_vit.export import onnx as exporter

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
BACKEND = keras.backend.backend()
pytest.importorskip(onnx_converters.PACKAGES.get(BACKEND, "a backend that writes ONNX"))

PRESET = "vit_digits_patch4_32.sklearn"
VARIANTS = {
    **FAMILIES,
    # tf2onnx confuses the axes of maps of one pixel, which 32 pixels become; it is refused.
    **{
        name: {**FAMILIES[name], "image_size": 64}
        for name in ("ConvNeXt", "ConvNeXt V2", "PVT", "PVT, linear")
    },
    "features": {"num_classes": 0},
    "one class": {"num_classes": 1},
    "registers, layer scale": {"reg_tokens": 2, "init_values": 0.1},
    "quick gelu, pre-norm": {"activation": "quick_gelu", "pre_norm": True},
    "swiglu, rms": {"activation": "silu", "gate": "packed", "norm": "rms"},
    "rectangle": {"image_size": (32, 64)},
    "grey": {"in_channels": 1},
}


@pytest.fixture(scope="module")
def model():
    return classifier()


def run(path, images):
    session = exporter.session(path, 1)
    (inputs,), (output,) = session.get_inputs(), session.get_outputs()
    return session.run([output.name], {inputs.name: images})[0]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_it_computes_what_the_model_does(options, tmp_path):
    if BACKEND == "jax" and options is FAMILIES["HybridViT"]:
        pytest.skip("jax2onnx writes a MaxPool that onnxruntime does not run")
    model = classifier(**options)
    path = to_onnx(model, tmp_path / "m.onnx")
    images = pixels(model)
    for count in (1, 3):
        expected = outputs(model, images[:count])
        np.testing.assert_allclose(run(path, images[:count]), expected, atol=1e-5)


def test_the_digits(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = (digits.images[-100:] * 15.9375).astype("uint8")[..., None]
    model = from_preset(PRESET)
    path = to_onnx(model, tmp_path / "m.onnx")
    cut = model.preprocessor.image_converter.pixels(images).astype("uint8")
    expected = softmax(model.predict(images, verbose=0))
    np.testing.assert_allclose(run(path, cut), expected, atol=1e-5)


def test_photographs(deit_tiny, photographs, tmp_path):
    paths, labels = (x[:12] for x in photographs)
    model = from_preset(deit_tiny)
    path = to_onnx(model, tmp_path / "m.onnx")
    found = compare(path, model, paths, labels, runs=2)
    assert found.agreement == 1.0 and found.accuracy == found.model_accuracy > 0.7
    assert found.largest_difference < 1e-4 and found.largest_logit_difference < 1e-3
    assert found.size < 1.06 * 4 * model.count_params()


def test_what_the_file_says(tmp_path):
    names = ["rose", "tulip", "daisy"]
    model = classifier(num_classes=3, labels=names)
    loaded = onnx.load(to_onnx(model, tmp_path / "m.onnx"))
    onnx.checker.check_model(loaded, full_check=True)
    (images,), (output,) = loaded.graph.input, loaded.graph.output
    kinds = [x.type.tensor_type for x in (images, output)]
    sizes = [[d.dim_param or d.dim_value for d in kind.shape.dim] for kind in kinds]
    assert (images.name, output.name) == ("images", "probabilities")
    assert sizes == [["batch", 32, 32, 3], ["batch", 3]]
    assert [kind.elem_type for kind in kinds] == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]
    about = {entry.key: json.loads(entry.value) for entry in loaded.metadata_props}
    assert about["labels"] == names
    assert about["preset"]["class"] == "ViT" and about["preset"]["crop_pct"] == 0.8
    assert about["preset"]["preprocessing"] is True


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others' exporters choose the names")
def test_weights_keep_their_names_and_need_no_work(tmp_path):
    model = classifier(**FAMILIES["HybridViT"])  # standardises the kernels of its convolutions
    graph = onnx.load(to_onnx(model, tmp_path / "m.onnx")).graph
    known = {x.name: x for x in graph.initializer}
    for dense in (model.get_layer("blocks_0").mlp.fc1, model.get_layer("head")):
        assert list(known[dense.kernel.path].dims) == list(dense.kernel.shape)
    assert [n.name for n in graph.node if all(name in known for name in n.input)] == []
    assert known.keys() <= {name for node in graph.node for name in node.input}
    assert [x.name for x in graph.input] == ["images"]


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
@pytest.mark.parametrize("how", ["quantized", "LoRA"])
def test_weights_that_are_not_plain(how, tmp_path):
    model = classifier()
    if how == "LoRA":
        model.backbone.enable_lora(2)
        for block in model.backbone.blocks:
            factor = block.attn.qkv.lora_kernel_b
            factor.assign(np.random.default_rng(0).normal(0, 0.2, factor.shape))
    else:
        model.quantize("int8")
    found = run(to_onnx(model, tmp_path / "m.onnx"), pixels(model))
    np.testing.assert_allclose(found, outputs(model, pixels(model)), atol=1e-5)


def test_bare_model_batch_and_float_pixels(model, tmp_path):
    x = np.random.default_rng(2).normal(0, 1, (2, 32, 32, 3)).astype("float32")
    path = to_onnx(model, tmp_path / "bare.onnx", preprocessing=False, batch_size=2)
    expected = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(run(path, x), expected, atol=1e-4)
    session = exporter.session(path)
    assert session.get_inputs()[0].shape == [2, 32, 32, 3]
    names = session.get_inputs()[0].name, session.get_outputs()[0].name
    assert names == ("inputs", "logits")
    path = to_onnx(model, tmp_path / "float.onnx", input="float32")
    images = pixels(model)
    np.testing.assert_allclose(
        run(path, images.astype("float32")), outputs(model, images), atol=1e-5
    )


def test_another_size(model, tmp_path):
    path = to_onnx(model, tmp_path / "m.onnx", image_size=(48, 32))
    assert exporter.session(path).get_inputs()[0].shape == ["batch", 48, 32, 3]
    any_size = classifier(image_size=None, grid_size=(2, 2))
    with pytest.raises(ValueError, match="one image size: pass image_size="):
        to_onnx(any_size, tmp_path / "any.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_mixed_precision_is_exported_in_float32(model, tmp_path):
    half = classifier(dtype="mixed_bfloat16")
    images = pixels(model)
    found = run(to_onnx(half, tmp_path / "m.onnx"), images)
    np.testing.assert_allclose(found, outputs(model, images), atol=1e-5)


# --- compare and benchmark ---


@pytest.mark.parametrize("preprocessing, batch_size", [(True, 2), (False, None)])
def test_comparison(model, preprocessing, batch_size, tmp_path):
    path = to_onnx(model, tmp_path / "m.onnx", preprocessing, batch_size=batch_size)
    result = compare(path, model, list(pixels(model)), labels=[1, 2, 3], threads=1, runs=2)
    assert result.agreement == 1.0 and result.accuracy == result.model_accuracy
    assert result.largest_difference < 1e-4 and result.largest_logit_difference < 1e-4
    assert (result.batch_size, result.threads) == (batch_size or 1, 1)
    nodes = onnx.load(path).graph.node
    assert sum(result.operations.values()) == len(nodes) and result.partitions is None
    assert "MatMul" in str(result) and "XNNPACK" not in str(result)
    other = classifier(num_classes=5)
    with pytest.raises(ValueError, match="made from another model: it returns 7 numbers .* 5"):
        compare(path, other, list(pixels(model)))


def test_benchmark(model, tmp_path):
    found = benchmark(to_onnx(model, tmp_path / "m.onnx"), threads=1, runs=3)
    assert (found.kind, found.runs, found.threads) == ("ONNX", 3, 1)
    assert found.inputs == {"images": ("uint8", (1, 32, 32, 3))}
    assert found.outputs == {"probabilities": ("float32", (1, 7))}
    assert found.preset["class"] == "ViT" and found.labels is None
    assert found.quartiles[0] <= found.latency <= found.quartiles[1]


def test_files_that_are_no_onnx(tmp_path, model):
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    for function in (benchmark, lambda path: compare(path, model, pixels(model))):
        with pytest.raises(ValueError, match="is not a valid ONNX file"):
            function(tmp_path / "m.onnx")


# --- Bad input ---


@pytest.mark.parametrize(
    "options, message",
    [
        ({"input": "uint16"}, 'input must be "uint8" or "float32"'),
        ({"batch_size": 0}, "batch_size must be a positive whole number, or None"),
        ({"image_size": 30}, "30"),
    ],
)
def test_unknown_options(model, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_onnx(model, tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_models_and_paths_that_cannot_be(model, tmp_path):
    with pytest.raises(
        ValueError, match="Export needs a built Keras model .* Received: <Sequential"
    ):
        to_onnx(keras.Sequential([keras.layers.Dense(1)]), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="has no preprocessor"):
        to_onnx(classifier(preprocessed=False), tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        to_onnx(model, tmp_path / "missing" / "m.onnx")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        to_onnx(model, tmp_path)
    assert not list(tmp_path.iterdir())


class Inverse(keras.layers.Layer):
    """An operation that ONNX does not have."""

    def call(self, x):
        return keras.ops.erfinv(x)


@pytest.mark.skipif(BACKEND == "jax", reason="jax2onnx can write it")
def test_operations_that_onnx_lacks(tmp_path):
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="(?s)an operation that ONNX lacks.*(Erfinv|erf_inv)"):
        model = keras.Model(inputs, Inverse()(inputs))
        to_onnx(model, tmp_path / "m.onnx", preprocessing=False)
    assert not list(tmp_path.iterdir())


def test_an_old_file_stays(tmp_path):
    model = classifier(depth=1)
    path = to_onnx(model, tmp_path / "m.onnx")
    before = path.read_bytes()
    with pytest.raises(OSError, match="could not be written|too large"), full_disk(50_000):
        to_onnx(model, path)
    norm = model.get_layer("norm").gamma
    norm.assign(np.full(norm.shape, np.nan, "float32"))
    with pytest.raises(ValueError, match="The model returns NaN"):
        to_onnx(model, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def without(monkeypatch, *names):
    """As if these packages were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in names else find(name)
    )
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails


def test_missing_packages_are_named(model, tmp_path, monkeypatch):
    needed = onnx_converters.PACKAGES[BACKEND]
    with monkeypatch.context() as patch:
        without(patch, "onnx", needed)
        with pytest.raises(ImportError, match=f"pip install onnx {needed}$"):
            to_onnx(model, tmp_path / "m.onnx")
    path = to_onnx(model, tmp_path / "m.onnx")
    with monkeypatch.context() as patch:
        without(patch, "onnxruntime")
        with pytest.raises(ImportError, match="pip install onnxruntime"):
            compare(path, model, pixels(model))
        path.unlink()
        to_onnx(model, path)  # verified by onnx itself
    np.testing.assert_allclose(run(path, pixels(model)), outputs(model, pixels(model)), atol=1e-5)

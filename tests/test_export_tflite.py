"""keras_vit.export.to_tflite: the same numbers from a small file."""

import collections
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tiny_models
from tiny_models import classifier, full_disk, softmax

import keras_vit
from keras_vit import GMLP, PVT, DeiT, HybridViT, MLPMixer, ResMLP, from_preset
from keras_vit.export import compare, metadata, runtime, to_saved_model, to_tflite

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="files are made on the TensorFlow backend"
)


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def pictures():
    return tiny_models.pictures()


def run(path, x):
    """The file's one output for its one input."""
    runner = runtime.interpreter(path, 1).get_signature_runner()
    ((name, details),) = runner.get_input_details().items()
    assert tuple(details["shape"]) == x.shape
    ((_, output),) = runner(**{name: x}).items()
    return output


VARIANTS = {
    "vit": {},
    "features": {"num_classes": 0},
    "one class": {"num_classes": 1},
    "avg": {"pooling": "avg"},
    "map": {"pooling": "map"},
    "deit, both heads": {"cls": DeiT, "distillation_token": True},
    "layer scale, registers": {"init_values": 0.1, "reg_tokens": 2, "no_embed_class": True},
    "quick gelu, pre-norm": {"activation": "quick_gelu", "pre_norm": True},
    "swiglu, rms": {"activation": "silu", "gate": "packed", "norm": "rms"},
    "rectangle": {"image_size": (32, 64)},
    "norms inside": {"inner_norm": True},
    "norm after pooling": {"final_norm": False, "pooling": "avg", "fc_norm": True},
    "no norm at the end": {"final_norm": False, "pooling": "avg"},
    "both poolings": {"pooling": "token_avg"},
    "several class tokens": {"pooling": "tokens", "reg_tokens": 2},
    "sequence pool": {"pooling": "seq"},
    "pre-logits": {"representation_size": 40},
    "no biases": {"qkv_bias": False, "proj_bias": False},
    "hybrid": {"cls": HybridViT, "stages": [1], "patch_size": 2},
    "mixer": {"cls": MLPMixer},
    "resmlp": {"cls": ResMLP},
    "gmlp": {"cls": GMLP},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_tflite_computes_what_the_model_does(options, tmp_path):
    model = classifier(**options)
    path = to_tflite(model, tmp_path / "m.tflite")
    height, width = model.image_size
    pixels = np.random.default_rng(2).integers(0, 256, (1, height, width, 3), "uint8")
    expected = np.asarray(model(model.preprocessor.image_converter.normalize(pixels)))
    if model.num_classes:
        expected = softmax(expected) if model.num_classes > 1 else 1 / (1 + np.exp(-expected))
    np.testing.assert_allclose(run(path, pixels), expected, atol=2e-5)


BLOCK = {  # one transformer block: one operation for each thing that it is for
    "FULLY_CONNECTED": 6,  # query, key, value apart: a split would copy
    "RESHAPE": 4,  # three into heads, one back
    "TRANSPOSE": 4,
    "BATCH_MATMUL": 2,
    "SOFTMAX": 1,
    "GELU": 1,  # the exact one
    "SQUARE": 2,  # of the norms there is left: over the root mean square
    "MEAN": 2,
    "RSQRT": 2,
    "MUL": 2,
    "ADD": 4,  # two epsilons, two residuals
}


@pytest.mark.parametrize("quantize", [None, "int8_dynamic"])
def test_graph_is_small_builtin_and_one_partition(quantize, tmp_path):
    counts = []
    for depth in (2, 3):
        path = to_tflite(classifier(depth=depth), tmp_path / "m.tflite", quantize=quantize)
        loaded = runtime.interpreter(path, 1)
        assert runtime.partitions(loaded) == 1
        counts.append(collections.Counter(runtime.operations(loaded)))
    assert counts[1] - counts[0] == BLOCK
    # beside its blocks: patches, class token and positions; the last block's class token; the head
    rest = counts[0] - collections.Counter(BLOCK) - collections.Counter(BLOCK)
    assert rest == {
        "CAST": 1,
        "CONV_2D": 1,
        "RESHAPE": 1,
        "CONCATENATION": 1,
        "STRIDED_SLICE": 2,
        "SQUARE": 1,
        "MEAN": 1,
        "RSQRT": 1,
        "MUL": 1,
        "ADD": 2,
        "FULLY_CONNECTED": 1,
        "SOFTMAX": 1,
    }


@pytest.mark.parametrize("quantize", [None, "int8_dynamic"])
def test_weights_lie_as_the_schema_asks(quantize, tmp_path):
    from tensorflow.lite.python import schema_py_generated as schema

    content = to_tflite(classifier(), tmp_path / "m.tflite", quantize=quantize).read_bytes()
    start = np.frombuffer(content, "uint8").ctypes.data
    file = schema.Model.GetRootAs(content, 0)
    buffers = [file.Buffers(i) for i in range(file.BuffersLength())]
    places = [b.DataAsNumpy().ctypes.data - start for b in buffers if b.DataLength()]
    assert len(places) > 20
    assert not any(place % 16 for place in places)


def test_bare_model_batch_and_float_pixels(model, tmp_path):
    x = np.random.default_rng(2).normal(0, 1, (3, 32, 32, 3)).astype("float32")
    path = to_tflite(model, tmp_path / "bare.tflite", preprocessing=False, batch_size=3)
    np.testing.assert_allclose(run(path, x), np.asarray(model(x)), atol=1e-4)
    pixels = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3)).astype("float32")
    path = to_tflite(model, tmp_path / "float.tflite", input="float32")
    expected = softmax(np.asarray(model(model.preprocessor.image_converter.normalize(pixels))))
    np.testing.assert_allclose(run(path, pixels), expected, atol=2e-5)


def test_mixed_precision_is_exported_in_float32(tmp_path):
    model = classifier(dtype="mixed_bfloat16")
    twin = classifier()
    pixels = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), "uint8")
    expected = softmax(np.asarray(twin(twin.preprocessor.image_converter.normalize(pixels))))
    path = to_tflite(model, tmp_path / "m.tflite")
    np.testing.assert_allclose(run(path, pixels), expected, atol=2e-5)
    assert model.backbone.compute_dtype == "bfloat16"
    result = compare(to_saved_model(model, tmp_path / "m"), model, pixels, runs=2)
    assert result.mean_difference < 0.02


def test_no_room_for_the_converter(tmp_path):
    model = classifier(embed_dim=96)  # 0.9 MB to convert, 0.3 MB of result
    with pytest.raises(OSError, match="The converter could not write"), full_disk(500_000):
        to_tflite(model, tmp_path / "m.tflite", "int8_dynamic")
    assert not list(tmp_path.iterdir())


class Inverse(keras.layers.Layer):
    """An operation that TFLite does not have."""

    def call(self, x):
        return keras.ops.erfinv(x)


def test_flex_operations_are_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="(?s)an operation that TFLite lacks.*Erfinv"):
        model = keras.Model(inputs, Inverse()(inputs))
        to_tflite(model, tmp_path / "m.tflite", preprocessing=False)
    assert not list(tmp_path.iterdir())
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    with pytest.raises(ValueError, match="the model needs a fixed image size"):
        to_tflite(model, tmp_path / "m.tflite", preprocessing=False)


def test_a_part_of_a_model_is_exported(model, tmp_path):
    part = keras.Model(model.input, model.get_layer("blocks_0").output)
    x = np.random.default_rng(2).normal(0, 1, (1, 32, 32, 3)).astype("float32")
    path = to_tflite(part, tmp_path / "m.tflite", preprocessing=False)
    np.testing.assert_allclose(run(path, x), np.asarray(part(x)), atol=1e-4)


# --- float16 and int8 ---


@pytest.fixture(scope="module")
def digits():
    """A trained model, pictures that it has not learned from, and what they show."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    images = (data.images * 15.9375).astype("uint8")[..., None]
    return from_preset("vit_digits_patch4_32.sklearn"), list(images[1000:]), data.target[1000:]


MODES = {"float16": (0.56, 0.999), "int8_dynamic": (0.36, 0.99), "int8": (0.36, 0.98)}


@pytest.mark.parametrize("quantize", MODES)
def test_smaller_numbers(quantize, digits, tmp_path):
    model, images, labels = digits
    size, agreement = MODES[quantize]  # part of float32's, part of the images
    calibration = None
    if quantize == "int8":
        pytest.importorskip("ai_edge_quantizer")
        calibration = images[:100]
    path = to_tflite(model, tmp_path / "m.tflite", quantize, calibration=calibration)
    result = compare(path, model, images[100:], labels[100:])
    assert result.size < size * 4 * model.count_params()
    assert result.agreement >= agreement and result.accuracy > 0.96
    assert metadata.read_metadata(path)["preset"]["quantize"] == quantize
    if quantize == "int8":  # products with weights, and nothing else, compute in it
        names = result.operations
        assert 0 < names["QUANTIZE"] <= names["FULLY_CONNECTED"] + names["CONV_2D"]
        assert result.partitions == 1


def test_int8_of_a_bare_model_in_batches(model, tmp_path):
    pytest.importorskip("ai_edge_quantizer")
    x = np.random.default_rng(5).normal(0, 1, (7, 32, 32, 3)).astype("float32")
    bare = keras.Model(model.inputs[0], model.outputs[0])  # no preprocessor: these are its inputs
    path = to_tflite(
        bare, tmp_path / "m.tflite", "int8", preprocessing=False, batch_size=3, calibration=x
    )
    found, expected = run(path, x[:3]), np.asarray(model(x[:3]))
    assert np.abs(found - expected).mean() < 0.2 * expected.std()


@pytest.mark.parametrize("calibration", [None, [], np.zeros((0, 32, 32, 3))])
def test_int8_needs_images(model, calibration, tmp_path):
    with pytest.raises(ValueError, match="needs calibration images"):
        to_tflite(model, tmp_path / "m.tflite", quantize="int8", calibration=calibration)
    assert not list(tmp_path.iterdir())


def test_int8_without_its_package(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(ImportError, match="keras-vit-zoo.int8"):
        to_tflite(model, tmp_path / "m.tflite", quantize="int8", calibration=pictures)
    assert not list(tmp_path.iterdir())


def test_calibration_of_another_shape(model, tmp_path):
    pytest.importorskip("ai_edge_quantizer")
    bare = keras.Model(model.inputs[0], model.outputs[0])
    with pytest.raises(ValueError, match=r"images of shape \(32, 32, 3\). Received.*16, 16, 3"):
        to_tflite(
            bare,
            tmp_path / "m.tflite",
            "int8",
            preprocessing=False,
            calibration=np.zeros((2, 16, 16, 3)),
        )
    assert not list(tmp_path.iterdir())


def test_depthwise_convolutions_do_not_split_a_partition(tmp_path, monkeypatch):
    model = classifier(cls=PVT, pooling="avg", mlp_ratios=(2, 2, 2, 4))  # enough weights for int8
    path = to_tflite(model, tmp_path / "m.tflite", "int8_dynamic")
    assert runtime.partitions(runtime.interpreter(path, 1)) == 1
    monkeypatch.setattr("keras_vit.export.quantize.depthwise_in_float", lambda x: x)
    path = to_tflite(model, tmp_path / "m.tflite", "int8_dynamic")
    assert runtime.partitions(runtime.interpreter(path, 1)) > 1


# Photographs of 125 that may fall to the other side, part of float32's size.
REAL = {"float16": (1, 0.51), "int8_dynamic": (2, 0.27), "int8": (4, 0.27)}


def test_photographs(deit_tiny, photographs, tmp_path):
    paths, labels = photographs
    model = from_preset(deit_tiny)
    float32 = to_tflite(model, tmp_path / "float32.tflite").stat().st_size
    for quantize, (wrong, size) in REAL.items():
        calibration = None
        if quantize == "int8":
            pytest.importorskip("ai_edge_quantizer")
            calibration = paths[::4]
        path = to_tflite(model, tmp_path / "m.tflite", quantize, calibration=calibration)
        result = compare(path, model, paths, labels=labels, threads=2)
        assert round(result.model_accuracy * 125) == 105
        assert abs(round(result.accuracy * 125) - 105) <= wrong, quantize
        assert result.agreement >= 0.95, quantize
        assert result.size <= size * float32, quantize


# --- sizes, inputs, the GPU ---


@pytest.mark.parametrize("any_size", [False, True])
def test_another_image_size(model, any_size, tmp_path):
    source = model
    if any_size:
        source = classifier(image_size=None, grid_size=(2, 2))
        source.set_weights(model.get_weights())
    path = to_tflite(source, tmp_path / "m.tflite", image_size=(48, 64), preprocessing=False)
    model.save_to_preset(tmp_path / "preset")
    expected = keras_vit.from_preset(tmp_path / "preset", image_size=(48, 64))
    x = np.random.default_rng(2).normal(0, 1, (1, 48, 64, 3)).astype("float32")
    np.testing.assert_allclose(run(path, x), np.asarray(expected(x)), atol=1e-4)
    with pytest.raises(ValueError, match="must be a multiple of the patch size 16"):
        to_tflite(source, tmp_path / "n.tflite", image_size=50)


def test_a_size_must_be_known(tmp_path):
    with pytest.raises(ValueError, match="needs a fixed image size. Pass image_size="):
        to_tflite(classifier(image_size=None, grid_size=(2, 2)), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantize", [None, "float16"])
def test_a_graph_for_the_gpu(model, quantize, tmp_path):
    path = to_tflite(model, tmp_path / "m.tflite", quantize, input="float32", gpu=True)
    loaded = runtime.interpreter(path, 1)
    assert max(len(tensor["shape"]) for tensor in loaded.get_tensor_details()) <= 4
    assert "CAST" not in runtime.operations(loaded)


@pytest.mark.parametrize("options", [{}, {"quantize": "int8_dynamic", "input": "float32"}])
def test_a_gpu_computes_in_floats(model, options, tmp_path):
    with pytest.raises(ValueError, match="A GPU computes in floats"):
        to_tflite(model, tmp_path / "m.tflite", gpu=True, **options)


def test_what_a_gpu_cannot_run(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.ops.transpose(keras.ops.reshape(inputs, (-1, 2, 4, 2, 4, 3)), (0, 1, 3, 2, 4, 5))
    model = keras.Model(inputs, keras.ops.reshape(x, (-1, 192)))
    options = {"preprocessing": False, "input": "float32"}
    to_tflite(model, tmp_path / "m.tflite", **options)
    with pytest.raises(ValueError, match="GPU delegate cannot run .* four axes"):
        to_tflite(model, tmp_path / "gpu.tflite", gpu=True, **options)
    assert not (tmp_path / "gpu.tflite").exists()


def test_names_of_tensors_differ(model, tmp_path):
    loaded = runtime.interpreter(to_tflite(model, tmp_path / "m.tflite"), 1)
    names = [tensor["name"] for tensor in loaded.get_tensor_details() if tensor["name"]]
    assert len(set(names)) == len(names)


def test_images_of_another_size_or_type_at_run_time(model, tmp_path):
    runner = runtime.interpreter(to_tflite(model, tmp_path / "m.tflite")).get_signature_runner()
    with pytest.raises(ValueError, match="Got value of type FLOAT32 but expected type UINT8"):
        runner(images=np.zeros((1, 32, 32, 3), "float32"))
    with pytest.raises((ValueError, RuntimeError), match="reshape|dimension|size"):
        runner(images=np.zeros((1, 16, 16, 3), "uint8"))


LEAK = """
import gc, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from tiny_models import classifier
from keras_vit.export import to_tflite

def grown():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

model = classifier(embed_dim=512, num_heads=4, depth=1)  # few operations, 12 MB
sizes = []
for _ in range(20):
    to_tflite(model, sys.argv[1], quantize=None)
    sizes.append(grown())
# TensorFlow's own pools fill during the first ten
growth = (np.median(sizes[15:]) - np.median(sizes[10:15])) / 5
print(4 * model.count_params(), growth, [round(size / 1e6) for size in sizes])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux' /proc")
def test_twenty_exports_do_not_leak(tmp_path):
    here = os.path.dirname(__file__)
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", LEAK, tmp_path / "m.tflite", here],
        capture_output=True,
        text=True,
        env=environment,
    )
    size, growth, *sizes = done.stdout.split()
    size, growth = float(size), float(growth)
    assert growth < 0.05 * size, f"{growth / size:.1%} of the model from export to export: {sizes}"

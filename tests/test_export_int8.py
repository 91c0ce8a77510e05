"""keras_vit.export.int8: static int8 where a model tolerates it, and no outlier that breaks it."""

import keras
import numpy as np
import pytest
from tiny_models import FAMILIES, classifier

from keras_vit.export import (
    common,
    graph,
    int8,
    model_file,
    products,
    rounding,
    runtime,
    smoothing,
    to_tflite,
)

pytest.importorskip("ai_edge_quantizer")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="files are made on the TensorFlow backend"
)
IMAGES = np.random.default_rng(7).integers(0, 256, (24, 32, 32, 3), "uint8")


def weight(model, path):
    (found,) = [v for v in model.variables if v.path.endswith(path)]
    return found


def change(model, path, function):
    variable = weight(model, path)
    value = np.array(variable)
    function(value)
    variable.assign(value)


# Outliers that real models have, in both blocks.


def in_values(model, block):
    """Three channels of value are 64 times as large; the projection takes that back."""
    width = weight(model, f"blocks_{block}/attn/proj/kernel").shape[0]
    for name in ("kernel", "bias"):
        change(model, f"blocks_{block}/attn/qkv/{name}", lambda x: scale(x[..., 2 * width :], 64))
    change(model, f"blocks_{block}/attn/proj/kernel", lambda x: scale(x[:3].T, 1 / 64, 3))


def scale(x, factor, count=3):
    x[..., :count] *= factor


def in_hidden(model, block):
    """Four hidden units of the MLP are always large."""

    def shift(bias):
        bias[:4] += 40

    change(model, f"blocks_{block}/mlp/fc1/bias", shift)


def in_stream(model, block):
    """One channel of the residual stream is large for all tokens: a massive activation."""

    def shift(bias):
        bias[5] += 50

    change(model, f"blocks_{block}/mlp/fc2/bias", shift)


def in_norm(model, block):
    """One channel of a norm is large; its gain is 100 times the others'."""

    def gain(gamma):
        gamma[7] *= 100

    change(model, f"blocks_{block}/norm2/gamma", gain)
    change(model, f"blocks_{block}/mlp/fc1/kernel", lambda x: scale(x[7:8], 1 / 100, x.shape[1]))


OUTLIERS = {"values": in_values, "hidden": in_hidden, "stream": in_stream, "norm": in_norm}


def with_outliers(kind):
    model = classifier(patch_size=4)
    for block in range(2):
        OUTLIERS[kind](model, block)
    return model


def outputs(path_or_content, images=IMAGES):
    """The logits of a file, less their mean."""
    load = runtime.interpreter_of if isinstance(path_or_content, bytes) else runtime.interpreter
    run = load(path_or_content).get_signature_runner()
    found = np.concatenate([run(images=image[None])["probabilities"] for image in images])
    return common.centred(found, "probabilities", "softmax")


def error(found, expected):
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


def float32(model, tmp_path):
    """The bytes of a file whose tensors have short names."""
    return to_tflite(model, tmp_path / "float32.tflite").read_bytes()


def measured(content, images=IMAGES):
    return products.collect(content, "images", [image[None] for image in images])


@pytest.mark.parametrize("kind", OUTLIERS)
def test_outliers_cost_no_more_than_in_dynamic_int8(kind, tmp_path):
    model = with_outliers(kind)
    content = float32(model, tmp_path)
    expected = outputs(content)
    static = [rounding.measure(product) for product in measured(content, IMAGES[:12])]
    plain = error(outputs(int8.written(content, static, static)), expected)
    errors = {}
    for quantize in ("int8_dynamic", "int8"):
        calibration = IMAGES[:12] if quantize == "int8" else None
        path = to_tflite(model, tmp_path / "m.tflite", quantize, calibration=calibration)
        errors[quantize] = error(outputs(path), expected)
    print(kind, plain, errors)
    assert errors["int8"] <= 1.1 * errors["int8_dynamic"] < plain


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
def test_every_family(options, tmp_path):
    model = classifier(**options)
    times = model.backbone.image_size[0] // IMAGES.shape[1]
    images = IMAGES.repeat(times, axis=1).repeat(times, axis=2)
    expected = outputs(to_tflite(model, tmp_path / "m.tflite"), images)
    path = to_tflite(model, tmp_path / "m.tflite", "int8_dynamic")
    dynamic = error(outputs(path, images), expected)
    path = to_tflite(model, tmp_path / "m.tflite", "int8", calibration=images[:12])
    # The writer measures the error on the calibration images alone.
    assert error(outputs(path, images), expected) <= 1.1 * max(1.5 * dynamic, int8.GOOD)
    assert runtime.partitions(runtime.interpreter(path)) == 1


# --- What is measured ---


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return float32(classifier(), tmp_path_factory.mktemp("m"))


def test_ranges_are_those_of_all_images_in_any_order(content):
    loaded = runtime.interpreter_of(content, experimental_preserve_all_tensors=True)
    run = loaded.get_signature_runner()
    places = {t["name"]: t["index"] for t in loaded.get_tensor_details()}
    images = np.concatenate([IMAGES[:4] // 64, IMAGES[4:6]])  # four dark ones first
    found = {product.name: product for product in measured(content, images)}
    assert len(found) == 14  # a projection, two blocks of six, a head
    seen = {name: [] for name in found}
    for image in images:
        run(images=image[None])
        for name, values in seen.items():
            values.append(loaded.get_tensor(places[name]).copy())
    backwards = {product.name: product for product in measured(content, images[::-1])}
    for name, values in seen.items():
        expected = min(map(np.min, values)), max(map(np.max, values))
        assert found[name].whole[1] == expected
        assert backwards[name].whole[1] == expected


def test_a_product_computes_what_the_graph_does(content):
    for product in measured(content, IMAGES[:4]):
        outputs = product.run(product.inputs, product.weights)
        low, high = product.whole[1]
        assert low * 1.0001 - 1e-4 <= outputs.min() and outputs.max() <= high * 1.0001 + 1e-4


def test_smoothing_changes_weights_and_not_the_function(content):
    model = model_file.unpacked(content)
    divisible = smoothing.divisible(model)
    assert len(divisible) == 9  # four in each block, and the head's; not k's and v's in the last
    found = measured(content, IMAGES[:4])
    factors = {}
    for source in divisible:
        readers = [product for product in found if product.source == source]
        factors[source] = smoothing.factors(readers, 0.5)
        assert np.exp(np.log(factors[source]).mean()) == pytest.approx(1, abs=1e-3)
    changed = smoothing.insert(content, factors)
    loaded, before = runtime.interpreter_of(changed), runtime.interpreter_of(content)
    assert len(runtime.operations(loaded)) == len(runtime.operations(before)) + len(factors)
    np.testing.assert_allclose(outputs(changed), outputs(content), atol=1e-4)
    again = {product.source: product for product in measured(changed, IMAGES[:4])}
    for product in found:
        if product.source in factors:
            expected = smoothing.smoothed(product, factors[product.source])
            seen = again[expected.source]
            for side in (0, 1):
                np.testing.assert_allclose(
                    seen.whole[0][side], expected.whole[0][side], rtol=1e-4, atol=1e-5
                )


def test_dead_channels_have_no_factor():
    zeros = np.zeros(3, "float32"), np.array([0.0, 1.0, 4.0], "float32")
    weights, ranges = np.array([[1.0, 0.0, 1.0]]), (zeros, zeros)
    product = products.Product(
        "y", "x", weights, zeros[0][:1], None, (-np.inf, np.inf), weights, ranges, ranges
    )
    assert list(smoothing.factors([product], 0.5)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("bias", ["zeros", "ones"])  # zeros are left out of the file
def test_a_bias_is_changed_for_one_layer_alone(bias, tmp_path):
    """Equal constants are stored once, so that layers may share one."""
    inputs, x = keras.Input((4, 4, 3)), np.ones((1, 4, 4, 3), "float32")
    flat = keras.ops.reshape(inputs, (-1, 48))
    layers = [keras.layers.Dense(5, bias_initializer=bias, name=f"dense_{i}") for i in range(2)]
    model = keras.Model(inputs, keras.layers.Concatenate()([layer(flat) for layer in layers]))
    before = to_tflite(model, tmp_path / "m.tflite", preprocessing=False).read_bytes()
    (name,) = [p.name for p in products.collect(before, "inputs", [x]) if "dense_1" in p.name]
    added = np.arange(1, 6, dtype="float32")
    after = graph.with_biases(before, {name: added})
    found = [runtime.interpreter_of(c).get_signature_runner()(inputs=x) for c in (before, after)]
    (before,), (after,) = (output.values() for output in found)
    expected = np.concatenate([np.zeros(5), added - (bias == "ones")])
    np.testing.assert_allclose(after[0] - before[0], expected, atol=1e-5)


# --- Where it is refused, or given up ---


def test_a_model_without_static_layers_computes_as_int8_dynamic(tmp_path, monkeypatch, caplog):
    model = classifier()
    monkeypatch.setattr(int8, "LIMITS", (0.0,))
    path = to_tflite(model, tmp_path / "m.tflite", "int8", calibration=IMAGES[:4])
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert 'computes as one of quantize="int8_dynamic" does' in message
    names = runtime.operations(runtime.interpreter(path))
    assert "QUANTIZE" not in names
    expected = outputs(to_tflite(model, tmp_path / "m.tflite"))
    dynamic = error(outputs(to_tflite(model, tmp_path / "m.tflite", "int8_dynamic")), expected)
    assert error(outputs(path), expected) <= 1.1 * dynamic


@pytest.mark.parametrize("quantize", ["int8_dynamic", "int8"])
def test_a_refusal_says_what_to_do(quantize, tmp_path):
    model = classifier(representation_size=256)
    # a unit that is always 0 has huge weights in the head, so that all others round to 0

    def silence(x):
        x[..., 0] = 0

    def enlarge(x):
        x[0] = 1e6

    for name, function in (("kernel", silence), ("bias", silence)):
        change(model, f"pre_logits/{name}", function)
    change(model, "head/kernel", enlarge)
    calibration = IMAGES[:4] if quantize == "int8" else None
    with pytest.raises(RuntimeError, match='do not tolerate int8.* use quantize="float16"'):
        to_tflite(model, tmp_path / "m.tflite", quantize, calibration=calibration)
    assert not list(tmp_path.iterdir())
    to_tflite(model, tmp_path / "m.tflite", "float16")


def test_several_images_are_checked(tmp_path, caplog):
    model = classifier()
    with caplog.at_level("INFO", "keras_vit.export"):
        to_tflite(model, tmp_path / "m.tflite")
        to_tflite(model, tmp_path / "m.tflite", "int8", calibration=IMAGES[:7])
    plain, _, quantized = (record.getMessage() for record in caplog.records)
    assert "checked on 4 generated test images: the relative error of its logits" in plain
    assert "checked on 7 calibration images" in quantized and "the limit is 0.25" in quantized


@pytest.mark.parametrize("preprocessing", [True, False])
@pytest.mark.parametrize("low, high", [(-1, 1), (-2.1, 2.6)])  # as normalised by two habits
def test_calibration_wants_raw_images(low, high, preprocessing, tmp_path):
    floats = np.random.default_rng(0).uniform(low, high, (4, 32, 32, 3)).astype("float32")
    with pytest.raises(ValueError, match="calibration must contain raw images.*Received"):
        to_tflite(
            classifier(),
            tmp_path / "m.tflite",
            "int8",
            preprocessing=preprocessing,
            calibration=floats,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*almost black:UserWarning")
@pytest.mark.parametrize("images", [IMAGES[:4] / 255, np.zeros((2, 32, 32, 3), "uint8")])
def test_calibration_on_black_images_is_refused(images, tmp_path):
    """Floats from 0 to 1, the commonest mistake: the ranges of activations would be those of
    darkness."""
    with pytest.raises(ValueError, match="pixels in 0..255. Received: .* they are black"):
        to_tflite(classifier(), tmp_path / "m.tflite", "int8", calibration=images)


def test_calibration_of_a_file_without_preprocessing(tmp_path):
    """Raw images are normalised for it, once."""
    model = classifier()
    path = to_tflite(
        model, tmp_path / "m.tflite", "int8", preprocessing=False, calibration=IMAGES[:12]
    )
    x = model.preprocessor.image_converter(IMAGES)
    run = runtime.interpreter(path).get_signature_runner()
    found = np.concatenate([run(inputs=image[None])["logits"] for image in x])
    expected = np.asarray(model(x, training=False))
    assert error(found, expected) < 0.1

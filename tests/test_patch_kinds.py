"""Patches of other kinds: each layer against plain numpy, each model in all that a ViT does."""

import keras
import numpy as np
import pytest
from keras import ops
from keras_hub.src.tests import test_case
from test_layers import array

from keras_vit import ViT, ViTBackbone, explain, export, from_preset, layers
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.layers.adaptive import AdaptivePatches, tokens_of_patches
from keras_vit.layers.patch_kinds import PATCHES

RANDOM = np.random.default_rng(0)
# Cells of 8 x 8 pixels with more and less detail, in no order.
DETAIL = np.array([[3, 0.2, 1], [0.5, 2, 0.1]]).repeat(8, 0).repeat(8, 1)[..., None]
PICTURES = (DETAIL * RANDOM.normal(size=(2, 16, 24, 3))).astype("float32")
PICTURES[1] = PICTURES[1, ::-1, ::-1]
SIZE = {"embed_dim": 8, "patch_size": 4}


def small_network():
    conv = {"filters": 5, "kernel_size": 3, "strides": 4, "padding": "same", "name": "conv"}
    return keras.layers.Conv2D(**conv)


CASES = {  # name: (class, arguments, shape of the output, weights with a gradient, others)
    "overlapping": (layers.OverlappingPatches, SIZE, (2, 4, 6, 8), 2, 0),
    "overlapping, normed": (
        layers.OverlappingPatches,
        {**SIZE, "kernel_size": 5, "norm": "layer", "use_bias": False},
        (2, 4, 6, 8),
        3,
        0,
    ),
    "hybrid": (layers.HybridPatches, SIZE, (2, 4, 6, 8), 8, 4),
    "hybrid, own network": (
        layers.HybridPatches,
        {**SIZE, "backbone": small_network()},
        (2, 4, 6, 8),
        4,
        0,
    ),
    "positional": (layers.PositionalPatches, SIZE, (2, 4, 6, 8), 2, 0),
    "conditional": (layers.ConditionalPositions, {}, (2, 16, 24, 3), 2, 0),
    "adaptive": (layers.AdaptivePatches, SIZE, (2, 15, 8), 3, 0),
    "adaptive, few": (layers.AdaptivePatches, {**SIZE, "split": 0.2}, (2, 9, 8), 3, 0),
}


def made(name, **options):
    """A layer with random values in all weights."""
    cls, given, *_ = CASES[name]
    layer = cls.from_config(cls(**given, **options).get_config())  # each its own network
    layer(PICTURES)
    random = np.random.default_rng(1)
    for weight in layer.weights:
        value = random.normal(size=weight.shape, scale=0.3)
        weight.assign(abs(value) + 0.5 if "variance" in weight.name else value)
    return layer


@pytest.mark.parametrize("name", CASES)
def test_kerashubs_layer_test(name):
    cls, options, shape, trained, fixed = CASES[name]
    if "backbone" in options:
        pytest.skip("it compares configs as plain values")
    test_case.TestCase().run_layer_test(
        cls,
        options,
        PICTURES,
        expected_output_shape=shape,
        expected_num_trainable_weights=trained,
        expected_num_non_trainable_weights=fixed,
        expected_num_non_trainable_variables=fixed,
        run_training_check=False,
    )


# --- Numbers ---


def convolved(x, conv, stride, pad):
    """A convolution, patch by patch."""
    kernel, *bias = (array(v).astype("float64") for v in conv.weights)
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[0]
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    found = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for b, i, j in np.ndindex(*found.shape[:3]):
        patch = x[b, i * stride : i * stride + size, j * stride : j * stride + size]
        found[b, i, j] = (patch[..., None] * kernel).sum((0, 1, 2))
    return found + (bias[0] if bias else 0)


def overlapping(layer, x):
    size = layer.kernel_size or 7
    x = convolved(x, layer.proj, 4, size // 2)
    if layer.last is not None:
        gain, bias = map(array, layer.last.weights)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * gain + bias
    return x


def hybrid(layer, x):
    if layer.backbone is not None:
        x = array(layer.backbone(x))
    for conv, norm in zip(layer.convs, layer.norms, strict=True):
        gain, bias, mean, variance = map(array, norm.weights)
        x = (convolved(x, conv, 2, 1) - mean) / np.sqrt(variance + 1e-5) * gain + bias
        x = np.maximum(x, 0)
    return convolved(x, layer.proj, 1, 0)


def positional(layer, x):
    height, width = x.shape[1:3]
    places = np.zeros((*x.shape[:3], 2))
    for i, j in np.ndindex(height, width):
        places[:, i, j] = 2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1
    return convolved(np.concatenate([x, places], -1), layer.proj, 4, 0)


def conditional(layer, x):
    kernel, bias = map(array, layer.proj.weights)
    padded, found = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x + bias
    for i, j in np.ndindex(3, 3):
        found = found + padded[:, i : i + x.shape[1], j : j + x.shape[2]] * kernel[i, j, :, 0]
    return found


def mosaic(layer, x):
    """The patches of each image: [(row, column, side in patches of 4 x 4 pixels)]."""
    found = []
    for picture in x:
        corners = [(i, j) for i in range(0, picture.shape[0], 8) for j in range(0, 24, 8)]
        detail = [picture[i : i + 8, j : j + 8].var((0, 1)).mean() for i, j in corners]
        count = round(layer.split * len(corners))
        divided = sorted(corners, key=lambda c: -detail[corners.index(c)])[:count]
        small = [
            (i // 4 + y, j // 4 + x, 1)
            for i, j in corners
            if (i, j) in divided
            for y in (0, 1)
            for x in (0, 1)
        ]
        found.append(small + [(i // 4, j // 4, 2) for i, j in corners if (i, j) not in divided])
    return found


def adaptive(layer, x):
    scales = array(layer.scale_embed)[0]
    found = np.zeros((len(x), len(mosaic(layer, x)[0]), 8))
    for b, patches in enumerate(mosaic(layer, x)):
        for n, (i, j, side) in enumerate(patches):
            patch = x[b, 4 * i : 4 * (i + side), 4 * j : 4 * (j + side)]
            patch = patch.reshape(4, side, 4, side, 3).mean((1, 3))
            found[b, n] = convolved(patch[None], layer.proj, 4, 0)[0, 0, 0] + scales[side - 1]
    return found


REFERENCES = {f.__name__: f for f in (overlapping, hybrid, positional, conditional, adaptive)}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_plain_numpy(name):
    layer = made(name)
    expected = REFERENCES[name.split(",")[0]](layer, PICTURES.astype("float64"))
    np.testing.assert_allclose(array(layer(PICTURES)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_stays_near_float32(name, policy):
    exact, half = made(name), made(name, dtype=policy)
    found = half(PICTURES)
    assert keras.backend.standardize_dtype(found.dtype) == policy.removeprefix("mixed_")
    expected = array(exact(PICTURES))
    error = np.abs(array(ops.cast(found, "float32")) - expected).max() / np.abs(expected).max()
    assert error < (0.005 if policy == "mixed_float16" else 0.04)


@pytest.mark.parametrize("name", CASES)
def test_every_weight_has_a_gradient(name):
    layer = made(name)
    before = [array(v) for v in layer.trainable_weights]
    inputs = keras.Input(PICTURES.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
    model.train_on_batch(PICTURES, np.random.default_rng(2).normal(size=CASES[name][2]))
    for weight, old in zip(layer.trainable_weights, before, strict=True):
        assert np.abs(array(weight) - old).max() > 0, weight.path


@pytest.mark.parametrize("name", CASES)
def test_round_trips(name, tmp_path):
    layer = made(name)
    inputs = keras.Input(PICTURES.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    expected = array(model(PICTURES))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for other in (loaded, copy):
        np.testing.assert_allclose(array(other(PICTURES)), expected, atol=1e-6)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        model.export(tmp_path / "saved", verbose=False)
        saved = tf.saved_model.load(tmp_path / "saved")
        np.testing.assert_allclose(array(saved.serve(PICTURES)), expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if "adaptive" not in name])
def test_images_may_have_any_size(name):
    layer = made(name)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layer(inputs))
    for x in (PICTURES, PICTURES[:, :8]):
        np.testing.assert_allclose(array(model(x)), array(layer(x)), atol=1e-5)


# --- Adaptive patches ---


def test_a_split_cell_and_its_positions_go_together():
    layer = made("adaptive")
    table = RANDOM.normal(size=(1, 24, 8)).astype("float32")
    found = array(layer.positions(table, PICTURES))
    grid = table.reshape(4, 6, 8)
    for b, patches in enumerate(mosaic(layer, PICTURES)):
        for n, (i, j, side) in enumerate(patches):
            expected = grid[i : i + side, j : j + side].mean((0, 1))
            np.testing.assert_allclose(found[b, n], expected, atol=1e-6)


def test_among_equals_the_first_cells_are_split():
    layer = made("adaptive")
    flat = np.full((1, 16, 24, 3), 0.3, "float32")
    choice = array(layer.choice(flat))[0]
    assert choice.tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 27, 28, 29]


def test_each_patch_has_its_token():
    layer = made("adaptive")
    found = tokens_of_patches(array(layer.choice(PICTURES)), (4, 6))
    for tokens, patches in zip(found, mosaic(layer, PICTURES), strict=True):
        for n, (i, j, side) in enumerate(patches):
            assert (tokens.reshape(4, 6)[i : i + side, j : j + side] == n).all()


# --- Errors ---


ERRORS = {
    "even kernel": (lambda: layers.OverlappingPatches(8, 4, kernel_size=6), "odd and at least"),
    "small kernel": (lambda: layers.OverlappingPatches(8, 4, kernel_size=3), "odd and at least"),
    "no power of 2": (lambda: layers.HybridPatches(8, 12), "power of 2"),
    "other stride": (
        lambda: layers.HybridPatches(8, 8, backbone=small_network())(PICTURES),
        r"feature map of 2 x 3, for patch_size=8. Received: \(4, 6, 5\)",
    ),
    "does not divide": (lambda: layers.PositionalPatches(8, 5)(PICTURES), "multiple of the patch"),
    "cells do not divide": (lambda: layers.AdaptivePatches(8, 8)(PICTURES), "twice the patch size"),
    "one cell": (lambda: layers.AdaptivePatches(8, 4)(PICTURES[:, :8, :8]), "at least two cells"),
    "split": (lambda: layers.AdaptivePatches(8, 4, split=1), "between 0 and 1"),
    "any size": (
        lambda: layers.AdaptivePatches(8, 4)(keras.Input((None, None, 3))),
        "images of one size",
    ),
    "no such kind": (lambda: layers.PatchEncoder(8, 4, patches="round"), "plain, overlapping, hyb"),
    "no such argument": (
        lambda: layers.PatchEncoder(8, 4, patches={"kind": "overlapping", "size": 7}),
        "no argument size. It takes: kernel_size, norm, norm_eps",
    ),
    "from patches": (
        lambda: layers.PatchEncoder(8, 4, patches="hybrid")(layers.Patches(4)(PICTURES)),
        "need images",
    ),
    "adaptive grid": (
        lambda: layers.PatchEncoder(8, 4, patches="adaptive", positions="conditional"),
        "needs a grid of patches",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    build, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        build()


# --- Models ---

MODEL = {"image_size": (16, 24), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
IMAGES = (DETAIL * RANDOM.integers(0, 80, (2, 16, 24, 3))).astype("uint8")
CHOICES = [
    *({"patches": kind} for kind in PATCHES if kind != "plain"),
    {"positions": "conditional"},
    {"patches": "adaptive", "positions": "sincos2d", "no_embed_class": True},
    {"patches": {"kind": "overlapping", "kernel_size": 5}, "positions": "conditional"},
]
IDS = [" ".join(map(str, choice.values())) for choice in CHOICES]


def classifier(**options):
    keras.utils.set_random_seed(0)
    backbone = ViTBackbone(**MODEL, **options)
    return ViT(backbone, 3, ImagePreprocessor(ImageConverter((16, 24))))


@pytest.mark.parametrize("choice", CHOICES, ids=IDS)
def test_a_backbone_takes_each_by_one_argument(choice, tmp_path):
    model = classifier(**choice)
    model.compile(run_eagerly=True)
    before = array(model(PICTURES))
    model.fit(IMAGES, np.array([0, 1]), epochs=1, verbose=0)
    assert np.abs(array(model(PICTURES)) - before).max() > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(array(loaded(PICTURES)), array(model(PICTURES)), atol=1e-6)
    assert loaded.backbone.options["patches"] == choice.get("patches", "plain")
    assert (model.backbone.first_projection is None) == ("patches" in choice)
    maps = explain.relevance(model, IMAGES)
    assert maps.shape == (2, 4, 6) and np.isfinite(maps).all()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TFLite")
@pytest.mark.parametrize("choice", CHOICES, ids=IDS)
def test_tflite_has_built_in_operations_and_the_models_numbers(choice, tmp_path):
    model, path = classifier(**choice), tmp_path / "model.tflite"
    export.to_tflite(model, path)
    report = export.compare(path, model, IMAGES)
    assert report.largest_difference < 1e-5
    assert not [name for name in report.operations if name.startswith(("Flex", "CUSTOM"))]


def test_trained_weights_are_not_put_to_another_use(tmp_path):
    classifier(patches="positional").save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(ValueError, match="no argument patches"):
        from_preset(str(tmp_path / "preset"), patches="plain")
    with pytest.raises(ValueError, match="none has the same structure"):
        classifier(patches="positional").save_to_timm(tmp_path / "timm")


def test_attention_on_a_grid_needs_one():
    with pytest.raises(ValueError, match='cut into a grid.*patches="adaptive"'):
        ViTBackbone(**MODEL, patches="adaptive", attention="axial")


def test_a_whole_cell_is_one_value_in_an_explanation():
    model = classifier(patches="adaptive")
    maps = explain.relevance(model, IMAGES)
    x = array(model.preprocessor(IMAGES))
    for values, patches in zip(maps, mosaic(AdaptivePatches(8, 4), x), strict=True):
        for i, j, side in patches:
            assert np.ptp(values[i : i + side, j : j + side]) == 0
    for refused in (explain.token_norms, explain.page):
        with pytest.raises(ValueError, match="no grid of patches"):
            refused(model, IMAGES)

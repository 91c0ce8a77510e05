"""Attention of other kinds: each against plain numpy, or full attention with a mask."""

import math

import keras
import numpy as np
import pytest
from keras import ops
from keras_hub.src.tests import test_case
from test_layers import array, randomized

from keras_vit import ViT, ViTBackbone, export, from_preset, layers
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.layers.grid import PartialAttention
from keras_vit.layers.kinds import ATTENTIONS, IN_BLOCKS
from keras_vit.layers.positions import POSITIONS, sincos
from keras_vit.layers.watch import watching

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.normal(size=(2, 14, 8)).astype("float32")  # two prefix tokens, 3 x 4 patches
GRID = {"grid": (3, 4), "num_prefix_tokens": 2}
ALONE = {"grid": (2, 7)}

CASES = {  # name: (class, arguments)
    "linear": (layers.LinearAttention, {"num_heads": 2}),
    "performer": (
        layers.LinearAttention,
        {"num_heads": 2, "features": "performer", "num_features": 7},
    ),
    "axial": (layers.AxialAttention, {"num_heads": 4, **GRID}),
    "axial without prefix": (layers.AxialAttention, {"num_heads": 2, **ALONE}),
    "sparse": (layers.SparseAttention, {"num_heads": 2, "block": 1, "stride": 3, **GRID}),
    "sparse, uneven blocks": (
        layers.SparseAttention,
        {"num_heads": 2, "block": (2, 3), "local": 0, "stride": 2, **GRID},
    ),
    "sparse without prefix": (
        layers.SparseAttention,
        {"num_heads": 2, "block": (2, 2), "stride": 0, **ALONE},
    ),
    "window": (layers.ShiftedWindowAttention, {"num_heads": 2, "window": 2, **GRID}),
    "window, shifted": (
        layers.ShiftedWindowAttention,
        {"num_heads": 2, "window": (2, 3), "shift": 1, **GRID},
    ),
    "window without prefix": (
        layers.ShiftedWindowAttention,
        {"num_heads": 2, "window": (2, 4), "shift": (1, 0), **ALONE},
    ),
    "pooling": (layers.PoolingAttention, {"num_heads": 2, **GRID}),
    "pooling without prefix": (
        layers.PoolingAttention,
        {"num_heads": 2, "ratio": (2, 3), **ALONE},
    ),
    "relative": (layers.RelativePositionAttention, {"num_heads": 2, **GRID}),
    "relative without prefix": (layers.RelativePositionAttention, {"num_heads": 2, **ALONE}),
    "shaw": (layers.ShawAttention, {"num_heads": 2, "max_distance": 2, **GRID}),
    "shaw, keys alone": (
        layers.ShawAttention,
        {"num_heads": 2, "relative_values": False, **ALONE},
    ),
    "rotary": (layers.RotaryPositionAttention, {"num_heads": 2, **GRID}),
}
PARTIAL = [name for name, (cls, _) in CASES.items() if issubclass(cls, PartialAttention)]
BY_SCORES = [name for name in CASES if name != "shaw"]  # whose values depend on the query
WEIGHTS = {"window": 5, "relative": 5, "shaw": 8, "shaw, keys alone": 6}  # else 4


def trained(name):
    """The number of trained weights."""
    return WEIGHTS.get(name, WEIGHTS.get(name.split(" ")[0].strip(","), 4))


def made(name, **options):
    cls, given = CASES[name]
    return randomized(cls(**given, **options), TOKENS)


@pytest.mark.parametrize("name", CASES)
def test_kerashubs_layer_test(name):
    cls, options = CASES[name]
    test_case.TestCase().run_layer_test(
        cls,
        options,
        TOKENS,
        expected_output_shape=TOKENS.shape,
        expected_num_trainable_weights=trained(name),
        expected_num_non_trainable_weights=int(name == "performer"),
        expected_num_non_trainable_variables=int(name == "performer"),
        run_training_check=False,
    )


def by_scores(layer, x):
    """The output, from the layer's attention map, in numpy."""
    weights = array(layer.scores(x)).astype("float64")
    kernel, bias = (array(v).astype("float64") for v in layer.qkv.weights)
    values = (x @ kernel + bias)[..., 2 * x.shape[-1] :]
    batch, count, width = values.shape
    heads = layer.num_heads
    values = values.reshape(batch, count, heads, width // heads).transpose(0, 2, 1, 3)
    merged = (weights @ values).transpose(0, 2, 1, 3).reshape(batch, count, width)
    kernel, bias = (array(v).astype("float64") for v in layer.proj.weights)
    return merged @ kernel + bias


@pytest.mark.parametrize("name", BY_SCORES)
def test_the_output_is_that_of_the_attention_map(name):
    layer = made(name)
    scores = array(layer.scores(TOKENS))
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(array(layer(TOKENS)), by_scores(layer, TOKENS), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("queries", [1, 2, 5])
def test_queries_give_the_first_tokens(name, queries):
    layer = made(name)
    found = array(layer(TOKENS, queries=queries))
    np.testing.assert_allclose(found, array(layer(TOKENS))[:, :queries], atol=1e-5)


def patches(layer):
    """(row, column) of each token; None: a prefix token."""
    rows, columns = layer.grid
    places = [(i // columns, i % columns) for i in range(rows * columns)]
    return [None] * layer.num_prefix_tokens + places


def sees(layer, head, one, other):
    """The rule of the docstrings, patch by patch."""
    if one is None or other is None:
        return True
    if isinstance(layer, layers.AxialAttention):
        axis = 0 if head < layer.num_heads // 2 else 1
        return one[axis] == other[axis]
    if isinstance(layer, layers.ShiftedWindowAttention):
        sizes = list(zip(layer.shift, layer.window, strict=True))
        windows = [[(n - s) // w for n, (s, w) in zip(p, sizes, strict=True)] for p in (one, other)]
        return windows[0] == windows[1]
    near = all(
        abs(a // size - b // size) <= layer.local
        for a, b, size in zip(one, other, layer.block, strict=True)
    )
    return near or bool(layer.stride and all(b % layer.stride == 0 for b in other))


@pytest.mark.parametrize("name", PARTIAL)
def test_a_token_attends_to_those_of_its_rule_and_no_others(name):
    layer = made(name)
    if name.startswith("window"):  # tests/test_position_kinds.py has its bias
        layer.position.table.assign(ops.zeros_like(layer.position.table))
    full = layers.Attention(layer.num_heads)
    full(TOKENS)
    full.set_weights(layer.get_weights()[:4])
    tokens = patches(layer)
    mask = np.array(
        [
            [[sees(layer, head, one, other) for other in tokens] for one in tokens]
            for head in range(layer.num_heads)
        ]
    )
    assert not mask.all()
    expected = full(TOKENS, attention_mask=ops.convert_to_tensor(mask))
    np.testing.assert_allclose(array(layer(TOKENS)), array(expected), atol=1e-5)
    np.testing.assert_array_equal(array(layer.scores(TOKENS)) > 0, np.stack([mask] * 2))


def heads_of(layer):
    kernel, bias = (array(v).astype("float64") for v in layer.qkv.weights)
    q, k, v = np.split(TOKENS @ kernel + bias, 3, axis=-1)
    shape = (2, 14, layer.num_heads, -1)
    return [t.reshape(shape).transpose(0, 2, 1, 3) for t in (q, k, v)]


def test_linear_attention_is_equation_5():
    layer = made("linear")
    q, k, v = heads_of(layer)
    q, k = (np.where(t > 0, t + 1, np.exp(np.minimum(t, 0))) for t in (q, k))
    expected = np.empty_like(v)
    for index in np.ndindex(q.shape[:3]):
        b, h, i = index
        weights = np.array([q[index] @ k[b, h, j] for j in range(q.shape[2])])
        expected[index] = weights @ v[b, h] / weights.sum()
    merged = expected.transpose(0, 2, 1, 3).reshape(TOKENS.shape)
    kernel, bias = map(array, layer.proj.weights)
    np.testing.assert_allclose(array(layer(TOKENS)), merged @ kernel + bias, atol=1e-5)


def test_random_features_approximate_the_softmax():
    options = {"features": "performer", "num_features": 4096}
    layer = randomized(layers.LinearAttention(2, **options), TOKENS)
    layer.qkv.kernel.assign(layer.qkv.kernel * 0.2)
    full = layers.Attention(2)
    full(TOKENS)
    full.set_weights([array(v) for v in layer.trainable_weights])
    error = np.abs(array(layer.scores(TOKENS)) - array(full.scores(TOKENS))).max()
    assert error < 0.02
    few = randomized(layers.LinearAttention(2, **{**options, "num_features": 8}), TOKENS)
    few.qkv.kernel.assign(few.qkv.kernel * 0.2)
    assert np.abs(array(few.scores(TOKENS)) - array(full.scores(TOKENS))).max() > error


@pytest.mark.parametrize("name", ["linear", "performer"])
def test_a_mask_of_keys_leaves_the_others(name):
    layer = made(name)
    mask = np.arange(14) < 9
    masked = layer(TOKENS, attention_mask=ops.convert_to_tensor(mask[None, None, None]))
    np.testing.assert_allclose(
        array(masked)[:, :9], array(layer(TOKENS[:, :9])), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_stays_near_float32(name, policy):
    exact = made(name)
    cls, options = CASES[name]
    half = cls(**options, dtype=policy)
    half(TOKENS)
    half.set_weights(exact.get_weights())
    found = half(TOKENS)
    assert keras.backend.standardize_dtype(found.dtype) == policy.removeprefix("mixed_")
    expected = array(exact(TOKENS))
    error = np.abs(array(ops.cast(found, "float32")) - expected).max() / np.abs(expected).max()
    assert error < (0.005 if policy == "mixed_float16" else 0.04)


@pytest.mark.parametrize("name", CASES)
def test_every_weight_has_a_gradient(name):
    layer = made(name)
    before = [array(v) for v in layer.trainable_weights]
    inputs = keras.Input(TOKENS.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
    model.train_on_batch(TOKENS, np.random.default_rng(2).normal(size=TOKENS.shape))
    for weight, old in zip(layer.trainable_weights, before, strict=True):
        assert np.abs(array(weight) - old).max() > 0, weight.path


ERRORS = {
    "features": (lambda: layers.LinearAttention(2, features="cosine"), "elu, performer"),
    "dropout": (lambda: layers.LinearAttention(2, drop_rate=0.1), "no probabilities"),
    "odd heads": (lambda: layers.AxialAttention(3, (2, 2)), "num_heads must be even"),
    "other grid": (lambda: layers.AxialAttention(2, (5, 5))(TOKENS), "5 x 5 patches"),
    "bias": (
        lambda: layers.PoolingAttention(2, (2, 7))(TOKENS, bias=np.zeros((1, 1, 14, 14))),
        "PoolingAttention takes no bias",
    ),
    "large window": (
        lambda: layers.ShiftedWindowAttention(2, (2, 7), window=3),
        "at most as large as the grid",
    ),
    "mask": (
        lambda: layers.LinearAttention(2)(TOKENS, attention_mask=np.ones((1, 1, 14, 14), bool)),
        r"\(B, 1, 1, N\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    build, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_directions_are_orthogonal_and_as_long_as_normal_ones():
    from keras_vit.layers.linear import orthogonal

    found = orthogonal(6, 4, seed=3)
    assert found.shape == (6, 4)
    products = found[:4] @ found[:4].T
    np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-5)
    lengths = np.linalg.norm(orthogonal(4000, 4, seed=3), axis=1)
    assert math.isclose((lengths**2).mean(), 4, rel_tol=0.1)


MODEL = {"image_size": (32, 48), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
PICTURES = RANDOM.normal(size=(2, 32, 48, 3)).astype("float32")
KINDS = [kind for kind in ATTENTIONS if kind != "full"]


def classifier(**options):
    keras.utils.set_random_seed(0)
    backbone = ViTBackbone(**MODEL, **options)
    return ViT(backbone, 3, ImagePreprocessor(ImageConverter((32, 48))))


CHOICES = [(kind, "learned") for kind in ATTENTIONS]
CHOICES += [("full", kind) for kind in POSITIONS[1:]]
CHOICES += [("window", "relative"), ("linear", "learned2d")]


@pytest.mark.parametrize(("attention", "positions"), CHOICES)
def test_a_backbone_takes_each_by_one_argument(attention, positions, tmp_path):
    model = classifier(attention=attention, positions=positions)
    kind = IN_BLOCKS.get(positions, {}).get(attention, attention)
    assert isinstance(model.backbone.blocks[0].attn, ATTENTIONS[kind][0])
    before = array(model(PICTURES))
    model.compile(run_eagerly=True)
    images = RANDOM.integers(0, 256, (4, 32, 48, 3), dtype="uint8")
    model.fit(images, np.array([0, 1, 2, 0]), epochs=1, verbose=0)
    assert np.abs(array(model(PICTURES)) - before).max() > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(array(loaded(PICTURES)), array(model(PICTURES)), atol=1e-6)
    assert loaded.backbone.options["attention"] == attention


def test_sines_and_cosines_are_not_trained_and_follow_the_grid(tmp_path):
    model = classifier(positions="sincos2d")
    table = array(model.backbone.get_layer("patch_embed").pos_embed)
    np.testing.assert_array_equal(table[0], sincos((4, 6), 16, prefix=1))
    assert "pos_embed" not in str([v.path for v in model.trainable_variables])
    model.save_to_preset(str(tmp_path / "preset"))
    other = from_preset(str(tmp_path / "preset"), image_size=(48, 40))
    table = array(other.backbone.get_layer("patch_embed").pos_embed)
    np.testing.assert_array_equal(table[0], sincos((6, 5), 16, prefix=1))


@pytest.mark.parametrize("name, value", [("attention", "axial"), ("positions", "sincos2d")])
def test_trained_weights_are_not_put_to_another_use(name, value, tmp_path):
    classifier().save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(ValueError, match=f"no argument {name}"):
        from_preset(str(tmp_path / "preset"), **{name: value})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("linear", "performer")])
def test_attention_on_a_grid_is_for_images_of_one_size(kind):
    with pytest.raises(ValueError, match="images of one size"):
        ViTBackbone(**{**MODEL, "image_size": None}, grid_size=(4, 6), attention=kind)


def test_linear_attention_takes_images_of_any_size():
    backbone = ViTBackbone(**{**MODEL, "image_size": None}, grid_size=(4, 6), attention="linear")
    assert backbone(PICTURES[:, :16]).shape == (2, 13, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_what_explanations_see_is_the_map(kind):
    model = classifier(attention=kind)
    maps = []

    def watcher(what, value):
        maps.extend([array(value)] if what == "attention" else [])
        return value

    inputs = [array(x) for x in inner(model.backbone)(PICTURES)]
    with watching(watcher):
        for block, x in zip(model.backbone.blocks, inputs, strict=True):
            found = block(x)
            np.testing.assert_allclose(array(found), array(block(x)), atol=1e-5)
    scores = [array(b.scores(x)) for b, x in zip(model.backbone.blocks, inputs, strict=True)]
    for seen, expected in zip(maps[::2], scores, strict=True):
        np.testing.assert_allclose(seen, expected, atol=1e-6)


def inner(backbone):
    """A model that returns what each block reads."""
    return keras.Model(backbone.input, [block.input for block in backbone.blocks])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TFLite")
@pytest.mark.parametrize("kind", KINDS)
def test_tflite_has_built_in_operations_and_the_models_numbers(kind, tmp_path):
    model = classifier(attention=kind)
    path = tmp_path / "model.tflite"
    export.to_tflite(model, path)
    report = export.compare(path, model, RANDOM.integers(0, 256, (3, 32, 48, 3), dtype="uint8"))
    assert report.largest_difference < 1e-5
    assert not [name for name in report.operations if name.startswith(("Flex", "CUSTOM"))]

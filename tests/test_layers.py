"""The building blocks: numbers against plain numpy, round trips, precision, gradients."""

import math

import keras
import numpy as np
import pytest
import tiny_models as tiny
from keras import ops
from keras_hub.src.tests import test_case

import keras_vit
from keras_vit import layers
from keras_vit.layers import windows
from keras_vit.resize import resize_positions

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.normal(size=(2, 5, 8)).astype("float32")
PICTURES = RANDOM.normal(size=(2, 8, 12, 3)).astype("float32")
DROPS = {"drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path": 0.1}
BEIT3 = {"inner_norm": True, "norm_eps": 1e-5}
AIMV2 = {"qkv_bias": False, "proj_bias": False, "norm": "rms", "activation": "silu"}
ENCODER = {"embed_dim": 8, "patch_size": 4, "register_tokens": 2, "distillation_token": True}

# class, arguments, input, shape of the output, number of weights
CASES = [
    (layers.Attention, {"num_heads": 2}, TOKENS, (2, 5, 8), 4),
    (
        layers.Attention,
        {"num_heads": 4, "qkv_bias": False, "proj_bias": False},
        TOKENS,
        (2, 5, 8),
        2,
    ),
    (layers.Attention, {"num_heads": 1, **BEIT3}, TOKENS, (2, 5, 8), 6),
    (layers.AttentionPool, {"num_heads": 2, "mlp_ratio": 2}, TOKENS, (2, 8), 13),
    (layers.SequencePool, {}, TOKENS, (2, 8), 2),
    (layers.LayerScale, {"init_values": 0.1}, TOKENS, (2, 5, 8), 1),
    (layers.DropPath, {"rate": 0.3, "seed": 1}, TOKENS, (2, 5, 8), 0),
    (layers.PatchDropout, {"rate": 0.5, "num_prefix_tokens": 1}, TOKENS, (2, 5, 8), 0),
    (layers.Mlp, {"ratio": 2.5, "activation": "quick_gelu"}, TOKENS, (2, 5, 8), 4),
    (layers.Mlp, {"gate": "packed", "activation": "silu", **BEIT3}, TOKENS, (2, 5, 8), 6),
    (layers.Mlp, {"gate": "split", "use_bias": False}, TOKENS, (2, 5, 8), 3),
    (layers.Patches, {"patch_size": 4}, PICTURES, (2, 6, 48), 0),
    (layers.PatchEncoder, {"embed_dim": 8, "patch_size": 4}, PICTURES, (2, 7, 8), 4),
    (layers.PatchEncoder, {**ENCODER, "no_embed_class": True}, PICTURES, (2, 10, 8), 6),
    (layers.PatchEncoder, {**ENCODER, "embed_norm": "rms"}, PICTURES, (2, 10, 8), 7),
    (layers.DepthwiseConv, {"kernel_size": 3}, PICTURES, (2, 8, 12, 3), 2),
    (layers.DepthwiseConv, {"kernel_size": 5, "strides": 2}, PICTURES, (2, 4, 6, 3), 2),
    (layers.TransformerBlock, {"num_heads": 2}, TOKENS, (2, 5, 8), 12),
    (layers.TransformerBlock, {"num_heads": 2, "init_values": 0.1, **BEIT3}, TOKENS, (2, 5, 8), 18),
    (layers.TransformerBlock, {"num_heads": 2, "gate": "split", **AIMV2}, TOKENS, (2, 5, 8), 7),
]
IDS = [f"{cls.__name__}-{i}" for i, (cls, *_) in enumerate(CASES)]
TRAINED = [case for case in CASES if case[-1]]


def array(x):
    return ops.convert_to_numpy(x)


def randomized(layer, x):
    """The layer with random values in all weights, none of them trivial."""
    layer(x)
    random = np.random.default_rng(1)
    for weight in layer.trainable_weights:
        weight.assign(random.normal(size=weight.shape, scale=0.5))
    return layer


@pytest.mark.parametrize(("cls", "options", "x", "shape", "count"), CASES, ids=IDS)
def test_kerashubs_layer_test(cls, options, x, shape, count):
    test_case.TestCase().run_layer_test(
        cls,
        options,
        x,
        expected_output_shape=shape,
        expected_num_trainable_weights=count,
        expected_num_non_trainable_variables=int(not count and "rate" in options),
        run_training_check=False,
    )


@pytest.mark.parametrize(
    ("cls", "options", "x", "shape", "count"), TRAINED, ids=[c[0].__name__ for c in TRAINED]
)
def test_every_weight_has_a_gradient(cls, options, x, shape, count):
    layer = randomized(cls(**options), x)
    before = [array(weight) for weight in layer.trainable_weights]
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse", jit_compile=False)
    model.train_on_batch(x, np.random.default_rng(2).normal(size=shape))
    assert len(before) == count
    for weight, old in zip(layer.trainable_weights, before, strict=True):
        assert np.abs(array(weight) - old).max() > 0, weight.path


def users_model():
    """What a reader of the ViT tutorial writes."""
    inputs = keras.Input((8, 12, 3))
    x = layers.Patches(4)(inputs)
    x = layers.PatchEncoder(8, 4, grid_size=(2, 3))(x)
    x = layers.TransformerBlock(2, init_values=0.1, **DROPS)(x)
    x = layers.TransformerBlock(2, gate="packed", **BEIT3)(x)
    x = layers.DropPath(0.1)(layers.LayerScale(0.5)(layers.Mlp()(layers.Attention(2)(x))))
    return keras.Model(inputs, keras.layers.Dense(3)(layers.AttentionPool(2)(x)))


def test_a_users_model_survives_saving(tmp_path):
    model = users_model()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(array(loaded(PICTURES)), array(model(PICTURES)))
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(array(copy(PICTURES)), array(model(PICTURES)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_stays_near_float32(policy):
    exact = randomized(layers.TransformerBlock(2, init_values=0.1), TOKENS)
    half = randomized(layers.TransformerBlock(2, init_values=0.1, dtype=policy), TOKENS)
    assert {weight.dtype for weight in half.weights} == {"float32"}
    found = half(TOKENS)
    assert keras.backend.standardize_dtype(found.dtype) == policy.removeprefix("mixed_")
    wanted = array(exact(TOKENS))
    error = np.abs(array(ops.cast(found, "float32")) - wanted).max() / np.abs(wanted).max()
    assert error < (0.004 if policy == "mixed_float16" else 0.03)


@pytest.mark.parametrize(
    ("policy", "size"), [("float32", 1e8), ("mixed_bfloat16", 1e8), ("mixed_float16", 60.0)]
)
def test_huge_scores_give_no_nan(policy, size):
    layer = randomized(layers.Attention(2, dtype=policy), TOKENS)
    x = np.full((1, 5, 8), size, "float32") * np.sign(TOKENS[:1])
    scores = array(layer.scores(x))
    assert scores.dtype == "float32"
    np.testing.assert_allclose(scores.sum(-1), 1.0, atol=1e-6)
    assert scores.max() > 0.99  # they are huge indeed
    assert np.isfinite(array(ops.cast(layer(ops.cast(x, layer.compute_dtype)), "float32"))).all()


# --- Numbers ---


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attention(x, qkv, bias, heads):
    """Attention of `(B, N, D)` in float64, head by head: values and maps."""
    q, k, v = np.split(x.astype("float64") @ qkv + bias, 3, axis=-1)
    size = x.shape[-1] // heads
    values, maps = [], []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        maps.append(softmax(q[..., part] @ k[..., part].swapaxes(1, 2) / math.sqrt(size)))
        values.append(maps[-1] @ v[..., part])
    return np.concatenate(values, -1), np.stack(maps, 1)


def test_attention_is_equation_1_of_the_transformer():
    layer = randomized(layers.Attention(2), TOKENS)
    qkv, bias, proj, proj_bias = (array(w) for w in layer.weights)
    values, maps = attention(TOKENS, qkv, bias, 2)
    np.testing.assert_allclose(array(layer.scores(TOKENS)), maps, atol=1e-6)
    np.testing.assert_allclose(array(layer(TOKENS)), values @ proj + proj_bias, atol=1e-5)


def test_scores_are_float32_rows_that_sum_to_1():
    for layer in (layers.Attention(2), layers.AttentionPool(2), layers.TransformerBlock(2)):
        scores = array(randomized(layer, TOKENS).scores(TOKENS))
        rows = 1 if isinstance(layer, layers.AttentionPool) else 5
        assert scores.shape == (2, 2, rows, 5) and scores.dtype == "float32"
        np.testing.assert_allclose(scores.sum(-1), 1.0, atol=1e-6)


def test_attention_pool_is_one_query_and_an_mlp():
    layer = randomized(layers.AttentionPool(2, mlp_ratio=1.0), TOKENS)
    mean = array(layer.scores(TOKENS))  # (B, heads, 1, N)
    _, v = np.split(TOKENS @ array(layer.kv.kernel) + array(layer.kv.bias), 2, -1)
    heads = [mean[:, i] @ v[..., 4 * i : 4 * i + 4] for i in range(2)]
    x = np.concatenate(heads, -1)[:, 0] @ array(layer.proj.kernel) + array(layer.proj.bias)
    wanted = x + array(layer.mlp(layer.norm(ops.convert_to_tensor(x))))
    np.testing.assert_allclose(array(layer(TOKENS)), wanted, atol=1e-5)


def test_sequence_pool_is_a_mean_weighted_by_attention():
    layer = randomized(layers.SequencePool(), TOKENS)
    kernel, bias = (array(w).astype("float64") for w in layer.weights)
    weights = softmax((TOKENS @ kernel + bias)[..., 0])
    np.testing.assert_allclose(array(layer.scores(TOKENS))[:, 0], weights, atol=1e-6)
    wanted = np.stack([weights[i] @ TOKENS[i] for i in range(len(TOKENS))])
    np.testing.assert_allclose(array(layer(TOKENS)), wanted, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, BEIT3, {"drop_rate": 0.5}])
@pytest.mark.parametrize("cls", [layers.Attention, layers.TransformerBlock])
def test_queries_give_the_first_tokens_of_the_full_output(cls, options):
    layer = randomized(cls(2, **options), TOKENS)
    full = array(layer(TOKENS))
    for count in (1, 2):
        found = array(layer(TOKENS, queries=count))
        np.testing.assert_allclose(found, full[:, :count], atol=1e-5)


def test_attention_takes_a_bias_and_a_mask():
    layer = randomized(layers.Attention(2), TOKENS)
    bias = RANDOM.normal(size=(1, 2, 5, 5)).astype("float32")
    mask = np.tril(np.ones((5, 5), bool))[None, None]
    qkv, qkv_bias, proj, proj_bias = (array(w) for w in layer.weights)
    q, k, v = np.split(TOKENS.astype("float64") @ qkv + qkv_bias, 3, axis=-1)
    q, k, v = (np.moveaxis(t.reshape(2, 5, 2, 4), 2, 1) for t in (q, k, v))
    scores = q @ np.swapaxes(k, -1, -2) / 2 + bias
    maps = softmax(np.where(mask, scores, -np.inf))
    found = array(layer.scores(TOKENS, bias=bias, attention_mask=mask))
    np.testing.assert_allclose(found, maps, atol=1e-6)
    wanted = np.moveaxis(maps @ v, 1, 2).reshape(2, 5, 8) @ proj + proj_bias
    found = array(layer(TOKENS, bias=bias, attention_mask=mask))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    first = {"bias": bias[:, :, :2], "attention_mask": mask[:, :, :2]}
    found = array(layer(TOKENS, queries=2, **first))
    np.testing.assert_allclose(found, wanted[:, :2], atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class CausalBlock(layers.TransformerBlock):
    """A block with another attention: what the factory method is for."""

    def attention(self, input_shape, **inner):
        return self.child(Causal, input_shape, num_heads=self.num_heads, name="attn", **inner)


@keras.saving.register_keras_serializable("tests")
class Causal(layers.Attention):
    def call(self, x, queries=None, training=None):
        mask = np.tril(np.ones((x.shape[1],) * 2, bool))[None, None]
        return super().call(x, attention_mask=mask, training=training)


def test_a_block_takes_another_attention():
    block = randomized(CausalBlock(2), TOKENS)
    changed = TOKENS.copy()
    changed[:, 3:] += 1
    before, after = array(block(TOKENS)), array(block(changed))
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
    assert np.abs(after[:, 3:] - before[:, 3:]).min() > 1e-4


@pytest.mark.parametrize("strides, padding", [(1, "same"), (2, "same"), (1, "valid")])
def test_a_depthwise_convolution_is_keras_own(strides, padding):
    layer = randomized(layers.DepthwiseConv(3, strides, padding), PICTURES)
    theirs = keras.layers.DepthwiseConv2D(3, strides, padding, data_format="channels_last")
    theirs.build(PICTURES.shape)
    theirs.set_weights(layer.get_weights())
    found = layer(PICTURES)
    np.testing.assert_allclose(array(found), array(theirs(PICTURES)), atol=1e-6)
    assert layer.compute_output_spec(keras.KerasTensor(PICTURES.shape)).shape == found.shape


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
}


@pytest.mark.parametrize("gate", [None, "packed", "split"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_its_formula(activation, gate):
    act = ACTIVATIONS[activation]
    layer = randomized(layers.Mlp(2.0, activation, gate), TOKENS)
    dense = {
        name: TOKENS @ array(part.kernel).astype("float64") + array(part.bias)
        for name in ("fc1", "fc1_g", "fc1_x")
        if (part := getattr(layer, name, None)) is not None
    }
    if gate == "packed":
        first, second = np.split(dense["fc1"], 2, -1)
        hidden = act(first) * second
    elif gate == "split":
        hidden = act(dense["fc1_g"]) * dense["fc1_x"]
    else:
        hidden = act(dense["fc1"])
    wanted = hidden @ array(layer.fc2.kernel) + array(layer.fc2.bias)
    np.testing.assert_allclose(array(layer(TOKENS)), wanted, rtol=1e-5, atol=1e-5)


def test_layer_scale_multiplies_channels():
    layer = layers.LayerScale(0.25)
    np.testing.assert_array_equal(array(layer(TOKENS)), TOKENS * 0.25)
    layer.weights[0].assign(np.arange(8.0))
    np.testing.assert_allclose(array(layer(TOKENS)), TOKENS * np.arange(8), rtol=1e-6)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = np.ones((4000, 2, 3), "float32")
    layer = layers.DropPath(0.25, seed=0)
    found = array(layer(x, training=True))
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.75)}
    assert (found == found[:, :1, :1]).all()
    assert abs((found[:, 0, 0] > 0).mean() - 0.75) < 0.03  # 4 standard deviations
    again = array(layer(x, training=True))
    assert (found != again).any()
    same = array(layers.DropPath(0.25, seed=0)(x, training=True))
    np.testing.assert_array_equal(same, found)
    np.testing.assert_array_equal(array(layer(x)), x)


def test_patch_dropout_keeps_prefix_tokens_and_random_patches_of_each_sample():
    x = np.arange(3 * 11, dtype="float32").reshape(3, 11, 1) * np.ones(2, "float32")
    layer = layers.PatchDropout(0.65, num_prefix_tokens=1, seed=0)
    found = array(layer(x, training=True))
    assert found.shape == (3, 4, 2)  # int(10 * 0.35) = 3, as in timm
    np.testing.assert_array_equal(found[:, 0], x[:, 0])
    rows = found[:, 1:, 0] - x[:, :1, 0]
    assert all(len(set(row)) == 3 and set(row) <= set(range(1, 11)) for row in rows)
    assert len({tuple(row) for row in rows}) == 3  # each sample has its own
    assert array(layers.PatchDropout(0.99)(x, training=True)).shape == (3, 1, 2)
    np.testing.assert_array_equal(array(layer(x)), x)


def test_a_model_trains_on_the_patches_that_are_left():
    shape = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    options = {**shape, "reg_tokens": 1, "no_embed_class": True}
    model = keras_vit.ViT(keras_vit.ViTBackbone(**options, patch_drop_rate=0.75), 2)
    plain = keras_vit.ViT(keras_vit.ViTBackbone(**options), 2)
    plain.set_weights([w for w in model.get_weights() if w.dtype != "uint32"])
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(array(model(x)), array(plain(x)))
    assert (array(model(x, training=True)) != array(plain(x, training=True))).any()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, np.ones((4, 2)), epochs=1, verbose=0)
    again = model.__class__.from_config(model.get_config())
    assert again.backbone.options["patch_drop_rate"] == 0.75


def test_dropout_is_for_training_only():
    plain = randomized(layers.TransformerBlock(2), TOKENS)
    random = randomized(layers.TransformerBlock(2, **DROPS), TOKENS)
    np.testing.assert_allclose(array(random(TOKENS)), array(plain(TOKENS)), atol=1e-6)
    found = array(random(TOKENS, training=True))
    assert np.abs(found - array(plain(TOKENS))).max() > 0.1


# --- Patches ---


def test_patches_are_cut_row_by_row():
    found = array(layers.Patches(4)(PICTURES))
    for i, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        patch = PICTURES[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_array_equal(found[:, i], patch.reshape(2, -1))


def test_patches_of_pictures_of_any_size():
    inputs = keras.Input((None, None, 3))
    layer = layers.Patches(4)
    model = keras.Model(inputs, layer(inputs))
    assert model.output.shape == (None, None, 48)
    np.testing.assert_array_equal(array(model(PICTURES)), array(layer(PICTURES)))


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_patch_encoder_is_equation_1_of_vit(no_embed_class):
    layer = layers.PatchEncoder(**ENCODER, no_embed_class=no_embed_class)
    randomized(layer, PICTURES)
    patches = array(layers.Patches(4)(PICTURES)).astype("float64")
    x = patches @ array(layer.proj.kernel).reshape(-1, 8) + array(layer.proj.bias)
    prefix = [array(t) for t in (layer.cls_token, layer.dist_token, layer.reg_token)]
    prefix = np.repeat(np.concatenate(prefix, 1), 2, axis=0)
    table = array(layer.pos_embed)
    if no_embed_class:
        wanted = np.concatenate([prefix, x + table], 1)
    else:
        wanted = np.concatenate([prefix, x], 1) + table
    assert layer.num_prefix_tokens == 4
    np.testing.assert_allclose(array(layer(PICTURES)), wanted, atol=1e-5)


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_between_tokens_and_positions_there_is_a_gap(no_embed_class):
    layer = layers.PatchEncoder(**ENCODER, no_embed_class=no_embed_class)
    randomized(layer, PICTURES)
    tokens = layer.tokens(PICTURES)
    assert tokens.shape == (2, 6, 8)
    np.testing.assert_allclose(array(layer.assemble(tokens)), array(layer(PICTURES)), atol=1e-6)
    zeros = array(layer.assemble(ops.zeros_like(tokens)))
    np.testing.assert_allclose(zeros[:, 4:], np.repeat(array(layer.pos_embed)[:, -6:], 2, 0))


def test_patch_encoder_takes_pictures_or_patches():
    image = randomized(layers.PatchEncoder(8, 4), PICTURES)
    cut = layers.Patches(4)(PICTURES)
    patches = layers.PatchEncoder(8, 4, grid_size=(2, 3))
    patches(cut)
    patches.set_weights(image.get_weights())
    np.testing.assert_allclose(array(patches(cut)), array(image(PICTURES)), atol=1e-5)


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_positions_are_resampled_for_other_sizes(no_embed_class):
    inputs = keras.Input((None, None, 3))
    layer = layers.PatchEncoder(**ENCODER, no_embed_class=no_embed_class, grid_size=(2, 3))
    model = keras.Model(inputs, layer(inputs))
    randomized(layer, PICTURES)
    old = array(layer.pos_embed)
    count = 0 if no_embed_class else 4
    wider = np.concatenate([PICTURES, PICTURES], 2)[:, :4, :20]  # (B, 4, 20, C): 1 x 5 patches
    found = array(model(wider))
    layer.pos_embed.assign(np.zeros_like(old))
    bare = array(model(wider))
    table = resize_positions(old, (2, 3), (1, 5), count)
    if no_embed_class:
        table = np.concatenate([np.zeros((1, 4, 8)), table], 1)
    np.testing.assert_allclose(found - bare, np.repeat(table, 2, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: layers.PatchEncoder(8, 16).build((None, 40, 64, 3)), "height.* 40 .*32 and 48"),
        (lambda: layers.PatchEncoder(8, 5)(np.zeros((1, 10, 12, 3))), "width.* 12 .*10 and 15"),
        (lambda: layers.PatchEncoder(8, 4).build((None, None, None, 3)), "grid_size"),
        (lambda: layers.PatchEncoder(8, 4, embed_norm="group9")(PICTURES), "norm.*'group9'"),
        (lambda: layers.Patches(5)(PICTURES), "height.* 8 .*5 and 10"),
        (lambda: layers.Attention(3)(TOKENS), "num_heads=3, width=8"),
        (lambda: layers.TransformerBlock(2, norm="group9")(TOKENS), "norm.*'group9'"),
        (lambda: layers.Mlp(activation="tanh")(TOKENS), "quick_gelu.*'tanh'"),
        (lambda: layers.Mlp(gate="both"), "packed.*'both'"),
        (lambda: layers.DropPath(1.0), r"\[0, 1\).*1\.0"),
        (lambda: layers.PatchDropout(1.0), r"\[0, 1\).*1\.0"),
    ],
)
def test_errors_say_what_was_wanted_and_what_came(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("window", [(2, 3), (4, 6), (1, 2), (2, 2)])
def test_windows_and_grids_of_a_map_and_back(window):
    x = np.arange(2 * 4 * 6 * 5, dtype="float32").reshape(2, 4, 6, 5)
    (h, w), size, tensor = window, (4, 6), keras.ops.convert_to_tensor(x)
    adjacent = x.reshape(2, 4 // h, h, 6 // w, w, 5).transpose(0, 1, 3, 2, 4, 5)
    cut = windows.windows(tensor, window)
    np.testing.assert_array_equal(cut, adjacent.reshape(-1, h * w, 5))
    np.testing.assert_array_equal(windows.from_windows(cut, window, size), x)
    apart = x.reshape(2, h, 4 // h, w, 6 // w, 5).transpose(0, 2, 4, 1, 3, 5)
    cut = windows.grids(tensor, window)
    np.testing.assert_array_equal(cut, apart.reshape(-1, h * w, 5))
    np.testing.assert_array_equal(windows.from_grids(cut, window, size), x)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.compile is PyTorch's")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache:UserWarning")
@pytest.mark.parametrize(
    ("family", "training"),
    [
        ("ViT", True),
        *((name, False) for name in ("ViT", "HybridViT", "MLPMixer", "ConvNeXt", "EVA", "BEiT")),
    ],
)
def test_torch_compiles_a_model_as_one_graph(family, training):
    import torch

    torch.compiler.reset()
    model = tiny.classifier(**tiny.FAMILIES[family])
    x = ops.convert_to_tensor(tiny.pixels(model).astype("float32") / 127.5 - 1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # an error where it breaks
    with torch.inference_mode(not training):
        found = compiled(x, training=training)
        torch.testing.assert_close(found, model(x, training=training))
    if training:
        found.sum().backward()
        assert all(v.value.grad is not None for v in model.trainable_variables)

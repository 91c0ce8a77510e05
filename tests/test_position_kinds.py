"""Attention that knows positions, and positions of two axes: each against a loop of its docstring's
rule, at another size, and in files."""

import keras
import numpy as np
import pytest
from keras import ops
from test_layers import array
from test_variants import MODEL, PICTURES, TOKENS, classifier, made, patches

from keras_vit import ViTBackbone, export, from_preset, layers
from keras_vit.layers.kinds import ATTENTIONS, options_of, window_of
from keras_vit.layers.positions import POSITIONS
from keras_vit.layers.relative import RelativeBias
from keras_vit.layers.rotary import RotaryAttention, RotaryEmbedding
from keras_vit.layers.window_attention import WindowAttention
from keras_vit.resize import resize_positions

# --- Layers ---


def numbers(variable):
    return array(variable).astype("float64")


def of_prefix(rows, one, other):
    """The value of a pair with a prefix token, of three."""
    return rows[-1 if one is other else -3 if one is None else -2]


def relative(layer, head, query, one, other):
    """Equation 4 of Swin; BEiT's three rows for prefix tokens."""
    table, (rows, columns) = numbers(layer.position.table), layer.grid
    if one is None or other is None:
        return of_prefix(table, one, other)[head]
    down, across = (a - b for a, b in zip(one, other, strict=True))
    return table[(down + rows - 1) * (2 * columns - 1) + across + columns - 1, head]


def window(layer, head, query, one, other):
    if one is None or other is None:
        return of_prefix(numbers(layer.position.table), one, other)[head]
    number = [
        [(n - s) // w for n, s, w in zip(place, layer.shift, layer.window, strict=True)]
        for place in (one, other)
    ]
    if number[0] != number[1]:
        return -np.inf
    (h, w), (down, across) = layer.window, (a - b for a, b in zip(one, other, strict=True))
    table = numbers(layer.position.table)
    return table[(down + h - 1) * (2 * w - 1) + across + w - 1, head]


def distance(vectors, layer, one, other):
    """a_ij of Shaw et al., the sum of both axes."""
    if one is None or other is None:
        return of_prefix(sum(numbers(v)[-3:] for v in vectors), one, other)
    steps = (b - a for a, b in zip(one, other, strict=True))
    k = layer.max_distance
    return sum(
        numbers(v)[max(-k, min(k, step)) + min(k, n - 1)]
        for v, step, n in zip(vectors, steps, layer.grid, strict=True)
    )


def shaw(layer, head, query, one, other):
    return query @ distance(layer.relative_keys, layer, one, other)


def nothing(layer, head, query, one, other):
    return 0


def turned(layer, x, place):
    """A query or key, rotated by the angles of its place."""
    if place is None:
        return x
    planes = len(x) // 2
    complexes = x[:planes] + 1j * x[planes:]
    count = planes // 2
    angles = [n * layer.rope_temperature ** (-j / count) for n in place for j in range(count)]
    complexes = complexes * np.exp(1j * np.array(angles))
    return np.concatenate([complexes.real, complexes.imag])


def pooled(layer, x, places):
    """Keys or values and their places: the means of the cells."""
    cells = {}
    for row, place in zip(x, places, strict=True):
        cell = (id(row),) if place is None else tuple(np.array(place) // layer.ratio)
        cells.setdefault(cell, []).append(row)
    return [np.mean(rows, axis=0) for rows in cells.values()], [None] * len(cells)


SUMMANDS = {
    layers.RelativePositionAttention: relative,
    layers.ShiftedWindowAttention: window,
    layers.ShawAttention: shaw,
    layers.RotaryPositionAttention: nothing,
    layers.PoolingAttention: nothing,
}
NAMES = ["window", "window, shifted", "window without prefix", "pooling", "pooling without prefix"]
NAMES += ["relative", "relative without prefix", "shaw", "shaw, keys alone", "rotary"]


def expected(layer, x):
    """The layer's output for one picture, token by token, in float64."""
    kernel, bias = map(numbers, layer.qkv.weights)
    parts = np.split(x @ kernel + bias, 3, axis=-1)
    size = x.shape[1] // layer.num_heads
    places, found = patches(layer), np.empty(x.shape)
    for head in range(layer.num_heads):
        q, k, v = (part[:, head * size : (head + 1) * size] for part in parts)
        if isinstance(layer, layers.RotaryPositionAttention):
            q, k = ([turned(layer, *p) for p in zip(t, places, strict=True)] for t in (q, k))
        seen = places
        if isinstance(layer, layers.PoolingAttention):
            (k, seen), (v, _) = pooled(layer, k, places), pooled(layer, v, places)
        for i, one in enumerate(places):
            query = q[i] / size**0.5
            add = SUMMANDS[type(layer)]
            logits = [
                query @ key + add(layer, head, query, one, other)
                for key, other in zip(k, seen, strict=True)
            ]
            weights = np.exp(logits - np.max(logits))
            weights /= weights.sum()
            values = v
            if isinstance(layer, layers.ShawAttention) and layer.relative_values:
                vectors = layer.relative_vals
                values = [
                    value + distance(vectors, layer, one, other)
                    for value, other in zip(v, seen, strict=True)
                ]
            found[i, head * size : (head + 1) * size] = weights @ np.array(values)
    kernel, bias = map(numbers, layer.proj.weights)
    return found @ kernel + bias


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_that_of_the_rule(name):
    layer = made(name)
    for found, x in zip(array(layer(TOKENS)), TOKENS, strict=True):
        np.testing.assert_allclose(found, expected(layer, x), atol=1e-5)


def test_windows_are_swins():
    grid, options = (4, 6), {"window": (2, 3), "shift": (1, 1)}
    layer = layers.ShiftedWindowAttention(2, grid, **options)
    x = np.random.default_rng(3).normal(size=(2, 24, 8)).astype("float32")
    layer(x)
    layer.position.table.assign(np.random.default_rng(4).normal(size=layer.position.table.shape))
    picture = x.reshape(2, *grid, 8)
    swin = WindowAttention(2, **options)
    swin(picture)
    *weights, table = layer.get_weights()
    swin.set_weights([table, *weights])
    np.testing.assert_allclose(
        array(layer(x)), array(swin(picture)).reshape(x.shape), atol=1e-5, rtol=1e-5
    )
    np.testing.assert_allclose(array(layer.scores(x)), array(swin.scores(picture)), atol=1e-6)


def test_rotations_are_evas():
    layer = made("rotary")
    rope = RotaryEmbedding(1, 2, 4, patch_size=1, prefix=2)(np.zeros((1, 3, 4, 1), "float32"))[0]
    eva = RotaryAttention(2, rope_rotate_half=True)
    eva(TOKENS, rope=rope)
    eva.set_weights(layer.get_weights())
    np.testing.assert_allclose(array(layer(TOKENS)), array(eva(TOKENS, rope=rope)), atol=1e-5)


def test_the_bias_takes_more_than_one_prefix_token():
    one, two = (RelativeBias(2, (2, 3), class_token=count) for count in (True, 2))
    for layer in (one, two):
        layer.build()
    table = np.random.default_rng(0).normal(size=one.table.shape)
    one.table.assign(table)
    two.table.assign(table)
    places = [0, 0, *range(1, 7)]
    np.testing.assert_array_equal(array(two.bias()), array(one.bias())[:, :, places][..., places])


@pytest.mark.parametrize("name", ["relative", "rotary"])
def test_a_mask_is_taken(name):
    layer = made(name)
    mask = np.arange(14) < 9
    masked = layer(TOKENS, attention_mask=ops.convert_to_tensor(mask[None, None, None]))
    changed = np.where(mask[:, None], TOKENS, 7)
    found = layer(changed, attention_mask=ops.convert_to_tensor(mask[None, None, None]))
    np.testing.assert_allclose(array(masked)[:, :9], array(found)[:, :9], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_training_drops_probabilities(name):
    layer = made(name, drop_rate=0.5)
    exact = array(layer(TOKENS))
    keras.utils.set_random_seed(0)
    found = array(layer(np.tile(TOKENS, (200, 1, 1)), training=True)).reshape(200, *exact.shape)
    assert np.abs(found[0] - exact).max() > 0.1
    assert np.abs(found.mean(0) - exact).mean() < 0.2 * np.abs(exact).mean()


# --- Positions of two axes ---


def embedding(size, **options):
    layer = layers.PatchEncoder(8, patch_size=4, positions="learned2d", **options)
    layer.build((None, *size, 3))
    random = np.random.default_rng(0)
    for weight in layer.weights:
        weight.assign(random.normal(size=weight.shape))
    return layer


def test_two_axes_are_column_and_row_side_by_side():
    layer = embedding((8, 12))
    images = np.random.default_rng(1).normal(size=(2, 8, 12, 3)).astype("float32")
    found, patch = array(layer(images)), array(layer.tokens(images))
    rows, columns = numbers(layer.axes.rows), numbers(layer.axes.columns)
    assert rows.shape == (2, 4) and columns.shape == (3, 4)
    np.testing.assert_allclose(found[:, 0], np.repeat(array(layer.cls_token)[0], 2, 0))
    for i, j in np.ndindex(2, 3):
        position = np.concatenate([columns[j], rows[i]])
        np.testing.assert_allclose(
            found[:, 1 + 3 * i + j], patch[:, 3 * i + j] + position, atol=1e-5
        )


@pytest.mark.parametrize("grid", [(4, 6), (5, 3)])
def test_two_axes_at_another_size_are_those_of_the_whole_table(grid, tmp_path):
    layer = embedding((None, None), grid_size=(2, 3))
    table = array(layer.axes.table())
    np.testing.assert_allclose(
        array(layer.axes.table(grid)), resize_positions(table, (2, 3), grid), atol=1e-5
    )
    model = classifier(positions="learned2d")
    old = array(model.backbone.get_layer("patch_embed").axes.table())
    model.save_to_preset(str(tmp_path / "preset"))
    size = tuple(8 * n for n in grid)
    other = from_preset(str(tmp_path / "preset"), image_size=size).backbone
    found = array(other.get_layer("patch_embed").axes.table())
    np.testing.assert_allclose(found, resize_positions(old, (4, 6), grid), atol=1e-5)


def test_two_axes_of_images_of_any_size():
    options = {**MODEL, "image_size": None, "grid_size": (4, 6), "positions": "learned2d"}
    backbone = ViTBackbone(**options)
    same = ViTBackbone(**MODEL, positions="learned2d")
    same.set_weights(backbone.get_weights())
    np.testing.assert_allclose(array(backbone(PICTURES)), array(same(PICTURES)), atol=1e-5)
    assert backbone(PICTURES[:, :16]).shape == (2, 13, 16)


# --- Models ---


def grown(kind, tmp_path, size):
    """A model's first table of distances, and that of the same model for other images."""
    model = classifier(attention=kind)
    layer = model.backbone.blocks[0].attn
    random = np.random.default_rng(0)
    for weight in layer.trainable_weights:
        weight.assign(random.normal(size=weight.shape))
    model.save_to_preset(str(tmp_path / "preset"))
    return layer, from_preset(str(tmp_path / "preset"), image_size=size).backbone.blocks[0].attn


def test_biases_at_another_size_keep_the_near_distances(tmp_path):
    old, new = grown("relative", tmp_path, (48, 64))
    assert new.grid == (6, 8)
    old, new = array(old.position.table), array(new.position.table)
    np.testing.assert_array_equal(new[-3:], old[-3:])
    old, new = old[:-3].reshape(7, 11, 2), new[:-3].reshape(11, 15, 2)
    np.testing.assert_allclose(new[5, 7], old[3, 5], atol=1e-6)  # no distance
    np.testing.assert_allclose(new[[0, 0, -1], [0, -1, -1]], old[[0, 0, -1], [0, -1, -1]], atol=0.1)


def test_windows_at_another_size_are_those_of_the_grid(tmp_path):
    old, new = grown("window", tmp_path, (64, 64))
    assert (old.window, new.window) == ((4, 6), (4, 4))
    old, new = array(old.position.table), array(new.position.table)
    np.testing.assert_array_equal(new[-3:], old[-3:])
    old, new = old[:-3].reshape(7, 11, 2), new[:-3].reshape(7, 7, 2)
    np.testing.assert_allclose(new[3, 3], old[3, 5], atol=1e-6)


def test_vectors_of_distances_beyond_the_known_are_the_last_ones(tmp_path):
    old, new = grown("shaw", tmp_path, (16, 64))
    (rows, columns), (fewer, more) = (map(array, x.relative_keys) for x in (old, new))
    np.testing.assert_array_equal(fewer, np.concatenate([rows[2:5], rows[-3:]]))
    *known, a, b, c = columns
    np.testing.assert_array_equal(more, [*[known[0]] * 2, *known, *[known[-1]] * 2, a, b, c])


def test_windows_are_shifted_in_every_other_block():
    backbone = ViTBackbone(**{**MODEL, "image_size": (64, 64), "depth": 3}, attention="window")
    assert [block.attn.shift for block in backbone.blocks] == [(0, 0), (2, 2), (0, 0)]
    assert [window_of((n, n))[0] for n in (3, 7, 8, 14, 16, 24, 32)] == [3, 7, 4, 7, 6, 6, 7]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_combination_works_or_is_refused_with_what_there_is(attention, positions):
    exists = {"relative": ("full", "relative", "shaw", "window"), "rotary": ("full", "rotary")}
    if attention in exists.get(positions, ATTENTIONS):
        options = options_of(attention, positions, (4, 6), 1, depth=2)
        assert len(options) == 2 and (attention == "full" or options[0])
    else:
        with pytest.raises(ValueError, match='there is one with attention="full"'):
            options_of(attention, positions, (4, 6), 1, depth=2)


ERRORS = {
    "unknown positions": (
        {"positions": "polar"},
        "learned, learned2d, sincos2d, conditional, relative, rotary",
    ),
    "unknown attention": ({"attention": "gated"}, "pooling, relative, shaw, rotary"),
    "narrow heads": ({"positions": "rotary", "num_heads": 8}, "multiple of 4 channels"),
    "any size": (
        {"positions": "relative", "image_size": None, "grid_size": 4},
        'positions="relative" is for images of one size',
    ),
    "odd width": (
        {"positions": "learned2d", "embed_dim": 15, "num_heads": 1},
        "must be even. Received: 15",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case):
    options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        ViTBackbone(**{**MODEL, **options})


def test_patches_that_are_left_out_leave_no_grid():
    model = classifier(positions="relative", patch_drop_rate=0.5)
    with pytest.raises(ValueError, match="patch_drop_rate=0"):
        model.backbone(PICTURES, training=True)


CHOICES = [{"attention": kind} for kind in ("window", "pooling", "relative", "shaw", "rotary")]
CHOICES += [{"positions": "learned2d"}]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: next(iter(choice.values())))
def test_copies_have_the_models_numbers(choice):
    model = classifier(**choice)
    copies = [type(model).from_config(model.get_config()), keras.models.clone_model(model)]
    for copy in copies:
        copy.set_weights(model.get_weights())
        np.testing.assert_allclose(array(copy(PICTURES)), array(model(PICTURES)), atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="SavedModel")
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: next(iter(choice.values())))
def test_a_saved_model_has_the_models_numbers(choice, tmp_path):
    model = classifier(**choice)
    path = export.to_saved_model(model, tmp_path / "model", preprocessing=False, attention=True)
    loaded = pytest.importorskip("tensorflow").saved_model.load(str(path))
    np.testing.assert_allclose(loaded(PICTURES)["logits"], array(model(PICTURES)), atol=1e-5)
    maps = np.stack(list(loaded.signatures["attention"](inputs=PICTURES).values())[:1])
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TFLite")
def test_two_axes_in_tflite(tmp_path):
    model = classifier(positions="learned2d")
    table = model.backbone.get_layer("patch_embed").axes
    for weight in table.weights:  # means of the halves that export must keep
        weight.assign(np.random.default_rng(0).normal(1, size=weight.shape))
    export.to_tflite(model, tmp_path / "model.tflite")
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 48, 3), dtype="uint8")
    report = export.compare(tmp_path / "model.tflite", model, images)
    assert report.largest_difference < 1e-5

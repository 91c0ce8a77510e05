"""keras_vit.explain: maps that are the model's own, their rollout, and a picture."""

import sys

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_vit import DeiT, MLPMixer, ViT, explain, from_preset
from keras_vit.images import ImageConverter, ImagePreprocessor

TINY = {"image_size": (16, 32), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
GRID = (2, 4)
MODELS = {  # name: class, classifier's options, backbone's options, prefix tokens
    "token": (ViT, {}, {}, 1),
    "distilled": (DeiT, {}, {"distillation_token": True}, 2),
    "one head": (DeiT, {"distilled_head": False}, {"distillation_token": True}, 2),
    "registers": (ViT, {}, {"reg_tokens": 3, "no_embed_class": True}, 4),
    "avg": (ViT, {"pooling": "avg"}, {"class_token": False}, 0),
    "avg with token": (ViT, {"pooling": "avg"}, {}, 1),
    "avg of all": (ViT, {"pooling": "avg", "pool_include_prefix": True}, {"reg_tokens": 1}, 2),
    "token and avg": (ViT, {"pooling": "token_avg"}, {"reg_tokens": 1}, 2),
    "tokens": (ViT, {"pooling": "tokens"}, {"reg_tokens": 2}, 3),
    "seq": (ViT, {"pooling": "seq"}, {}, 1),
    "map": (ViT, {"pooling": "map"}, {"class_token": False}, 0),
    "map with registers": (ViT, {"pooling": "map"}, {"class_token": False, "reg_tokens": 2}, 2),
}
POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]


def classifier(kind="token", dtype=None, num_classes=5, labels=None):
    """A tiny model whose attention differs from token to token."""
    cls, head, trunk, _ = MODELS[kind]
    keras.utils.set_random_seed(0)
    backbone = cls.backbone_cls(**TINY, **trunk, dtype=dtype)
    size = backbone.image_size
    preprocessor = ImagePreprocessor(ImageConverter(size, crop_mode="squash"))
    model = cls(backbone, num_classes, preprocessor=preprocessor, labels=labels, **head)
    random = np.random.default_rng(1)
    model.set_weights(
        [w + random.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    return model


def pictures(count=2):
    random = np.random.default_rng(2)
    sizes = [(20, 30), (16, 32), (50, 40)]
    return [random.integers(0, 256, (*sizes[i % 3], 3), "uint8") for i in range(count)]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", POLICIES)
@pytest.mark.parametrize("kind", ["token", "registers", "avg"])
def test_maps_are_those_that_the_block_applies(kind, dtype):
    model = classifier(kind, dtype)
    maps = explain.attention_maps(model, pictures())
    tokens = MODELS[kind][3] + GRID[0] * GRID[1]
    assert len(maps) == TINY["depth"]
    assert all(m.shape == (2, 2, tokens, tokens) and m.dtype == np.float32 for m in maps)
    x = model.preprocessor(pictures())
    for block, found in zip(model.backbone.blocks, maps, strict=True):
        inputs = keras.Model(model.input, block.input)(x)
        normed = block.norm1(inputs)
        _, _, v = (ops.convert_to_numpy(ops.cast(t, "float32")) for t in block.attn.heads(normed))
        mixed = np.moveaxis(found @ v, 1, 2).reshape(2, tokens, -1)
        by_maps = ops.convert_to_numpy(ops.cast(block.attn.proj(mixed), "float32"))
        by_block = ops.convert_to_numpy(ops.cast(block.attn(normed), "float32"))
        tolerance = 1e-5 if dtype == "float32" else 0.05
        np.testing.assert_allclose(by_maps, by_block, atol=tolerance)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


def test_maps_equal_a_computation_in_float64():
    model = classifier()
    block = model.backbone.blocks[1]
    x = keras.Model(model.input, block.input)(model.preprocessor(pictures()))
    x = ops.convert_to_numpy(x).astype("float64")
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    gain, offset, kernel, bias = (
        ops.convert_to_numpy(v).astype("float64")
        for v in (block.norm1.gamma, block.norm1.beta, block.attn.qkv.kernel, block.attn.qkv.bias)
    )
    q, k, _ = np.split((x * gain + offset) @ kernel + bias, 3, axis=-1)
    q, k = (np.moveaxis(t.reshape(2, -1, 2, 12), 2, 1) for t in (q, k))
    expected = softmax(q @ np.swapaxes(k, -1, -2) / np.sqrt(12))
    (found,) = explain.attention_maps(model, pictures(), blocks=[1])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_blocks_are_chosen_by_their_index():
    model = classifier()
    every = explain.attention_maps(model, pictures())
    last, first = explain.attention_maps(model, pictures(), blocks=[-1, 0])
    np.testing.assert_allclose(last, every[2], atol=1e-6)
    np.testing.assert_allclose(first, every[0], atol=1e-6)
    for index in (-1, 2, np.int64(-1)):
        (alone,) = explain.attention_maps(model, pictures(), blocks=index)
        np.testing.assert_allclose(alone, every[2], atol=1e-6)


@pytest.mark.parametrize("function", [explain.attention_maps, explain.relevance, explain.overlay])
def test_nan_is_not_drawn(function):
    model = classifier()
    model.set_weights([w * np.nan for w in model.get_weights()])
    with pytest.raises(ValueError, match="attention weights are NaN"):
        function(model, pictures())


def test_many_pictures_in_steps_equal_single_ones(tmp_path):
    model, images = classifier(), pictures(explain.maps.STEP + 2)
    together = explain.attention_maps(model, images)
    Image.fromarray(images[-1]).save(tmp_path / "last.png")
    for one in (images[-1], tmp_path / "last.png", Image.fromarray(images[-1])):
        alone = explain.attention_maps(model, one)
        np.testing.assert_allclose(alone[2][0], together[2][-1], atol=1e-5)


@pytest.mark.parametrize(
    "blocks, message",
    [
        (3, "indices from -3 to 2"),
        ([3], "indices from -3 to 2"),
        (1.0, "indices from -3 to 2"),
        ("first", "indices from -3 to 2"),
        ([], "indices"),
        ([0, -4], r"\[0, -4\]"),
    ],
)
def test_unknown_blocks(blocks, message):
    with pytest.raises(ValueError, match=message):
        explain.attention_maps(classifier(), pictures(), blocks=blocks)


def test_models_without_attention_and_without_pictures():
    trunk = MLPMixer.backbone_cls(image_size=16, patch_size=8, embed_dim=8, depth=1)
    mixer = MLPMixer(trunk, 3, preprocessor=ImagePreprocessor(ImageConverter(16)))
    with pytest.raises(ValueError, match="attention blocks.*Received: MLPMixer"):
        explain.attention_maps(mixer, pictures())
    with pytest.raises(ValueError, match="no image"):
        explain.attention_maps(classifier(), [])
    model = classifier()
    model.preprocessor = None
    with pytest.raises(ValueError, match="no preprocessor"):
        explain.attention_maps(model, pictures())


def test_rollout_of_even_attention_is_known_in_closed_form():
    depth, n = 4, 5
    even = np.full((1, 3, n, n), 1 / n)
    left = 0.5**depth  # what only the skip connections carry
    expected = left * np.eye(n) + (1 - left) / n
    np.testing.assert_allclose(explain.rollout([even] * depth)[0], expected)


def test_rollout_multiplies_later_blocks_from_the_left():
    random = np.random.default_rng(0)
    first, second = (softmax(random.normal(size=(2, 3, 4, 4))) for _ in range(2))
    identity = np.eye(4)
    expected = (second.mean(1) + identity) / 2 @ ((first.mean(1) + identity) / 2)
    found = explain.rollout([first, second])
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(found.sum(-1), 1)


@pytest.mark.parametrize("shapes", [[], [(1, 2, 3, 3), (1, 2, 4, 4)], [(3, 3)]])
def test_rollout_of_what_are_no_maps(shapes):
    with pytest.raises(ValueError, match="rollout takes the maps"):
        explain.rollout([np.ones(shape) for shape in shapes])


@pytest.mark.parametrize("kind", MODELS)
def test_relevance_follows_what_the_head_reads(kind):
    model, prefix = classifier(kind), MODELS[kind][3]
    total = explain.rollout(explain.attention_maps(model, pictures()))
    rows = {
        "token": total[:, 0],
        "distilled": total[:, :2].mean(1),
        "one head": total[:, 0],
        "registers": total[:, 0],
        "avg of all": total.mean(1),
        "token and avg": (total[:, 0] + total[:, prefix:].mean(1)) / 2,
        "tokens": total[:, : max(prefix, 1)].mean(1),
    }
    expected = rows.get(kind, total[:, prefix:].mean(1))
    if kind.startswith("map") or kind == "seq":
        pool = model.get_layer("seq_pool" if kind == "seq" else "attn_pool")
        tokens = keras.Model(model.input, model.backbone.output)(model.preprocessor(pictures()))
        scores = ops.convert_to_numpy(pool.scores(tokens[:, prefix:]))
        scores = scores.reshape(2, -1, 1, scores.shape[-1]).mean(1)
        expected = (scores @ total[:, prefix:])[:, 0]
    found = explain.relevance(model, pictures())
    assert found.shape == (2, *GRID) and found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(2, -1), expected[:, prefix:], atol=1e-6)


@pytest.mark.parametrize("row, column", [(0, 3), (1, 0), (1, 2)])
def test_a_place_in_the_picture_is_that_place_on_the_grid(row, column):
    model = classifier("avg")
    table = model.get_layer("patch_embed").pos_embed
    table.assign(np.zeros(table.shape))  # so that patches differ by their pixels alone
    picture = np.zeros((16, 32, 3), "uint8")
    picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
    (seen,) = explain.relevance(model, picture)
    odd = np.abs(seen - np.median(seen))
    assert np.unravel_index(odd.argmax(), odd.shape) == (row, column)


@pytest.mark.parametrize(
    "kind, words",
    [
        ("token", "class token"),
        ("distilled", "distillation"),
        ("map", "query"),
        ("avg", "mean"),
        ("token and avg", "class token and, by halves, the mean"),
    ],
)
def test_overlay_says_what_it_shows(kind, words, tmp_path):
    model = classifier(kind, labels=["cat", "dog", "emu", "fox", "gnu"])
    figure = explain.overlay(model, pictures(3))
    assert words in figure.get_suptitle()
    assert len(figure.axes) == 6
    ((best, _),) = model.classify(pictures()[0], top=1)
    assert figure.axes[0].get_title().startswith(best)
    under, over = figure.axes[1].images
    assert over.get_array().shape == GRID
    assert over.get_extent() == under.get_extent() == [0, 32, 16, 0]  # rectangular, upright
    assert over.get_interpolation() == "bilinear"
    np.testing.assert_allclose(over.get_array(), explain.relevance(model, pictures(3))[0])
    figure.savefig(tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as written:
        assert np.asarray(written).std() > 10


@pytest.mark.parametrize("dtype", POLICIES)
def test_overlay_without_head_and_in_half_precision(dtype):
    figure = explain.overlay(classifier(dtype=dtype, num_classes=0), pictures()[0])
    assert len(figure.axes) == 2 and not figure.axes[0].get_title()
    assert np.isfinite(figure.axes[1].images[1].get_array()).all()


def test_without_matplotlib_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # an import of it now fails
    with pytest.raises(ImportError, match=r'pip install "keras-vit-zoo\[demo\]"'):
        explain.overlay(classifier(), pictures())


def test_a_trained_model_looks_at_the_fish(deit_tiny, photographs):
    model = from_preset(deit_tiny)
    (tench,) = (path for path in photographs[0] if "tench" in path.name)
    (seen,) = explain.relevance(model, tench)
    assert seen.shape == (14, 14)
    fish = seen[5:11].mean()  # it lies across the middle, on a plain ground
    assert fish > 1.5 * seen[:4].mean() and fish > 1.5 * seen[12:].mean()


# --- Any block and head, lazily; features ---


@pytest.mark.parametrize("kind", ["token", "avg"])
def test_lazy_maps_are_the_same(kind):
    model, images = classifier(kind), pictures(explain.maps.STEP + 2)
    every = explain.attention_maps(model, images)
    lazy = explain.attention_maps(model, images, lazy=True)
    assert len(lazy) == len(every) and not isinstance(lazy, list)
    for found, wanted in zip(lazy, every, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(lazy[-1], every[-1], atol=1e-6)
    assert [m.shape for m in lazy[1:]] == [m.shape for m in every[1:]]
    np.testing.assert_allclose(explain.rollout(lazy), explain.rollout(every), atol=1e-6)


def test_heads_are_chosen_or_fused():
    model = classifier()
    (every,) = explain.attention_maps(model, pictures(), blocks=1)
    (one,) = explain.attention_maps(model, pictures(), blocks=1, heads=-1)
    np.testing.assert_array_equal(one, every[:, 1:])
    for lazy in (False, True):
        (turned,) = explain.attention_maps(model, pictures(), blocks=1, heads=[1, 0], lazy=lazy)
        np.testing.assert_allclose(turned, every[:, ::-1], atol=1e-6)
    for word, function in (("mean", np.mean), ("max", np.max), ("min", np.min)):
        (found,) = explain.attention_maps(model, pictures(), blocks=1, heads=word)
        np.testing.assert_allclose(found, function(every, axis=1, keepdims=True))
    for wrong in (2, [0, -3], "median"):
        with pytest.raises(ValueError, match="[Hh]eads"):
            explain.attention_maps(model, pictures(), heads=wrong)


def test_a_model_around_a_classifier_is_explained_by_it():
    model = classifier()
    around = keras.Sequential([keras.Input((16, 32, 3)), model, keras.layers.Softmax()])
    wanted = explain.relevance(model, pictures())
    np.testing.assert_allclose(explain.relevance(around, pictures()), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="contains one. Received: Sequential"):
        explain.attention_maps(keras.Sequential([keras.Input((3,))]), pictures())


def test_features_by_name_of_a_loaded_model_too(tmp_path):
    model = classifier()
    model.save(tmp_path / "m.keras")
    x = model.preprocessor(pictures())
    for known in (model, keras.saving.load_model(tmp_path / "m.keras")):
        found = explain.features(known, pictures(), ["patch_embed", 0, -1, "norm", "head"])
        assert list(found) == ["patch_embed", "blocks_0", "blocks_2", "norm", "head"]
        assert found["blocks_2"].shape == (2, 9, 24)
        tokens = ops.convert_to_numpy(model.backbone(x))
        np.testing.assert_allclose(found["norm"], tokens, atol=1e-5)
        np.testing.assert_allclose(found["head"], ops.convert_to_numpy(model(x)), atol=1e-5)
    with pytest.raises(ValueError, match="no layer 'block3'. It has: .*blocks_2, norm"):
        explain.features(model, pictures(), "block3")
    with pytest.raises(ValueError, match="3 blocks"):
        explain.features(model, pictures(), 3)
    mixer = MLPMixer(
        MLPMixer.backbone_cls(image_size=16, patch_size=8, embed_dim=8, depth=1),
        3,
        preprocessor=ImagePreprocessor(ImageConverter(16)),
        pooling="avg",
    )
    assert explain.features(mixer, pictures())["blocks_0"].shape == (2, 4, 8)


def test_a_model_of_any_size_has_the_grid_of_its_pictures():
    cls, head, trunk, _ = MODELS["token"]
    options = {**TINY, "image_size": None, "grid_size": (2, 4)}
    size = (24, 24)
    preprocessor = ImagePreprocessor(ImageConverter(size, crop_mode="squash"))
    model = cls(cls.backbone_cls(**options), 5, preprocessor=preprocessor)
    assert explain.relevance(model, pictures()).shape == (2, 3, 3)


def reference_rollout(maps, fusion, discard):
    """Picture by picture, in loops."""
    totals = []
    for image in range(len(maps[0])):
        total = np.eye(maps[0].shape[-1])
        for block in maps:
            step = getattr(block[image], fusion)(0).copy()
            lowest = np.argsort(step.ravel())[: int(step.size * discard)]
            for place in lowest:
                if place:
                    step[np.unravel_index(place, step.shape)] = 0
            step = step + np.eye(len(step))
            total = np.stack([row / row.sum() for row in step]) @ total
        totals.append(total)
    return np.stack(totals)


@pytest.mark.parametrize("discard", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rollout_with_fusion_and_discard_is_that_of_a_loop(fusion, discard):
    random = np.random.default_rng(0)
    maps = [softmax(2 * random.normal(size=(2, 3, 5, 5))) for _ in range(3)]
    found = explain.rollout(maps, fusion, discard)
    np.testing.assert_allclose(found, reference_rollout(maps, fusion, discard))
    np.testing.assert_allclose(found.sum(-1), 1)


@pytest.mark.parametrize("discard", [-0.1, 1.0])
def test_a_share_to_discard_is_less_than_all(discard):
    with pytest.raises(ValueError, match="discard"):
        explain.rollout([np.ones((1, 1, 2, 2))], discard=discard)

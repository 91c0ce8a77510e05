"""Flow, faithfulness and the analyses, each against a plain loop."""

import math
import sys

import keras
import numpy as np
import pytest

from keras_vit import MLPMixer, ViT, explain
from keras_vit.explain import analysis
from keras_vit.explain.deletion import blurred, on_patches, random_map, resized
from keras_vit.images import ImageConverter, ImagePreprocessor

TINY = {"image_size": (16, 32), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
GRID = (2, 4)


def classifier(**options):
    keras.utils.set_random_seed(0)
    backbone = ViT.backbone_cls(**{**TINY, "reg_tokens": 1, **options})
    preprocessor = ImagePreprocessor(ImageConverter(backbone.image_size, crop_mode="squash"))
    model = ViT(backbone, 5, preprocessor=preprocessor)
    random = np.random.default_rng(1)
    model.set_weights(
        [w + random.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    return model


def mixer():
    backbone = MLPMixer.backbone_cls(image_size=16, patch_size=8, embed_dim=8, depth=1)
    preprocessor = ImagePreprocessor(ImageConverter(16))
    return MLPMixer(backbone, 3, preprocessor=preprocessor, pooling="avg")


@pytest.fixture(scope="module")
def model():
    return classifier()


def pictures(count=2):
    return list(np.random.default_rng(2).integers(0, 256, (count, 20, 30, 3), "uint8"))


def attention(*shape, sharpness=2.0):
    x = np.exp(sharpness * np.random.default_rng(0).normal(size=shape))
    return (x / x.sum(-1, keepdims=True)).astype("float32")


# --- Flow ---


def test_flow_is_that_of_networkx():
    networkx = pytest.importorskip("networkx")
    maps = list(attention(3, 2, 2, 8, 8, sharpness=3.0))  # 3 blocks, 2 images, 2 heads, 8 tokens
    found = explain.attention_flow(maps, query=1)
    for image in range(2):
        graph = networkx.DiGraph()
        for depth, block in enumerate(maps):
            step = (block[image].mean(0) + np.eye(8)) / 2
            for i in range(8):
                for j in range(8):
                    graph.add_edge((depth + 1, i), (depth, j), capacity=float(step[i, j]))
        wanted = [networkx.maximum_flow_value(graph, (3, 1), (0, token)) for token in range(8)]
        np.testing.assert_allclose(found[image], wanted, atol=1e-4)
        assert np.std(wanted) > 0.01


def test_flow_is_at_most_1_and_at_most_what_flows_in():
    maps = list(attention(4, 1, 2, 10, 10, sharpness=3.0))
    inflow = ((maps[0][0].mean(0) + np.eye(10)) / 2).sum(axis=0)
    found = explain.attention_flow(maps)[0]
    assert (found <= np.minimum(1, inflow) + 1e-4).all()
    assert np.std(found) > 0.05
    some = explain.attention_flow(maps, tokens=[3, 0])[0]
    np.testing.assert_array_equal(some, found[[3, 0]])


def test_flow_through_nearly_even_maps_is_flat():
    maps = list(attention(6, 1, 2, 10, 10, sharpness=0.3))
    inflow = ((maps[0][0].mean(0) + np.eye(10)) / 2).sum(axis=0)
    np.testing.assert_allclose(explain.attention_flow(maps)[0], np.minimum(1, inflow), atol=1e-4)


@pytest.mark.parametrize("wrong", [{"query": 8}, {"tokens": [0, -1]}])
def test_flow_between_tokens_that_do_not_exist(wrong):
    with pytest.raises(ValueError, match="numbers from 0 to 7"):
        explain.attention_flow([attention(1, 1, 8, 8)], **wrong)


def test_flow_needs_square_maps_and_scipy(monkeypatch):
    with pytest.raises(ValueError, match="attention_flow takes the maps.*grad_cam"):
        explain.attention_flow([attention(1, 1, 8, 8), attention(1, 1, 8, 2)])
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r'pip install "keras-vit-zoo\[explain\]"'):
        explain.attention_flow([attention(1, 1, 8, 8)])


# --- Distances, entropy, diversity ---


def test_distances_are_those_of_a_loop():
    maps = attention(2, 3, 8, 8)
    total = np.zeros(3)
    places = [(8 * row + 4, 8 * column + 4) for row in range(2) for column in range(4)]
    for image in range(2):
        for head in range(3):
            for q, here in enumerate(places):
                weights = maps[image, head, q] / maps[image, head, q].sum()
                for k, there in enumerate(places):
                    total[head] += weights[k] * math.dist(here, there) / 16
    found = analysis.distances(maps, GRID, GRID, (16, 32))
    np.testing.assert_allclose(found, total, rtol=1e-5)


def test_attention_distance_leaves_the_prefix_out(model):
    maps = explain.attention_maps(model, pictures())
    found = explain.attention_distance(model, pictures())
    assert len(found) == 2 and found[0].shape == (2,)
    wanted = analysis.distances(maps[1][:, :, 2:, 2:], GRID, GRID, (16, 32))
    np.testing.assert_allclose(found[1], wanted, rtol=1e-4)
    (last,) = explain.attention_distance(model, pictures(), blocks=-1)
    np.testing.assert_allclose(last, wanted, rtol=1e-4)


def test_distance_to_the_keys_of_a_reduced_map():
    maps = np.zeros((1, 1, 16, 4), "float32")
    maps[..., 3] = 1  # all look at the last quarter of 16 x 16 pixels
    centres = [(4 * row + 2, 4 * column + 2) for row in range(4) for column in range(4)]
    wanted = np.mean([math.dist(centre, (12, 12)) for centre in centres])
    found = analysis.distances(maps, (4, 4), (2, 2), (16, 16))
    np.testing.assert_allclose(found, [wanted], rtol=1e-6)


def test_entropy_is_0_of_one_token_and_1_of_all():
    maps = np.stack([np.eye(6), np.full((6, 6), 1 / 6)])[None]
    (found,) = explain.attention_entropy([maps])
    np.testing.assert_allclose(found, [0, 1], atol=1e-6)
    (found,) = explain.attention_entropy([attention(1, 1, 1, 6)])
    p = attention(1, 1, 1, 6)[0, 0, 0]
    np.testing.assert_allclose(found, [-(p * np.log(p)).sum() / np.log(6)], rtol=1e-5)


def test_diversity_is_that_of_a_loop():
    maps = attention(2, 3, 5, 5)
    pairs = []
    for image in range(2):
        for q in range(5):
            for i in range(3):
                for j in range(i):
                    a, b = maps[image, i, q], maps[image, j, q]
                    pairs.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    same = np.repeat(maps[:, :1], 3, axis=1)
    found = explain.head_diversity([maps, same, maps[:, :1]])
    np.testing.assert_allclose(found, [1 - np.mean(pairs), 0, 0], atol=1e-5)


# --- Positions, filters, norms ---


def test_position_similarity_is_that_of_a_loop(model):
    table = keras.ops.convert_to_numpy(model.get_layer("patch_embed").pos_embed)[0, 2:]
    found = explain.position_similarity(model)
    assert found.shape == (*GRID, *GRID)
    for i, a in enumerate(table):
        for j, b in enumerate(table):
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert abs(found[i // 4, i % 4, j // 4, j % 4] - cosine) < 1e-5
    with pytest.raises(ValueError, match="MLPMixer has no learned position embedding"):
        explain.position_similarity(mixer())


def test_filters_are_scikit_learns_components(model):
    decomposition = pytest.importorskip("sklearn.decomposition")
    kernel = keras.ops.convert_to_numpy(model.get_layer("patch_embed").proj.kernel)
    wanted = decomposition.PCA(5).fit(kernel.reshape(-1, 24).T).components_
    found = explain.patch_filters(model, 5)
    assert found.shape == (5, 8, 8, 3) and found.min() == 0 and found.max() == 1
    for component, array in zip(wanted, found, strict=True):
        correlation = np.corrcoef(component, array.ravel())[0, 1]
        assert abs(correlation) > 0.999


def test_token_norms_are_of_the_patches(model):
    (found,) = explain.token_norms(model, pictures())
    tokens = explain.features(model, pictures(), -1)["blocks_1"][:, 2:]
    np.testing.assert_allclose(found, np.linalg.norm(tokens, axis=-1).reshape(2, *GRID), rtol=1e-5)
    (found,) = explain.token_norms(mixer(), pictures(), [0])
    assert found.shape == (2, 2, 2)


# --- Faithfulness ---


def test_deletion_and_insertion_of_a_known_model():
    model = classifier()
    inputs = model.input
    x = keras.layers.Cropping2D(((0, 8), (0, 24)))(inputs)
    x = keras.ops.mean(x, axis=(1, 2, 3))
    seen = keras.Model(inputs, keras.ops.stack([0 * x, 4 * x, 0 * x, 0 * x, 0 * x], axis=1))
    model.call = lambda x, training=False, mask=None: seen(x)
    image = np.full((16, 32, 3), 128, "uint8")
    image[:8, :8] = 255
    true = np.zeros((1, *GRID), "float32")
    true[0, 0, 0] = 1
    best, worst = (explain.faithfulness(model, image, m, classes=1, steps=8) for m in (true, -true))
    low, high = 1 / 5, best.deletion_curve[0, 0]
    assert best.deletion_curve.shape == (1, 9) and high > 0.8
    np.testing.assert_allclose(best.deletion_curve[0], [high] + [low] * 8, atol=1e-5)
    np.testing.assert_allclose(worst.deletion_curve[0], [high] * 8 + [low], atol=1e-5)
    np.testing.assert_allclose(best.insertion_curve[0, 1:], [high] * 8, atol=1e-5)
    assert worst.insertion_curve[0, 7] < high - 0.05 and worst.insertion_curve[0, 8] > high - 1e-5
    assert best.deletion[0] < worst.deletion[0] and best.insertion[0] > worst.insertion[0]
    np.testing.assert_allclose(best.deletion[0], (high + low) / 16 + 7 / 8 * low, rtol=1e-5)
    assert "deletion 0." in str(best)


def test_faithfulness_takes_maps_of_any_resolution(model):
    images = pictures()
    coarse = random_map(2, GRID)
    fine = np.stack([resized(m, (16, 32)) for m in coarse])
    a, b = (explain.faithfulness(model, images, m, steps=2) for m in (coarse, fine))
    np.testing.assert_allclose(a.deletion_curve, b.deletion_curve, atol=1e-6)
    assert a.shares.tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"maps": np.ones((1, 2, 4))}, "one for each of the 2 images"),
        ({"maps": np.ones((2, 4))}, "one for each of the 2 images"),
        ({"classes": [0, 1]}, "One class per image"),
        ({"steps": 0}, "steps at least 1"),
        ({"baselines": ("mean", "grey")}, "'mean' and 'blur'"),
    ],
)
def test_faithfulness_of_what_is_no_map(options, message, model):
    with pytest.raises(ValueError, match=message):
        explain.faithfulness(model, pictures(), **{"maps": random_map(2, GRID), **options})


def test_maps_on_patches():
    values = np.arange(24.0).reshape(4, 6)
    wanted = [[values[i : i + 2, j : j + 3].mean() for j in (0, 3)] for i in (0, 2)]
    np.testing.assert_allclose(on_patches(values, (2, 2)), wanted)
    np.testing.assert_allclose(on_patches(values, (4, 6)), values)
    assert on_patches(values[:1, :1], (2, 3)).tolist() == [[0, 0, 0]] * 2


def test_a_blur_keeps_the_mean_and_an_even_image():
    np.testing.assert_allclose(blurred(np.full((16, 32, 3), 2.0), 2), 2, rtol=1e-6)
    x = np.zeros((65, 65, 1))
    x[32, 32] = 1
    soft = blurred(x, 16)
    np.testing.assert_allclose(soft.sum(), 1, rtol=1e-6)
    assert soft[32, 32, 0] == soft.max() and soft[32, 36, 0] > soft[32, 40, 0] > 0

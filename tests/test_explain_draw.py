"""Figures: whose map is where, in which colours, and what is written under it."""

import functools

import numpy as np
import pytest
import tiny_models
from PIL import Image

from keras_vit import explain

LABELS = ["cat", "dog", "emu", "fox", "gnu", "hen", "a name of a class that fits under no picture"]
PICTURES = tiny_models.pictures()[1:]


@functools.cache
def classifier(name="ViT"):
    labels = {} if name == "MLPMixer" else {"labels": LABELS}
    return tiny_models.classifier(**tiny_models.FAMILIES[name], **labels)


def over(axis):
    """The map that is drawn over a picture, which lies below it at the same place."""
    below, above = axis.images
    assert below.get_extent() == above.get_extent() == [0, 32, 32, 0]
    return above


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


@pytest.mark.parametrize("shared", [False, True])
def test_classes_stand_side_by_side(shared):
    model = classifier()
    rows = np.array([[3, 0], [1, 6]])
    figure = explain.overlay_classes(model, PICTURES, rows, shared=shared)
    maps = explain.class_relevance(model, PICTURES, rows)
    chances = np.exp(model.predict(PICTURES, verbose=0))
    chances /= chances.sum(-1, keepdims=True)
    assert figure.get_suptitle() == "attention relevance"
    for i in range(2):
        plain, *axes = figure.axes[3 * i : 3 * i + 3]
        assert len(plain.images) == 1
        for k, axis in enumerate(axes):
            np.testing.assert_allclose(over(axis).get_array(), maps[i, k], rtol=1e-4, atol=1e-6)
            limits = np.percentile(maps[i] if shared else maps[i, k], [1, 99])
            np.testing.assert_allclose(over(axis).get_clim(), limits, rtol=1e-4)
            name, value = axis.get_title().rsplit(", ", 1)
            assert name == LABELS[rows[i, k]] or name.endswith("...") and rows[i, k] == 6
            assert float(value.rstrip("%")) / 100 == pytest.approx(
                chances[i, rows[i, k]], abs=0.006
            )
    by_default = explain.overlay_classes(model, PICTURES, top=2, method="grad_cam")
    best = [[label for label, _ in found] for found in model.classify(PICTURES, top=2)]
    found = [titles(by_default)[i].rsplit(", ", 1)[0][:20] for i in (1, 2, 4, 5)]
    assert found == [name[:20] for row in best for name in row]


def test_rollout_has_no_classes_to_compare():
    with pytest.raises(ValueError, match="the same for every class"):
        explain.overlay_classes(classifier(), PICTURES, method="rollout")
    with pytest.raises(ValueError, match="method must be one of rollout, relevance"):
        explain.overlay_classes(classifier(), PICTURES, method="saliency")


@pytest.mark.parametrize("query", [None, (1, 0)])
def test_heads_of_a_block(query):
    model = classifier("EVA")
    figure = explain.overlay_heads(model, PICTURES[0], block=-1, query=query)
    (maps,) = explain.attention_maps(model, PICTURES[0], blocks=-1)
    token = 0 if query is None else 2 + 1 * 2 + 0  # a class token and a register stand before
    for head in range(3):
        axis = figure.axes[head]
        drawn = over(axis).get_array()
        np.testing.assert_allclose(drawn, maps[0, head, token, 2:].reshape(2, 2), rtol=1e-5)
        assert axis.get_title() == f"head {head}"
        frames = [patch.get_bbox().bounds for patch in axis.patches]
        assert frames == ([] if query is None else [(0, 16, 16, 16)])
    words = "the class token" if query is None else "the patch in row 1, column 0"
    assert figure.get_suptitle() == f"attention of {words}, block 1"


def test_heads_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="a patch of 2 x 2. Received: "):
        explain.overlay_heads(classifier(), PICTURES[0], query=(2, 0))
    with pytest.raises(ValueError, match="Choose a block of the last stage"):
        explain.overlay_heads(classifier("Swin"), PICTURES[0], block=0)


def test_a_map_of_ones_own_with_signs_is_blue_and_red():
    maps = np.zeros((1, 32, 32))
    maps[0, :16], maps[0, 16:, :16] = 2, -1
    figure = explain.overlay(classifier(), PICTURES[0], maps=maps, caption="mine")
    drawn = over(figure.axes[1])
    assert figure.get_suptitle() == "mine" and drawn.get_clim() == (-2, 2)
    rgba = drawn.to_rgba(maps[0])
    assert rgba[0, 0, :3].tolist() == [1, 0, 0]
    assert rgba[20, 0, 2] == 1 and rgba[20, 0, 0] < 0.6
    assert drawn.get_alpha()[[0, 20, 20], [0, 0, 20]] == pytest.approx([0.6, 0.3, 0])
    own = explain.overlay(classifier(), PICTURES[0], maps=abs(maps), cmap="viridis", alpha=0.4)
    assert over(own.axes[1]).get_cmap().name == "viridis"
    assert over(own.axes[1]).get_alpha() == 0.4


def test_a_grid_of_many_names_their_files(tmp_path):
    paths = []
    for i, picture in enumerate(PICTURES * 2):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(picture).save(paths[-1])
    figure = explain.gallery(classifier(), paths[:3], "grad_cam", columns=2)
    maps = explain.grad_cam(classifier(), paths[:3])
    assert figure.get_suptitle() == "Grad-CAM"
    for axis, values, path in zip(figure.axes, maps, paths, strict=False):
        np.testing.assert_allclose(over(axis).get_array(), values, rtol=1e-3, atol=1e-6)
        assert axis.get_title().endswith(f"%\n{path.name}")
    assert not figure.axes[3].images
    for function in (explain.gallery, explain.overlay):
        with pytest.raises(ValueError, match="one for each of the 2 images"):
            function(classifier(), PICTURES, maps=maps)


def test_patches_stand_apart():
    picture = np.arange(40 * 33 * 3, dtype="uint32").reshape(40, 33, 3).astype("uint8")
    figure = explain.visualize_patches(picture, (16, 8))
    (drawn,) = figure.axes[0].images
    array, gap = np.asarray(drawn.get_array()), 2
    assert array.shape == (2 * 16 + gap, 4 * 8 + 3 * gap, 4)
    np.testing.assert_array_equal(array[18:34, 20:28, :3], picture[16:32, 16:24])
    assert (array[16:18, :, 3] == 0).all() and "2 x 4 patches of 16 x 8" in titles(figure)[0]
    with pytest.raises(ValueError, match="smaller than a patch"):
        explain.visualize_patches(picture, 64)


PICTURE = np.random.default_rng(5).integers(0, 256, (32, 48, 3), "uint8")


@pytest.mark.parametrize(
    "kind", ["overlapping", "hybrid", {"kind": "overlapping", "kernel_size": 11}]
)
def test_patches_that_overlap_are_whole(kind):
    figure = explain.visualize_patches(PICTURE, 8, kind)
    array = np.asarray(figure.axes[0].images[0].get_array())
    size = 11 if isinstance(kind, dict) else 15
    pitch, before = size + 1, size // 2
    assert array.shape == (4 * pitch - 1, 6 * pitch - 1, 4)
    for row, column in ((1, 1), (2, 3)):
        y, x = 8 * row - before, 8 * column - before
        tile = array[row * pitch :, column * pitch :][:size, :size]
        np.testing.assert_array_equal(tile[..., :3], PICTURE[y : y + size, x : x + size])
        assert (tile[..., 3] == 255).all()
    assert (array[:before, :, 3] == 0).all()  # zeros around the picture
    assert f"4 x 6 patches of {size} x {size} pixels, 8 apart" in titles(figure)[0]


def test_adaptive_patches_are_small_where_there_is_detail():
    picture = np.full((32, 48, 3), 90, "uint8")
    picture[:16, 16:32] = PICTURE[:16, :16]
    figure = explain.visualize_patches(picture, 8, {"kind": "adaptive", "split": 0.2})
    array = np.asarray(figure.axes[0].images[0].get_array())
    assert "9 patches: 4 of 8 x 8 and 5 of 16 x 16 pixels" in titles(figure)[0]
    np.testing.assert_array_equal(array[9:16, 25:32, :3], PICTURE[9:16, 9:16])
    border = array[..., 3] == 0
    assert border[8, 16:32].all() and border[:16, 24].all()  # within the cell
    assert border[16].all() and not border[24, :16].any()  # and around cells, not within others


@pytest.mark.parametrize(
    ("size", "kind", "message"),
    [
        ((16, 8), "adaptive", "are square"),
        (8, "round", "patches must be one of"),
        (32, "adaptive", "at least two cells|multiple of twice"),
    ],
)
def test_patches_that_cannot_be_drawn(size, kind, message):
    with pytest.raises(ValueError, match=message):
        explain.visualize_patches(PICTURE, size, kind)


def test_a_sheet_has_what_the_model_has():
    every = titles(explain.analyse(classifier(), PICTURES))
    for word in ("filters", "positions", "distance", "entropy", "diversity", "lengths"):
        assert any(word in title for title in every), word
    few = titles(explain.analyse(classifier("MLPMixer"), PICTURES))
    assert [title.split()[0] for title in few] == ["filters", "lengths"]
    with pytest.raises(ValueError, match="nothing to analyse in a PVT without images"):
        explain.analyse(classifier("PVT"))


@pytest.mark.parametrize("form, start", [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_formats(form, start, tmp_path):
    explain.overlay(classifier(), PICTURES[0]).savefig(tmp_path / f"seen.{form}")
    assert (tmp_path / f"seen.{form}").read_bytes().startswith(start)

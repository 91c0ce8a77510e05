"""Explanations of the families: windows, several stages, rotations, models without attention."""

import functools

import numpy as np
import pytest
import tiny_models
from keras import ops

from keras_vit import PVTv1, explain
from keras_vit.explain.analysis import map_grids
from keras_vit.explain.gradients import gradients
from keras_vit.explain.maps import chosen_blocks
from keras_vit.layers.watch import watching

FLAT = ["EVA", "BEiT", "HybridViT"]  # blocks with the same tokens
IMAGE = tiny_models.pictures()[2]


@functools.cache
def family(name):
    options = {**tiny_models.FAMILIES.get(name, {})}
    if name == "PVTv1":
        options["cls"] = PVTv1
    if name.startswith(("PVT", "CoAtNet")):
        options["image_size"] = 64
    if name.startswith("Swin"):
        options["window_size"] = 4  # which divides the map, so that nothing lies over its edges
    return tiny_models.classifier(**options)


@pytest.mark.parametrize("name", [*FLAT, "Swin"])
def test_a_single_block_is_that_of_all(name):
    model = family(name)  # EVA's blocks take rotations, too
    every = explain.attention_maps(model, IMAGE)
    for lazy in (False, True):
        for index in (-1, 0):
            (one,) = explain.attention_maps(model, IMAGE, blocks=index, lazy=lazy)
            np.testing.assert_allclose(one, every[index], atol=1e-6)


@pytest.mark.parametrize("name", FLAT)
def test_gradients_by_attention_are_differences(name):
    """A block's attention, scaled by 1 + e, changes a logit by e * sum(gradient * attention)."""
    model = family(name)
    x = model.preprocessor([IMAGE])
    found = gradients(functools.partial(model, x, training=False), {"attention"}, np.array([[1]]))
    maps = explain.attention_maps(model, IMAGE)
    assert len(found.values) == len(maps)
    for i, (attention, gradient) in enumerate(zip(found.values, found.by[0], strict=True)):
        queries = attention.shape[2]  # the last block may compute those of the head alone
        np.testing.assert_allclose(attention, maps[i][:, :, :queries], atol=1e-5)

        def logit(factor, i=i):
            count = iter(range(len(maps)))

            def scale(kind, x):
                return x * factor if kind == "attention" and next(count) == i else x

            with watching(scale):
                return float(ops.convert_to_numpy(model(x, training=False))[0, 1])

        difference = (logit(1.02) - logit(0.98)) / 0.04
        assert (gradient * attention).sum() == pytest.approx(difference, rel=0.02, abs=1e-4)
    assert explain.class_relevance(model, IMAGE, 1).shape == (1, *model.backbone.grid_size)


@pytest.mark.parametrize("name", ["PVT", "Swin"])
def test_grad_cam_of_an_averaged_map_is_its_product_with_the_class_weights(name):
    model = family(name)
    (features,) = explain.features(model, IMAGE, [model.backbone.layers[-1].name]).values()
    rows, columns = model.backbone.grid_size
    assert features.shape[1:3] == (rows, columns) and rows * columns > 1
    kernel = ops.convert_to_numpy(model.get_layer("head").kernel)[:, [0, 3, 6]]
    wanted = np.maximum(np.einsum("bhwd,dc->bchw", features, kernel), 0) / (rows * columns)
    found = explain.grad_cam(model, IMAGE, [0, 3, 6])
    assert wanted.max() > 0
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["Swin", "SwinV2"])
def test_windows_are_laid_back_onto_the_picture(name):
    model = family(name)
    maps = explain.attention_maps(model, IMAGE)
    for block, attention in zip(chosen_blocks(model), maps, strict=True):
        (rows, columns), _, first = map_grids(model, block, attention.shape)
        assert first == 0 and attention.shape[2:] == (rows * columns,) * 2
        _, _, queries, keys = (attention > 1e-30).nonzero()  # masked by -100
        assert np.abs(queries // columns - keys // columns).max() == 3  # a window is 4 x 4
        assert np.abs(queries % columns - keys % columns).max() == 3
    edge = 4 * 3 * 2**0.5  # the longest way in a window, in pixels
    assert all(0 < d.min() <= d.max() < edge for d in explain.attention_distance(model, IMAGE)[:2])


@pytest.mark.parametrize("name", ["PVT, linear", "PVTv1", "CoAtNet"])
def test_several_stages_have_pages_and_are_refused_a_product(name):
    model = family(name)
    maps = explain.attention_maps(model, IMAGE, lazy=True)
    for block, attention in zip(chosen_blocks(model), maps, strict=True):
        queries, keys, first = map_grids(model, block, attention.shape)
        assert attention.shape[2] == first + queries[0] * queries[1]
        assert attention.shape[3] == first + keys[0] * keys[1]
    for function in (explain.relevance, explain.class_relevance, explain.gradient_rollout):
        with pytest.raises(ValueError, match=r"hierarchical.*Use explain.grad_cam\(model"):
            function(model, IMAGE)
    assert explain.grad_cam(model, IMAGE, [0, 1]).shape == (1, 2, *model.backbone.grid_size)
    page = explain.page(model, IMAGE)
    assert '"method": "Grad-CAM"' in page.html and '"rollout"' not in page.html.split("<script>")[0]


@pytest.mark.parametrize("name", ["MLPMixer", "ConvNeXt V2"])
def test_without_attention_there_is_grad_cam(name):
    model = family(name)
    assert explain.grad_cam(model, IMAGE, 0).shape == (1, *model.backbone.grid_size)
    for function in (explain.attention_maps, explain.class_relevance, explain.page):
        with pytest.raises(ValueError, match="need a classifier with attention blocks"):
            function(model, IMAGE)

"""Maps for a class: the numbers of plain PyTorch, on any backend, and what they promise."""

import functools

import goldens
import keras
import numpy as np
import pytest
from keras import ops

from keras_vit import DeiT, MLPMixer, ViT, explain, from_preset
from keras_vit.images import ImageConverter, ImagePreprocessor

with np.load(goldens.HERE / "explain.npz") as file:
    GOLDEN = {tuple(key.split("/")): value for key, value in file.items()}
CLASSES, STEPS = (1, 4), 8  # as in make_explain.py
FUNCTIONS = {
    "relevance": explain.class_relevance,
    "gradient_rollout": explain.gradient_rollout,
    "grad_cam": explain.grad_cam,
    "input_x_gradient": explain.input_x_gradient,
    "integrated_gradients": functools.partial(explain.integrated_gradients, steps=STEPS),
}


def given(x):
    """A preprocessor of what is normalised already."""
    return np.asarray(x, "float32")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("goldens")
    return {n: goldens.repository(n, folder / n) for n in {name for name, _ in GOLDEN}}


@pytest.mark.parametrize("name", sorted({name for name, _ in GOLDEN}))
def test_maps_for_classes_are_those_of_plain_pytorch(name, repositories):
    model = from_preset(repositories[name])
    model.preprocessor = given
    for (golden, method), wanted in GOLDEN.items():
        if golden == name:
            found = FUNCTIONS[method](model, goldens.arrays(name)["x"], CLASSES)
            scale = np.abs(wanted).max()
            assert found.shape == wanted.shape and scale > 0, method
            np.testing.assert_allclose(found, wanted, atol=1e-5 * max(scale, 1), err_msg=method)
            differ = np.abs(wanted[:, 0] - wanted[:, 1]).max()
            assert differ > 1e-3 * scale, f"{method} says the same of both classes"


TINY = {"image_size": (16, 32), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
LABELS = ["cat", "dog", "emu", "fox", "gnu"]


def classifier(cls=ViT, num_classes=5, dtype=None, labels=LABELS, pooling="token", **trunk):
    keras.utils.set_random_seed(0)
    backbone = cls.backbone_cls(**TINY, **trunk, dtype=dtype)
    preprocessor = ImagePreprocessor(ImageConverter(backbone.image_size, crop_mode="squash"))
    labels = labels if num_classes == 5 else None
    model = cls(backbone, num_classes, preprocessor=preprocessor, labels=labels, pooling=pooling)
    random = np.random.default_rng(1)
    model.set_weights(
        [w + random.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    return model


def pictures(count=2):
    return list(np.random.default_rng(2).integers(0, 256, (count, 20, 30, 3), "uint8"))


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_classes_by_index_name_row_and_default(function, model):
    images = pictures()
    every = function(model, images, [0, 1, 2, 3, 4])
    assert every.shape[:2] == (2, 5) and every.dtype == np.float32
    tolerance = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(function(model, images, "emu"), every[:, 2], **tolerance)
    best = model.predict(images, verbose=0).argmax(-1)
    by_default = function(model, images)
    np.testing.assert_allclose(by_default, every[[0, 1], best], **tolerance)
    rows = np.array([[3, 0], [1, 1]])
    np.testing.assert_allclose(function(model, images, rows), every[[[0], [1]], rows], **tolerance)


def test_top_classes_are_those_of_classify(model):
    found = explain.top_classes(model, pictures(), top=3)
    named = [[name for name, _ in best] for best in model.classify(pictures(), top=3)]
    assert [[LABELS[i] for i in row] for row in found] == named


@pytest.mark.parametrize(
    "classes, message",
    [
        (5, "numbers from 0 to 4. Received: 5"),
        (-1, "numbers from 0 to 4"),
        ("ca", "None of the model's classes is named 'ca'. There are: cat."),
        ([], "at least one class"),
        (np.array([[0]]), "a row for each of the 2 images. Received: 1 rows"),
    ],
)
def test_unknown_classes(classes, message, model):
    with pytest.raises(ValueError, match=message):
        explain.grad_cam(model, pictures(), classes)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_model_without_a_head_has_no_classes(function):
    with pytest.raises(ValueError, match="num_classes=0"):
        function(classifier(num_classes=0), pictures())


def test_a_model_without_attention_has_grad_cam_and_says_so():
    backbone = MLPMixer.backbone_cls(image_size=16, patch_size=8, embed_dim=8, depth=1)
    preprocessor = ImagePreprocessor(ImageConverter(16))
    mixer = MLPMixer(backbone, 3, preprocessor=preprocessor, pooling="avg")
    assert explain.grad_cam(mixer, pictures(), [0, 1]).shape == (2, 2, 2, 2)
    with pytest.raises(ValueError, match="attention blocks"):
        explain.class_relevance(mixer, pictures())


@pytest.mark.parametrize("method", ["relevance", "grad_cam"])
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_gives_nearly_the_same(dtype, method, model):
    half = classifier(dtype=dtype)
    wanted, found = (FUNCTIONS[method](m, pictures(), 1) for m in (model, half))
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("method", FUNCTIONS)
def test_lora_and_frozen_models_are_explained_as_others(method, model):
    tuned = classifier()
    tuned.backbone.trainable = False
    wanted = FUNCTIONS[method](model, pictures(), 1)
    np.testing.assert_allclose(
        FUNCTIONS[method](tuned, pictures(), 1), wanted, rtol=1e-4, atol=1e-6
    )
    tuned.backbone.enable_lora(2)
    np.testing.assert_allclose(
        FUNCTIONS[method](tuned, pictures(), 1), wanted, rtol=1e-4, atol=1e-6
    )


def test_more_images_than_a_step_equal_single_ones(model):
    images = pictures(5)
    together = explain.class_relevance(model, images, "dog")
    alone = explain.class_relevance(model, images[4], "dog")
    np.testing.assert_allclose(together[4:], alone, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_are_complete(model):
    x = ops.convert_to_numpy(model.preprocessor(pictures()))
    logits = ops.convert_to_numpy(model(x)) - ops.convert_to_numpy(model(0 * x))
    found = explain.integrated_gradients(model, pictures(), range(5), steps=24)
    np.testing.assert_allclose(found.sum((2, 3)), logits, atol=0.01 * np.abs(logits).max())


def test_a_distilled_model_is_explained_by_both_heads():
    model = classifier(DeiT, distillation_token=True)
    cls, dist = (model.get_layer(name) for name in ("head", "head_dist"))
    both = explain.grad_cam(model, pictures(), 0)
    dist.kernel.assign(ops.zeros_like(dist.kernel))
    assert np.abs(explain.grad_cam(model, pictures(), 0) - both).max() > 1e-4
    cls.kernel.assign(ops.zeros_like(cls.kernel))
    np.testing.assert_array_equal(explain.grad_cam(model, pictures(), 0), 0)


def test_a_nan_is_said():
    model = classifier()
    model.set_weights([w * np.nan for w in model.get_weights()])
    with pytest.raises(ValueError, match="NaN"):
        explain.grad_cam(model, pictures(), 0)

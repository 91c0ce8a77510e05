"""Feature maps at several scales: timm's stages, and encoders of KerasHub's models."""

import goldens
import keras
import keras_hub
import numpy as np
import pytest

import keras_vit
from keras_vit import models
from keras_vit.models.base import PyramidBackbone

SIZE = (64, 96)
STAGES = {"image_size": SIZE, "depths": (1, 1, 1, 1)}
SWIN = {**STAGES, "embed_dim": 8, "num_heads": (1, 1, 2, 2), "window_size": 2}
COATNET = {**STAGES, "embed_dim": (8, 12, 16, 20), "stem_width": (8, 8), "dim_head": 4}
PVT = {
    **STAGES,
    "embed_dims": (8, 12, 16, 20),
    "num_heads": (1, 1, 2, 2),
    "sr_ratios": (4, 2, 1, 1),
    "mlp_ratios": (2, 2, 2, 2),
}
BACKBONES = {
    "ConvNeXtBackbone": {**STAGES, "dims": (8, 12, 16, 20)},
    "PVTBackbone": PVT,
    "PVTv1Backbone": PVT,
    "SwinBackbone": SWIN,
    "SwinV2Backbone": SWIN,
    "CoAtNetBackbone": COATNET,
    "MaxViTBackbone": COATNET,
}
VIT = {"image_size": SIZE, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
ENCODERS = [*BACKBONES, "SimplePyramid"]


def encoder(name):
    keras.utils.set_random_seed(0)
    if name == "SimplePyramid":
        return keras_vit.SimplePyramid(keras_vit.ViTBackbone(**VIT), width=12)
    return getattr(keras_vit, name)(**BACKBONES[name])


def images(size=SIZE):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


def check_training(model, x, y):
    """Train one step. The encoder's first weights change, and many others; at first, the
    zero gains of Swin V2's norms hold some back."""
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.fit(x, y, batch_size=2, shuffle=False, verbose=0)
    after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    changed = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed[0] and np.mean(changed) > 0.3


# The maps are the stages' outputs: a norm that ends the backbone is not read.
UNREAD = pytest.mark.filterwarnings("ignore:Gradients do not exist for variables .'norm")


def test_every_pyramid_backbone_is_tested():
    classes = {name: getattr(models, name) for name in models.__all__}
    found = {name for name, cls in classes.items() if issubclass(cls, PyramidBackbone)}
    assert found == set(BACKBONES)


STAGED = [name for name, keys in goldens.NAMES.items() if "P2" in keys]


@pytest.mark.parametrize("name", STAGED)
def test_the_maps_are_the_stages_of_timm(name, tmp_path):
    golden = goldens.arrays(name)
    backbone = keras_vit.from_preset(goldens.repository(name, tmp_path)).backbone
    maps = keras.Model(backbone.input, backbone.pyramid_outputs)(golden["x"])
    assert set(maps) == {"P2", "P3", "P4", "P5"}
    for level, found in maps.items():
        found = keras.ops.convert_to_numpy(found)
        wanted = golden[level] if level in golden else golden["features"]  # no norm follows
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_each_level_has_half_the_resolution_of_the_one_before(name):
    for level, x in encoder(name).pyramid_outputs.items():
        scale = 2 ** int(level[1:])
        assert x.shape[1:3] == (SIZE[0] // scale, SIZE[1] // scale)


# The norm after the last map is not read.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", ENCODERS)
def test_a_retinanet_takes_a_training_step(name):
    backbone = keras_hub.models.RetinaNetBackbone(
        encoder(name), min_level=3, max_level=5, use_p5=False, image_shape=(*SIZE, 3)
    )
    detector = keras_hub.models.RetinaNetObjectDetector(
        backbone, num_classes=3, bounding_box_format="yxyx", pre_logits_num_conv_layers=1
    )
    detector.compile(optimizer=keras.optimizers.SGD(0.01), run_eagerly=True)
    boxes = np.array([[[4, 4, 30, 40]], [[10, 20, 60, 90]]], "float32")
    check_training(detector, images(), {"boxes": boxes, "labels": np.array([[1], [2]])})


# It reads two of the maps.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", ENCODERS)
def test_a_deeplab_takes_a_training_step(name):
    backbone = keras_hub.models.DeepLabV3Backbone(
        encoder(name),
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[1],
        low_level_feature_key="P2",
        projection_filters=8,
        image_shape=(*SIZE, 3),
    )
    segmenter = keras_hub.models.DeepLabV3ImageSegmenter(backbone, num_classes=3)
    loss = keras.losses.SparseCategoricalCrossentropy()
    segmenter.compile(keras.optimizers.SGD(0.01), loss, metrics=[], run_eagerly=True)
    masks = np.random.default_rng(1).integers(0, 3, (2, *SIZE, 1))
    check_training(segmenter, images(), masks)


# The norm after the last map is not read.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", BACKBONES)
def test_a_segformer_takes_a_training_step(name):
    made = keras_vit.SegFormerEncoder(encoder(name))
    assert list(made.pyramid_outputs) == ["P1", "P2", "P3", "P4"]
    backbone = keras_hub.models.SegFormerBackbone(made, projection_filters=8)
    segmenter = keras_hub.models.SegFormerImageSegmenter(backbone, num_classes=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A large rate, as a layer scale of 1e-6 makes small gradients.
    segmenter.compile(keras.optimizers.SGD(10.0), loss, metrics=[], run_eagerly=True)
    masks = np.random.default_rng(1).integers(0, 3, (2, *SIZE))
    check_training(segmenter, images(), masks)


@pytest.mark.parametrize("name", ["ConvNeXtBackbone", "PVTBackbone"])
def test_a_retinanet_for_images_of_any_size(name):
    made = getattr(keras_vit, name)(**{**BACKBONES[name], "image_size": None})
    backbone = keras_hub.models.RetinaNetBackbone(made, min_level=3, max_level=5, use_p5=False)
    for size in (SIZE, (96, 64)):
        assert backbone(images(size))["P4"].shape == (2, size[0] // 16, size[1] // 16, 256)


@pytest.mark.parametrize("name", ["SimplePyramid", "SegFormerEncoder"])
def test_a_pyramid_is_saved(name, tmp_path):
    made = encoder("SimplePyramid" if name == "SimplePyramid" else "ConvNeXtBackbone")
    made = made if name == "SimplePyramid" else keras_vit.SegFormerEncoder(made)
    made.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(run(again, images()), run(made, images()))
    assert list(again.pyramid_outputs) == list(made.pyramid_outputs)
    backbone = keras_hub.models.RetinaNetBackbone if name == "SimplePyramid" else None
    if backbone:
        whole = backbone(made, min_level=3, max_level=5, use_p5=False, image_shape=(*SIZE, 3))
        whole.save(tmp_path / "whole.keras")
        found = keras.models.load_model(tmp_path / "whole.keras")(images())["P4"]
        wanted = whole(images())["P4"]
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(x) for x in (found, wanted)))


def test_a_simple_pyramid_is_that_of_vitdet():
    """Without the patches' position in the sequence the maps would be shuffled."""
    pyramid = encoder("SimplePyramid")
    x = images()
    tokens = run(pyramid.backbone, x)[:, 1:].reshape(2, 4, 6, 16)
    maps = keras.Model(pyramid.input, pyramid.pyramid_outputs)(x)
    layers = {name: pyramid.get_layer(name) for name in ("p5_conv_1x1", "p5_conv_3x3")}
    pooled = tokens.reshape(2, 2, 2, 3, 2, 16).max((2, 4))
    found = keras.ops.convert_to_numpy(layers["p5_conv_1x1"](pooled))
    found = run(pyramid.get_layer("p5_norm_1x1"), found)
    found = run(pyramid.get_layer("p5_norm_3x3"), layers["p5_conv_3x3"](found))
    np.testing.assert_allclose(found, keras.ops.convert_to_numpy(maps["P5"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 8}, r"tokens of 16 x 16 pixels.*\(8, 12\) patches"),
        ({"image_size": None, "grid_size": (4, 6)}, "image_size=None"),
    ],
)
def test_what_a_simple_pyramid_needs(options, message):
    with pytest.raises(ValueError, match=message):
        keras_vit.SimplePyramid(keras_vit.ViTBackbone(**{**VIT, **options}))


def test_a_simple_pyramid_is_not_for_maps():
    with pytest.raises(ValueError, match="a feature map"):
        keras_vit.SimplePyramid(encoder("ConvNeXtBackbone"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (8, 8, 16, 20)}, "P2 of 8, P3 of 8"),
        ({"image_size": None}, "image_size=None"),
    ],
)
def test_what_a_segformer_needs(options, message):
    made = keras_vit.ConvNeXtBackbone(**{**BACKBONES["ConvNeXtBackbone"], **options})
    with pytest.raises(ValueError, match=message):
        keras_vit.SegFormerEncoder(made)

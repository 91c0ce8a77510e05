"""PVT: what is its own, beside the tests of all families."""

import json

import goldens
import keras
import keras_hub
import numpy as np
import pytest
from keras_hub.src.tests import test_case
from test_models import close, difference, run, sprung
from tiny_models import FAMILIES, OPTIONS, classifier, pictures

from keras_vit import PVT, PVTBackbone, PVTv1, PVTv1Backbone, explain, from_preset
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.layers.pool import adaptive_average
from keras_vit.weights import WeightsError

TINY = {**OPTIONS[PVT], "drop_path_rate": 0.2}
GOLDENS = ["pvt-plain", "pvt-linear", "hf-pvt_v2", "hf-pvt_v2-linear"]


@pytest.mark.parametrize("name", GOLDENS)
def test_a_model_of_any_size_computes_the_same(name, tmp_path):
    golden = goldens.arrays(name)
    model = from_preset(goldens.repository(name, tmp_path), image_size=None)
    close(run(model, golden["x"]), golden["logits"])
    close(run(model.backbone, golden["x"]), golden["features"])
    if "resized" in golden:
        close(run(model, goldens.other_size(golden["x"])), golden["resized"])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    again.set_weights(model.get_weights())
    close(run(again, golden["x"]), golden["logits"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pvt-plain", {"conv_norm_eps": 1e-6}),  # timm has two epsilons
        ("pvt-plain", {"norm_eps": 1e-5}),
        ("pvt-linear", {"conv_norm_eps": 1e-6}),
        ("pvt-linear", {"norm_eps": 1e-5}),
        ("hf-pvt_v2", {"conv_norm_eps": 1e-5}),  # transformers has one
        ("hf-pvt_v2", {"norm_eps": 1e-5}),
        ("hf-pvt-options", {"norm_eps": 1e-6}),
        ("hf-pvt-options", {"activation": "gelu"}),
        ("hf-pvt_v2-linear", {"activation": "gelu"}),
        ("pvt-plain", {"num_heads": (2, 2, 3, 2)}),
    ],
)
def test_a_wrong_option_loads_and_gives_other_numbers(name, options, tmp_path):
    assert difference(sprung(name, tmp_path, **options), goldens.arrays(name)) > 1e-4


def values_before_keys(arrays):
    key = "stages.1.blocks.0.attn.kv.weight"
    arrays[key] = np.roll(arrays[key], len(arrays[key]) // 2, axis=0)


def swapped_values(arrays):
    key, value = (f"pvt.encoder.block.1.0.attention.self.{n}.weight" for n in ("key", "value"))
    arrays[key], arrays[value] = arrays[value], arrays[key]


def token_last(arrays):
    key = "pvt.encoder.patch_embeddings.3.position_embeddings"
    arrays[key] = np.roll(arrays[key], -1, axis=1)


@pytest.mark.parametrize(
    ("name", "misread"),
    [
        ("pvt-plain", values_before_keys),
        ("pvt-linear", values_before_keys),
        ("hf-pvt", swapped_values),
        ("hf-pvt", token_last),
    ],
)
def test_a_misread_tensor_loads_and_gives_other_numbers(name, misread, tmp_path):
    assert difference(sprung(name, tmp_path, misread), goldens.arrays(name)) > 1e-4


def same_padding(monkeypatch):
    """TensorFlow's: less before than after."""

    def pad(x, size, strides, width):
        lengths = [max((-(-n // strides) - 1) * strides + size - n, 0) for n in x.shape[1:3]]
        return keras.ops.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in lengths), (0, 0)))

    monkeypatch.setattr("keras_vit.layers.conv.pad", pad)


def interpolated(monkeypatch):
    """The nearest values instead of means over cells."""

    def resize(x, size):
        return keras.ops.image.resize(x, (size, size), "nearest", data_format="channels_last")

    monkeypatch.setattr("keras_vit.layers.reduction.adaptive_average", resize)


@pytest.mark.parametrize(
    ("name", "spring"), [("pvt-plain", same_padding), ("pvt-linear", interpolated)]
)
def test_another_reading_of_the_architecture_gives_other_numbers(
    name, spring, monkeypatch, tmp_path
):
    spring(monkeypatch)
    assert difference(sprung(name, tmp_path), goldens.arrays(name)) > 1e-4


def test_the_linear_variant_has_a_relu_before_the_convolution(tmp_path):
    golden = goldens.arrays("pvt-linear")
    model = from_preset(goldens.repository("pvt-linear", tmp_path))
    close(run(model, golden["x"]), golden["logits"])
    for block in model.backbone.blocks:
        assert block.mlp.extra_relu
        block.mlp.extra_relu = False
    assert np.abs(run(model, golden["x"]) - golden["logits"]).max() > 1e-4


@pytest.mark.parametrize("size", [(14, 21), (7, 7), (8, 11), (4, 6), (3, 20)])
def test_adaptive_means_are_those_of_a_loop(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    expected = np.empty((2, 7, 7, 3), "float32")
    for i in range(7):
        for j in range(7):
            (top, bottom), (left, right) = (
                (n * k // 7, -(-(n + 1) * k // 7)) for n, k in zip((i, j), size, strict=True)
            )
            expected[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    found = keras.ops.convert_to_numpy(adaptive_average(keras.ops.convert_to_tensor(x), 7))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["hf-pvt", "hf-pvt-options"])
def test_positions_are_resized_as_in_the_papers_code(name, tmp_path):
    golden = goldens.arrays(name)
    model = from_preset(goldens.repository(name, tmp_path), image_size=64)
    close(run(model, np.tile(golden["x"], (1, 2, 2, 1))), golden["resized"])
    for size, message in ((None, "images of one size only"), (40, "32. Received: 40 pixels")):
        with pytest.raises(ValueError, match=message):
            from_preset(goldens.repository(name, tmp_path), image_size=size)


@pytest.mark.parametrize("name", ["pvt-plain", "pvt-linear"])
def test_timm_reads_what_is_saved(name, tmp_path):
    model = from_preset(goldens.repository(name, tmp_path))
    model.save_to_timm(tmp_path / "saved")
    golden = goldens.arrays(name)
    again = from_preset(tmp_path / "saved")
    close(run(again, golden["x"]), golden["logits"])
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architecture"] in ("pvt_v2_b0", "pvt_v2_b2_li")
    assert "img_size" not in config["model_args"]


def test_what_timm_does_not_have_is_said(tmp_path):
    model = from_preset(goldens.repository("hf-pvt_v2", tmp_path / "2"))
    with pytest.raises(ValueError, match="except for the epsilon of its norms, 1e-05 there"):
        model.save_to_timm(tmp_path / "saved")
    model.save_to_timm(tmp_path / "saved", allow_epsilon=True)
    model = from_preset(goldens.repository("hf-pvt", tmp_path / "1"))
    with pytest.raises(ValueError, match="timm has no PVTv1"):
        model.save_to_timm(tmp_path / "not saved")
    with pytest.raises(ValueError, match="transformers has no class for a PVTv1"):
        model.save_to_transformers(tmp_path / "not saved")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [4, 2, 2, 4]}, r"strides must be \[4, 2, 2, 2\]"),
        ({"num_encoder_blocks": 3}, "num_encoder_blocks must be 4"),
        ({"mlp_ratios": [1, 2, "x", 2]}, "mlp_ratios must be a number"),
        ({"depths": [1, 2, 1]}, "one value for each stage"),
        ({"hidden_act": "tanh"}, "hidden_act"),
    ],
)
@pytest.mark.parametrize("name", ["hf-pvt", "hf-pvt_v2"])
def test_a_config_of_another_structure_is_refused(name, changes, message, tmp_path):
    directory = goldens.repository(name, tmp_path, **changes)
    with pytest.raises((ValueError, WeightsError), match=message):
        from_preset(directory)


def test_an_image_that_is_too_small_is_refused():
    PVTBackbone(**{**TINY, "image_size": 13})
    with pytest.raises(ValueError, match="Height and width must be 13 pixels or more"):
        PVTBackbone(**{**TINY, "image_size": (64, 12)})
    with pytest.raises(ValueError, match="too small"):
        PVTBackbone.grid({**TINY, "linear": False, "image_size": 12})
    PVTBackbone(**{**TINY, "image_size": 5, "linear": True})
    with pytest.raises(ValueError, match="The last stage of PVTv1 has no reduction"):
        PVTv1Backbone(**{**TINY, "sr_ratios": (4, 2, 1, 2)})


V1 = {**TINY, "image_size": (32, 64)}


def test_kerashubs_backbone_test():
    options = {**TINY, "image_size": (33, 64)}
    x = np.random.default_rng(0).normal(size=(2, 33, 64, 3)).astype("float32")
    case = test_case.TestCase()
    case.run_backbone_test(PVTBackbone, options, x, expected_output_shape=(2, 2, 2, 48))


@pytest.mark.parametrize(
    ("cls", "options"), [(PVT, TINY), (PVT, {**TINY, "linear": True}), (PVTv1, V1)]
)
def test_what_is_saved_comes_back(cls, options, tmp_path):
    backbone = cls.backbone_cls(**options)
    height, width = backbone.image_size
    preprocessor = ImagePreprocessor(ImageConverter((height, width)))
    model = cls(backbone, 3, preprocessor=preprocessor)
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype("float32")
    model.save(tmp_path / "m.keras")
    model.save_to_preset(tmp_path / "preset")
    for again in (keras.models.load_model(tmp_path / "m.keras"), from_preset(tmp_path / "preset")):
        np.testing.assert_allclose(run(again, x), run(model, x), atol=1e-6)
    maps = keras.Model(backbone.input, backbone.pyramid_outputs).output
    for level, found in maps.items():
        stride = 2 ** int(level[1:])
        assert found.shape[1:3] == (-(-height // stride), -(-width // stride)), level


@pytest.mark.parametrize("name", ["hf-pvt", "hf-pvt_v2-linear"])  # the others: test_models.py
def test_every_weight_has_a_gradient(name, tmp_path):
    golden = goldens.arrays(name)
    model = from_preset(goldens.repository(name, tmp_path))
    model.preprocessor = None  # a golden's pictures are normalised
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.compile(optimizer=keras.optimizers.SGD(10.0), run_eagerly=True)
    model.train_on_batch(golden["x"], np.array([0, 4]))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(keras.ops.convert_to_numpy(variable) - old).max() > 0, variable.path


def array(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


@pytest.mark.parametrize(
    ("family", "dtype"), [("PVT", "float32"), ("PVT, linear", "mixed_bfloat16")]
)
def test_maps_are_those_that_the_block_applies(family, dtype):
    model = classifier(**FAMILIES[family], dtype=dtype)
    maps = explain.attention_maps(model, pictures())
    keys = [49] * 4 if "linear" in family else [4, 4, 4, 1]
    heads, sides = (1, 2, 3, 3), (8, 4, 2, 1)
    shapes = [(3, h, s * s, k) for h, s, k in zip(heads, sides, keys, strict=True)]
    assert [m.shape for m in maps] == shapes
    x = model.preprocessor(pictures())
    for block, found in zip(model.backbone.blocks, maps, strict=True):
        inputs = block.norm1(keras.Model(model.input, block.input)(x))
        v = array(block.attn.heads(inputs)[2])
        mixed = np.moveaxis(found @ v, 1, 2).reshape(inputs.shape)
        by_maps, by_block = map(array, (block.attn.proj(mixed), block.attn(inputs)))
        np.testing.assert_allclose(by_maps, by_block, atol=1e-5 if dtype == "float32" else 0.1)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("function", [explain.relevance, explain.overlay])
def test_rollout_is_for_maps_of_one_size(function):
    model = classifier(**FAMILIES["PVT"])
    with pytest.raises(ValueError, match=r"PVT is hierarchical.*attention_maps\(model, images, b"):
        function(model, pictures())
    with pytest.raises(ValueError, match="maps of a hierarchical model differ in size"):
        explain.rollout(explain.attention_maps(model, pictures()))
    with pytest.raises(ValueError, match="maps of a hierarchical model differ in size"):
        explain.rollout(explain.attention_maps(model, pictures(), blocks=1))


def test_any_pooling(tmp_path):
    directory = goldens.repository("pvt-plain", tmp_path)
    for size in (32, None):
        model = from_preset(directory, pooling="map", num_classes=2, image_size=size)
        assert run(model, np.zeros((1, 32, 32, 3), "float32")).shape == (1, 2)
    with pytest.raises(ValueError, match="needs a class token"):
        from_preset(directory, pooling="token")


def test_lora_goes_to_queries_keys_and_values():
    model = classifier(**FAMILIES["PVT"])
    model.backbone.enable_lora(2)
    names = {path.split("/")[-2] for path in (v.path for v in model.backbone.trainable_variables)}
    assert names == {"q", "kv"}


@pytest.mark.parametrize("family", ["PVT", "PVT, linear"])
def test_kerashubs_models_take_images_of_any_size(family):
    options = {k: v for k, v in FAMILIES[family].items() if k not in ("cls", "pooling")}
    backbone = PVTBackbone(**{**TINY, **options, "image_size": None})
    encoder = keras_hub.models.RetinaNetBackbone(backbone, 3, 5, use_p5=True)
    assert set(encoder.pyramid_outputs) == {"P3", "P4", "P5"}
    x = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype("float32")
    segmenter = keras_hub.models.DeepLabV3ImageSegmenter(
        keras_hub.models.DeepLabV3Backbone(
            backbone,
            low_level_feature_key="P2",
            spatial_pyramid_pooling_key="P5",
            upsampling_size=8,
            dilation_rates=[6, 12, 18],
        ),
        num_classes=2,
    )
    assert segmenter(x).shape == (1, 64, 96, 2)

"""Presets that KerasHub's own ViT and DeiT saved, loaded as ours: equal logits, equal pixels."""

import json
import shutil

import h5py
import keras
import keras_hub
import numpy as np
import pytest

import keras_vit
from keras_vit.hub import MissingFile
from keras_vit.weights import WeightsError

SIZES = {"image_shape": (24, 16, 3), "patch_size": 8, "num_layers": 2, "num_heads": 2}
SIZES |= {"hidden_dim": 8, "layer_norm_epsilon": 1e-5}
X = np.random.default_rng(1).normal(size=(3, 24, 16, 3)).astype("float32")


def run(model, x=X):
    return keras.ops.convert_to_numpy(model(x))


def backbone(kind, **options):
    """A KerasHub backbone with weights that make outputs differ."""
    keras.utils.set_random_seed(0)
    if kind == "vit":
        cls, hidden = keras_hub.models.ViTBackbone, {"mlp_dim": 12}
    else:
        cls, hidden = keras_hub.models.DeiTBackbone, {"intermediate_dim": 12}
    return shaken(cls(**{**SIZES, **hidden, **options}))


def classifier(kind, trunk=None, **options):
    models = {
        "vit": keras_hub.models.ViTImageClassifier,
        "deit": keras_hub.models.DeiTImageClassifier,
    }
    return shaken(models[kind](trunk or backbone(kind), 5, **options))


def shaken(model):
    random = np.random.default_rng(0)
    noise = [random.normal(0, 0.15, w.shape) for w in model.get_weights()]
    model.set_weights(
        [(w + n).astype(w.dtype) for w, n in zip(model.get_weights(), noise, strict=True)]
    )
    return model


def preprocessor(kind, **options):
    if kind == "vit":
        converter = keras_hub.layers.ViTImageConverter(image_size=(24, 16), **options)
        return keras_hub.models.ViTImageClassifierPreprocessor(converter)
    converter = keras_hub.layers.DeiTImageConverter(image_size=(24, 16), **options)
    return keras_hub.models.DeiTImageClassifierPreprocessor(converter)


@pytest.fixture(scope="module", params=["vit", "deit"])
def saved(request, tmp_path_factory):
    """The kind, KerasHub's classifier and its preset; do not write there."""
    directory = tmp_path_factory.mktemp("kerashub") / request.param
    model = classifier(request.param)
    model.save_to_preset(str(directory))
    return request.param, model, directory


@pytest.fixture
def copied(saved, tmp_path):
    """The preset's directory, to write there."""
    return shutil.copytree(saved[2], tmp_path / "preset")


def edit(path, *keys, **fields):
    """Change fields of a JSON file, of the object under those keys."""
    content = json.loads(path.read_text())
    found = content
    for key in keys:
        found = found[key]
    found.update(fields)
    path.write_text(json.dumps(content))


# --- The same numbers ---


def test_logits_and_tokens_are_kerashubs(saved):
    kind, theirs, directory = saved
    model = keras_vit.from_preset(directory)
    assert type(model) is {"vit": keras_vit.ViT, "deit": keras_vit.DeiT}[kind]
    assert model.num_classes == 5 and model.image_size == (24, 16)
    assert model.source == str(directory)
    np.testing.assert_allclose(run(model), run(theirs), atol=1e-5)
    np.testing.assert_allclose(run(model.backbone), run(theirs.backbone), atol=1e-5)
    count = sum(w.size for w in theirs.get_weights())
    assert sum(w.size for w in model.get_weights()) == count


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_other_poolings(kind, tmp_path):
    theirs = classifier(kind, pooling="gap")
    theirs.save_to_preset(str(tmp_path))
    model = keras_vit.from_preset(tmp_path)
    assert model.pooling == "avg" and model.pool_include_prefix
    np.testing.assert_allclose(run(model), run(theirs), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ({}, {"intermediate_dim": 6, "dropout": 0.2}),
        ({"use_class_token": False}, {"pooling": "gap"}),
        ({"use_patch_bias": False}, {}),
        ({"use_mha_bias": False}, {}),
        ({"use_mlp_bias": False}, {}),
        ({"use_mha_bias": False, "use_mlp_bias": False}, {}),
        ({"patch_size": (4, 4), "num_layers": 12}, {}),  # blocks 10 and 11
        ({"image_shape": (16, 16, 1)}, {}),
    ],
)
def test_every_option_of_vit(options, task, tmp_path):
    theirs = classifier("vit", backbone("vit", **options), **task)
    theirs.save_to_preset(str(tmp_path))
    model = keras_vit.from_preset(tmp_path)
    x = np.random.default_rng(2).normal(size=(2, *theirs.backbone.image_shape)).astype("float32")
    np.testing.assert_allclose(run(model, x), run(theirs, x), atol=1e-5)
    assert model.representation_size == task.get("intermediate_dim")
    assert model.drop_rate == task.get("dropout", 0.0)


def test_the_head_gives_logits_where_kerashubs_gives_probabilities(tmp_path):
    theirs = classifier("vit", activation="softmax")
    theirs.save_to_preset(str(tmp_path))
    logits = keras.ops.softmax(run(keras_vit.from_preset(tmp_path)))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(logits), run(theirs), atol=1e-5)


def test_dropout_is_that_of_the_preset(tmp_path):
    classifier("vit", backbone("vit", dropout_rate=0.1, attention_dropout=0.3)).save_to_preset(
        str(tmp_path)
    )
    options = keras_vit.from_preset(tmp_path).backbone.options
    assert options["drop_rate"] == options["pos_drop_rate"] == 0.1
    assert options["attn_drop_rate"] == 0.3


def test_weights_in_bfloat16(tmp_path):
    theirs = classifier("vit", backbone("vit", dtype="bfloat16"))
    theirs.save_to_preset(str(tmp_path))
    model = keras_vit.from_preset(tmp_path)
    kernel = theirs.backbone.get_layer("vit_patching_and_embedding").patch_embedding.kernel
    found = model.get_layer("patch_embed").proj.kernel
    assert found.dtype == "float32"
    np.testing.assert_array_equal(
        *(keras.ops.convert_to_numpy(keras.ops.cast(k, "float32")) for k in (found, kernel))
    )


# --- Changes at load time ---


def test_another_head_or_none(saved):
    _, theirs, directory = saved
    fresh, none = (keras_vit.from_preset(directory, num_classes=n) for n in (2, 0))
    assert run(fresh).shape == (3, 2)
    np.testing.assert_allclose(run(none), run(theirs.backbone)[:, 0], atol=1e-5)
    np.testing.assert_allclose(run(fresh.backbone), run(theirs.backbone), atol=1e-5)


def test_another_size_is_resampled_as_in_the_other_layouts(saved, tmp_path):
    _, _, directory = saved
    model = keras_vit.from_preset(directory, image_size=(32, 40))
    assert model.image_size == model.preprocessor.image_converter.image_size == (32, 40)
    keras_vit.from_preset(directory).save_to_preset(tmp_path / "ours")
    wanted = keras_vit.from_preset(tmp_path / "ours", image_size=(32, 40))
    x = np.random.default_rng(2).normal(size=(2, 32, 40, 3)).astype("float32")
    np.testing.assert_array_equal(run(model, x), run(wanted, x))
    with pytest.raises(ValueError, match="multiple of the patch size 8"):
        keras_vit.from_preset(directory, image_size=(20, 16))


def test_timm_computes_the_same_at_another_size(timm, tmp_path):
    import torch

    classifier("vit", backbone("vit", layer_norm_epsilon=1e-6, mlp_dim=32)).save_to_preset(
        str(tmp_path / "kerashub")
    )
    keras_vit.from_preset(tmp_path / "kerashub").save_to_timm(tmp_path / "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True, img_size=(32, 40))
    model = keras_vit.from_preset(tmp_path / "kerashub", image_size=(32, 40))
    x = np.random.default_rng(2).normal(size=(2, 32, 40, 3)).astype("float32")
    with torch.no_grad():
        wanted = theirs.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(run(model, x), wanted, atol=1e-5)


def test_dtype(saved):
    _, theirs, directory = saved
    model = keras_vit.from_preset(directory, dtype="mixed_bfloat16")
    assert model.get_layer("blocks_0").compute_dtype == "bfloat16"
    np.testing.assert_allclose(run(model), run(theirs), atol=0.15)


def test_without_weights_no_file_of_them_is_needed(saved, copied):
    for path in copied.glob("*.h5"):
        path.unlink()
    model = keras_vit.from_preset(copied, load_weights=False)
    assert model.num_classes == 5 and np.abs(run(model) - run(saved[1])).max() > 0.01


def test_the_class_may_be_named(saved):
    kind, _, directory = saved
    assert type(keras_vit.ViT.from_preset(directory, load_weights=False)).__name__.lower() == kind
    if kind == "vit":
        with pytest.raises(ValueError, match="of ViT, not of DeiT"):
            keras_vit.DeiT.from_preset(directory)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_a_backbone_has_no_head(kind, tmp_path):
    theirs = backbone(kind)
    theirs.save_to_preset(str(tmp_path))
    model = keras_vit.from_preset(tmp_path)
    assert model.num_classes == 0
    np.testing.assert_allclose(run(model), run(theirs)[:, 0], atol=1e-5)
    fresh = keras_vit.from_preset(tmp_path, num_classes=4)
    assert run(fresh).shape == (3, 4) and not hasattr(fresh, "head_dist")
    np.testing.assert_allclose(run(fresh.backbone), run(theirs), atol=1e-5)


def test_a_backbone_without_a_class_token_is_pooled(tmp_path):
    theirs = backbone("vit", use_class_token=False)
    theirs.save_to_preset(str(tmp_path))
    model = keras_vit.from_preset(tmp_path)
    np.testing.assert_allclose(run(model), run(theirs).mean(1), atol=1e-5)


def test_it_saves_as_ours(saved, tmp_path):
    model = keras_vit.from_preset(saved[2])
    model.save_to_preset(tmp_path / "ours")
    np.testing.assert_array_equal(run(keras_vit.from_preset(tmp_path / "ours")), run(model))


# --- Preprocessing ---

PICTURES = np.random.default_rng(3).integers(0, 256, (2, 24, 16, 3), dtype="uint8")


@pytest.mark.parametrize("kind", ["vit", "deit"])
@pytest.mark.parametrize(
    "numbers",
    [
        {"scale": 1 / 127.5, "offset": -1.0},
        {"scale": [0.017, 0.018, 0.0175], "offset": [-2.1, -2.0, -1.8]},
        {"scale": 1 / 255},
        {},
    ],
)
def test_pictures_of_the_models_size_become_kerashubs_floats(kind, numbers, tmp_path):
    theirs = classifier(kind, preprocessor=preprocessor(kind, **numbers))
    theirs.save_to_preset(str(tmp_path))
    model = keras_vit.from_preset(tmp_path)
    wanted = np.asarray(theirs.preprocessor(PICTURES), "float32")
    np.testing.assert_allclose(model.preprocessor(PICTURES), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        model.predict(PICTURES, verbose=0), theirs.predict(PICTURES, verbose=0), atol=1e-4
    )


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_other_pictures_are_resized_as_there_but_for_antialiasing(crop, interpolation, tmp_path):
    options = {"crop_to_aspect_ratio": crop, "interpolation": interpolation}
    classifier("vit", preprocessor=preprocessor("vit", **options)).save_to_preset(str(tmp_path))
    converter = keras_vit.from_preset(tmp_path).preprocessor.image_converter
    assert converter.crop_mode == ("center" if crop else "squash")
    assert converter.interpolation == interpolation
    rows, columns = np.mgrid[:96, :80] / 96
    waves = [np.sin(7 * rows + 5 * columns), np.cos(9 * columns), rows * columns]
    picture = (127.5 + 127 * np.stack(waves, -1)).astype("uint8")
    smooth = keras_hub.layers.ViTImageConverter(image_size=(24, 16), antialias=True, **options)
    wanted = np.asarray(smooth(picture), "float32")
    difference = np.abs(converter.pixels(picture) - wanted)
    assert difference.mean() < 0.5
    assert difference[2:-2, 2:-2].max() <= 1  # KerasHub crops first: that moves the edges a little


def test_without_a_converter_pixels_stay_as_they_are(saved):
    model = keras_vit.from_preset(saved[2])
    np.testing.assert_allclose(model.preprocessor(PICTURES), PICTURES, rtol=1e-6)


# --- What is missing or cannot be ---


@pytest.mark.parametrize("name", ["model.weights.h5", "task.weights.h5"])
def test_a_missing_file_of_weights_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(MissingFile, match=f"has no file {name}. It contains: "):
        keras_vit.from_preset(copied)


@pytest.mark.parametrize("name", ["model.weights.h5", "task.weights.h5"])
@pytest.mark.parametrize("kept", [0, 100, 3000])
def test_a_file_that_is_cut_off_is_named(copied, name, kept):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[:kept])
    with pytest.raises(WeightsError, match=f"{name} is not a complete Keras weights file"):
        keras_vit.from_preset(copied)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_weights_that_the_file_does_not_hold_itself(copied, compression):
    with h5py.File(copied / "model.weights.h5", "r+") as file:
        options = {"chunks": (4096, 4096), "compression": compression} if compression else {}
        file["layers"].create_dataset("big/vars/0", (1 << 14, 1 << 14), "float32", **options)
    with pytest.raises(WeightsError, match="big/vars/0 of .* has 1,073,741,824 bytes, of which"):
        keras_vit.from_preset(copied)


@pytest.mark.parametrize(
    "fields", [{"num_layers": 200}, {"hidden_dim": 65536}, {"mlp_dim": 60000}, {"num_layers": 3}]
)
def test_a_config_that_asks_for_more_than_the_files_hold(saved, copied, fields):
    if saved[0] == "deit" and "mlp_dim" in fields:
        fields = {"intermediate_dim": fields["mlp_dim"]}
    edit(copied / "config.json", "config", **fields)
    with pytest.raises(ValueError, match="do not fit the model|more than any known model"):
        keras_vit.from_preset(copied)


def test_what_does_not_fit_is_listed(copied):
    block = {"vit": "vi_t", "deit": "dei_t"}
    with h5py.File(copied / "model.weights.h5", "r+") as file:
        (name,) = [n for n in block.values() if f"{n}_encoder" in file["layers"]]
        encoder = file["layers"][f"{name}_encoder"]
        del encoder["layer_norm/vars/1"]
        del encoder[f"encoder_layers/{name}_encoder_block_1/mha/query_dense/vars/0"]
        encoder["strange/vars/0"] = np.zeros(3, "float32")
    with pytest.raises(WeightsError) as error:
        keras_vit.from_preset(copied)
    for text in ("norm.bias", "blocks.1.attn.query.weight", f"{name}_encoder/strange/vars/0"):
        assert text in str(error.value)


def test_numbers_of_another_kind_are_refused(copied):
    with h5py.File(copied / "task.weights.h5", "r+") as file:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = np.zeros((8, 5), "int32")
    with pytest.raises(WeightsError, match="dense/vars/0 of .* is not floating-point"):
        keras_vit.from_preset(copied)


@pytest.mark.parametrize(
    ("file", "keys", "fields", "message"),
    [
        (
            "config.json",
            [],
            {"registered_name": "keras_hub>ResNetBackbone"},
            "a preset of KerasHub's ResNetBackbone",
        ),
        ("config.json", ["config"], {"num_layers": -1}, "num_layers must be a whole number"),
        ("config.json", ["config"], {"image_shape": [24, 16]}, "height, width, channels"),
        ("config.json", ["config"], {"patch_size": [8, 4]}, "patches must be square"),
        ("config.json", ["config"], {"dropout_rate": 2}, "dropout_rate must be from 0"),
        ("config.json", [], {"config": {}}, "has no field"),
        ("task.json", ["config"], {"pooling": None}, "pooling must be one of token, gap"),
        ("task.json", ["config"], {"activation": "relu"}, "activation of task.json"),
        ("task.json", ["config"], {"num_classes": "5"}, "num_classes must be a whole number"),
        ("task.json", [], {"registered_name": "keras_hub>Other"}, "keras_hub>(ViT|DeiT)Image"),
        ("task.json", [], {"config": None}, "config of task.json must be an object"),
    ],
)
def test_a_config_that_describes_no_model_of_ours_says_why(copied, file, keys, fields, message):
    edit(copied / file, *keys, **fields)
    with pytest.raises(ValueError, match=message):
        keras_vit.from_preset(copied)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pad_to_aspect_ratio": True}, "image_converter.json has .* pad_to_aspect_ratio"),
        ({"variance": [0.1], "mean": [0.5]}, "image_converter.json has .* mean, variance"),
        ({"interpolation": "nearest"}, "interpolation must be one of"),
        ({"scale": 0}, "scale must be a positive number"),
        ({"scale": [1.0, 1.0]}, "scale must have 3 numbers. Received: 2"),
        ({"offset": "no"}, "offset must be a number"),
    ],
)
def test_preprocessing_that_has_no_counterpart_is_refused(fields, message, tmp_path):
    classifier("vit", preprocessor=preprocessor("vit")).save_to_preset(str(tmp_path))
    edit(tmp_path / "image_converter.json", "config", **fields)
    with pytest.raises(ValueError, match=message):
        keras_vit.from_preset(tmp_path)


def test_another_model_of_kerashub_is_named(tmp_path):
    keras_hub.models.VGGBackbone([1], [4], image_shape=(16, 16, 3)).save_to_preset(str(tmp_path))
    with pytest.raises(
        ValueError, match="a preset of KerasHub's VGGBackbone.* Load it with keras_hub"
    ):
        keras_vit.from_preset(tmp_path)

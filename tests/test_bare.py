"""Files without a config.json: what the tensors do not say is given, never guessed."""

import pathlib

import goldens
import keras
import numpy as np
import pytest
import tiny_checkpoints as tiny
from safetensors.numpy import load_file, save_file

import keras_vit

SIZES = {"image_size": 12, "patch_size": 4, "num_layers": 2, "hidden_dim": 16, "mlp_dim": 24}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def torchvision(timm):
    return pytest.importorskip("torchvision")


@pytest.fixture
def made(torchvision, tmp_path):
    """A function that saves a VisionTransformer, and returns the path and its logits."""
    import torch
    from safetensors.torch import save_file as save
    from torchvision.models import VisionTransformer

    def make(num_heads, channels=3, change=None, path=tmp_path / "model.safetensors"):
        torch.manual_seed(num_heads)
        model = VisionTransformer(**SIZES, num_heads=num_heads, num_classes=5)
        if channels != 3:
            model.conv_proj = torch.nn.Conv2d(channels, 16, 4, 4)
        if change:
            change(model, torch.nn)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        x = torch.randn(2, channels, 12, 12)
        with torch.no_grad():
            logits = model.eval()(x).numpy()
        save(model.state_dict(), path)
        return str(path), x.numpy().transpose(0, 2, 3, 1), logits

    return make


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


@pytest.mark.parametrize("num_heads", [1, 2, 4, 8])
def test_heads_are_as_many_as_the_caller_says(made, num_heads):
    path, x, logits = made(num_heads)
    model = keras_vit.from_preset(path, num_heads=num_heads)
    np.testing.assert_allclose(run(model, x), logits, atol=1e-5)
    other = 16 // num_heads
    if other != num_heads:
        assert np.abs(run(keras_vit.from_preset(path, num_heads=other), x) - logits).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "heads does not follow from its tensors, and 16 is the width of none .* num_heads="),
        ({"num_heads": 3}, "num_heads must divide the width 16. Received: 3"),
        ({"num_heads": 0}, "num_heads must be a whole number from 1"),
        ({"num_heads": "2"}, "num_heads must be a whole number from 1"),
    ],
)
def test_heads_that_no_one_says_are_not_guessed(made, options, message):
    with pytest.raises(ValueError, match=message):
        keras_vit.from_preset(made(2)[0], **options)


def heads_of(count):
    """A change of `heads` into a sequence with the dense layer at that index."""

    def change(model, nn):
        model.heads = nn.Sequential(*[nn.Dropout()] * count, nn.Linear(16, 4))

    return change


def plain(model, nn):
    model.heads = nn.Linear(16, 4)


def inner(model, nn):
    model.heads.head = nn.Sequential(nn.Dropout(), nn.Linear(16, 4))


def without_bias(model, nn):
    model.heads = nn.Linear(16, 4, bias=False)


def none(model, nn):
    model.heads = nn.Identity()


CHANGES = [plain, heads_of(0), heads_of(1), heads_of(2), inner, without_bias, none]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_heads_that_a_fine_tune_replaced(made, change):
    path, x, logits = made(2, change=change)
    model = keras_vit.from_preset(path, num_heads=2)
    assert model.num_classes == (0 if change is none else 4)
    np.testing.assert_allclose(run(model, x), logits, atol=1e-5)


def test_a_head_whose_activations_no_one_knows_is_refused(made):
    def change(model, nn):
        model.heads = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 4))

    with pytest.raises(ValueError, match="several layers.*: heads.0.(weight|bias), heads.2."):
        keras_vit.from_preset(made(2, change=change)[0], num_heads=2)


@pytest.mark.parametrize("wrapper", ["module.", "model.", "_orig_mod."])
def test_what_a_wrapper_put_before_the_keys_is_left_out(made, wrapper, tmp_path):
    path, x, logits = made(2)
    save_file({wrapper + key: value for key, value in load_file(path).items()}, path)
    model = keras_vit.from_preset(path, num_heads=2)
    np.testing.assert_allclose(run(model, x), logits, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(made, channels):
    path, x, logits = made(2, channels)
    model = keras_vit.from_preset(path, num_heads=2, mean=0.1307, std=0.3081)
    np.testing.assert_allclose(run(model, x), logits, atol=1e-5)
    converter = model.preprocessor.image_converter
    assert converter.mean == [0.1307] * channels and converter.std == [0.3081] * channels
    picture = np.full((12, 12, channels), 51, "uint8")
    np.testing.assert_allclose(converter(picture), (0.2 - 0.1307) / 0.3081, rtol=1e-5)


def as_torchvision(name, folder):
    """A golden of timm under torchvision's keys."""
    words = {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj": "conv_proj",
        "blocks.": "encoder.layers.encoder_layer_",
        ".norm": ".ln_",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj": "self_attention.out_proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
        "head.": "heads.head.",
    }
    state = {}
    for key, value in goldens.weights(name).items():
        key = key.replace("norm.", "encoder.ln.", 1) if key.startswith("norm.") else key
        for ours, theirs in words.items():
            key = key.replace(ours, theirs)
        state[key] = value
    save_file(state, folder / "model.safetensors")
    return str(folder / "model.safetensors")


def test_positions_of_images_that_are_not_square(tmp_path):
    path, golden = as_torchvision("vit-plain", tmp_path), goldens.arrays("vit-plain")
    model = keras_vit.from_preset(path, num_heads=2, image_size=(8, 12))
    np.testing.assert_allclose(run(model, golden["x"]), golden["logits"], atol=1e-5)
    for size, message in {
        None: "its 6 positions .* Pass image_size=.* patches are 4 x 4 pixels",
        (8, 8): "must have 6 patches of 4 x 4 pixels.*Received: 8 x 8",
        (6, 16): "must have 6 patches of 4 x 4 pixels.*Received: 6 x 16",
    }.items():
        with pytest.raises(ValueError, match=message):
            keras_vit.from_preset(path, num_heads=2, **({"image_size": size} if size else {}))


GIVEN = {
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "crop_pct": 0.9,
    "crop_mode": "squash",
    "interpolation": "bicubic",
}


def test_what_is_assumed_of_the_images_is_said(made, caplog):
    path = made(2)[0]
    keras_vit.from_preset(path, num_heads=2)
    for name, value in {**IMAGENET, "crop_pct": 1.0, "interpolation": "bilinear"}.items():
        assert f"{name}={value}" in caplog.text
    caplog.clear()
    keras_vit.from_preset(path, num_heads=2, **GIVEN)
    assert not caplog.text


def test_torchvisions_own_weights_are_prepared_as_there(tmp_path, caplog):
    """The published widths, with 1000 classes; of one block and narrow, but of the same keys."""
    shapes = tiny.torchvision_shapes(768, patch=224, size=224, channels=3, classes=1000)
    path = tmp_path / "vit_b_16.safetensors"
    save_file({key: np.zeros(shape, "float16") for key, shape in shapes.items()}, path)
    model = keras_vit.from_preset(path, load_weights=False)
    assert model.backbone.options["num_heads"] == 12 and not caplog.text
    images = model.preprocessor.image_converter
    assert (images.crop_pct, images.interpolation) == (0.875, "bilinear")
    assert {"mean": images.mean, "std": images.std} == IMAGENET


# --- The same arguments for every layout ---


def sources(tmp_path):
    """One preset of each layout."""
    timm = goldens.repository("vit-plain", tmp_path / "timm")
    keras_vit.from_preset(timm).save_to_preset(tmp_path / "keras")
    return {
        "timm": timm,
        "transformers": goldens.repository("hf-vit", tmp_path / "transformers"),
        "keras": str(tmp_path / "keras"),
        "table": "vit_digits_patch4_32.sklearn",
        "file": as_torchvision("vit-plain", tmp_path),
    }


@pytest.mark.parametrize("layout", ["timm", "transformers", "keras", "table", "file"])
def test_the_preprocessing_and_the_names_may_be_given(layout, tmp_path):
    path = sources(tmp_path)[layout]
    told = {"num_heads": 2, "image_size": (8, 12)} if layout == "file" else {}
    plain = keras_vit.from_preset(path, **told)
    channels = plain.backbone.options["in_channels"]
    given = {k: v[:channels] if isinstance(v, list) else v for k, v in GIVEN.items()}
    names = [f"class {i}" for i in range(plain.num_classes)]
    model = keras_vit.from_preset(path, **given, **told, labels=names)
    converter = model.preprocessor.image_converter.get_config()
    assert {name: converter[name] for name in given} == given
    assert converter["image_size"] == model.image_size and model.labels == names
    for one, two in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    fresh = keras_vit.from_preset(path, num_classes=2, labels=["a", "b"], mean=0.5, **told)
    assert fresh.labels == ["a", "b"]
    assert fresh.preprocessor.image_converter.mean == [0.5] * channels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.1, 0.2]}, "mean must be one number, or one for each of 3 channels"),
        ({"mean": "half"}, "mean must be a list of numbers"),
        ({"std": [0.1, 0, 0.2]}, "std must be a positive number"),
        ({"crop_pct": 0}, "crop_pct must be a positive number"),
        ({"crop_mode": "border"}, "crop_mode must be one of"),
        ({"interpolation": "nearest"}, "interpolation must be one of"),
        ({"labels": "ab"}, "labels must be a list of names"),
        ({"labels": ["a", "b"]}, "labels must name the 7 classes. Received: 2 names"),
        ({"num_heads": 3}, "has 2 attention heads. Received: num_heads=3"),
    ],
)
def test_values_that_cannot_be_are_refused(options, message, tmp_path):
    path = goldens.repository("vit-plain", tmp_path)
    assert keras_vit.from_preset(path, num_heads=2).backbone.options["num_heads"] == 2
    with pytest.raises(ValueError, match=message):
        keras_vit.from_preset(path, **options)


def test_timms_own_defaults_where_its_config_says_nothing(tmp_path):
    cfg = {k: goldens.config("vit-plain")["pretrained_cfg"][k] for k in ("input_size",)}
    path = goldens.repository("vit-plain", tmp_path, pretrained_cfg=cfg)
    images = keras_vit.from_preset(path, load_weights=False).preprocessor.image_converter
    assert {"mean": images.mean, "std": images.std} == IMAGENET  # timm's PretrainedCfg
    assert (images.crop_pct, images.interpolation, images.crop_mode) == (0.875, "bicubic", "center")


def test_a_keras_preset_without_a_preprocessor_may_be_changed(tmp_path):
    model = keras_vit.from_preset(goldens.repository("vit-plain", tmp_path / "timm"))
    model.preprocessor = None
    model.save_to_preset(tmp_path / "keras")
    assert keras_vit.from_preset(tmp_path / "keras").preprocessor is None
    fresh = keras_vit.from_preset(pathlib.Path(tmp_path / "keras"), num_classes=2)
    assert fresh.preprocessor is None
    given = keras_vit.from_preset(tmp_path / "keras", mean=0.5, std=0.25)
    assert given.preprocessor.image_converter.std == [0.25] * 3
    with pytest.raises(ValueError, match="has no preprocessing. Pass both mean= and std="):
        keras_vit.from_preset(tmp_path / "keras", mean=0.5)

"""ConvNeXt: what its layers compute, and its weights from torchvision and keras.applications."""

import goldens
import keras
import numpy as np
import pytest

import keras_vit
from keras_vit import layouts
from keras_vit.layers.conv import Conv
from keras_vit.models.convnext import GlobalResponseNorm
from keras_vit.weights import WeightsError

SMALL = {"image_size": 64, "depths": (1, 2, 3, 1), "dims": (8, 16, 24, 32)}
SIZE = (64, 96)


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


def close(found, wanted, tolerance=1e-5):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


# --- Layers ---


def response_norm(x, gamma, beta, norm):
    """Algorithm 1 of https://arxiv.org/abs/2301.00808, with a norm of a matrix."""
    found = np.empty_like(x)
    for b, picture in enumerate(x):
        norms = np.array([norm(picture[..., c]) for c in range(x.shape[3])])
        for c, value in enumerate(norms / (norms.mean() + 1e-6)):
            found[b, ..., c] = picture[..., c] * (1 + gamma[c] * value) + beta[c]
    return found


def test_global_response_norm_takes_frobenius_norms():
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 3, 4, 5)).astype("float32")
    layer = GlobalResponseNorm()
    layer.build(x.shape)
    gamma, beta = random.normal(size=(2, 5)).astype("float32")
    layer.set_weights([gamma, beta])
    close(run(layer, x), response_norm(x, gamma, beta, np.linalg.norm))
    spectral = response_norm(x, gamma, beta, lambda matrix: np.linalg.norm(matrix, ord=2))
    assert np.abs(run(layer, x) - spectral).max() > 1e-2


def test_a_dead_channel_has_a_gradient(tmp_path):
    """A square root has none at 0."""
    backbone = keras_vit.ConvNeXtBackbone(**SMALL, use_grn=True)
    model = keras_vit.ConvNeXt(backbone, 3)
    for block in backbone.blocks:
        block.mlp.fc1.bias.assign(np.full(block.mlp.fc1.bias.shape, -50.0, "float32"))
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.train_on_batch(np.ones((2, 64, 64, 3), "float32"), np.array([0, 2]))
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_padding_is_that_of_torch(size):
    random = np.random.default_rng(0)
    x = random.normal(size=(1, *size, 2)).astype("float32")
    layer = Conv(3, 3, strides=2, pad=1)
    layer.build(x.shape)
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = np.empty((1, *((s + 1) // 2 for s in size), 3), "float32")
    for row, column in np.ndindex(wanted.shape[1:3]):
        patch = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        wanted[0, row, column] = np.einsum("hwc,hwcd->d", patch, kernel)
    close(run(layer, x), wanted)
    assert layer.compute_output_shape(x.shape) == wanted.shape
    same = keras.layers.Conv2D(3, 3, strides=2, padding="same", data_format="channels_last")
    same.build(x.shape)
    same.set_weights(layer.get_weights())
    even = size[0] % 2 == 0
    assert (np.abs(run(same, x) - wanted).max() > 1e-2) == even
    again = Conv.from_config(layer.get_config())
    assert again.pad == 1


def test_a_norm_after_the_pool_is_not_one_before_it(tmp_path):
    golden = goldens.arrays("convnext-plain")
    model = keras_vit.from_preset(goldens.repository("convnext-plain", tmp_path))
    features, weights = golden["features"], goldens.weights("convnext-plain")
    norm = model.get_layer("fc_norm")
    before = run(norm, features).mean((1, 2)) @ weights["head.fc.weight"].T
    assert np.abs(before + weights["head.fc.bias"] - golden["logits"]).max() > 1e-3


# --- Arguments ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1, 1)}, "depths must have 4 numbers, one per stage"),
        ({"dims": (8, 8, 8, 8, 8)}, "dims must have 4 numbers"),
        ({"stem_type": "conv"}, "stem_type must be one of patch, overlap, overlap_tiered"),
        ({"image_size": (31, 64)}, "at least 32 pixels. Received: 31 x 64"),
    ],
)
def test_wrong_arguments_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        keras_vit.ConvNeXtBackbone(**{**SMALL, **options})


def test_images_of_any_size(tmp_path):
    name = "convnext-ols"
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path), image_size=None)
    close(run(model, golden["x"]), golden["logits"])
    close(run(model, goldens.other_size(golden["x"])), golden["resized"])
    model.save_to_timm(tmp_path / "timm")
    close(run(keras_vit.from_preset(tmp_path / "timm"), golden["x"]), golden["logits"])


def test_a_masked_autoencoder_has_no_last_norm(tmp_path):
    """timm's file has none, and its model one that does nothing but normalise."""
    name = "convnext-v2_conv"
    golden, weights = goldens.arrays(name), goldens.weights(name)
    config = {"architecture": "convnextv2_atto", "num_classes": 0}
    config["pretrained_cfg"] = {"tag": "fcmae", "input_size": [3, 37, 66], "num_classes": 0}
    path = tmp_path / "atto"
    goldens.repository(name, path, **config)
    kept = {k: v for k, v in weights.items() if not k.startswith("head.")}
    goldens.save_file(kept, path / "model.safetensors")
    model = keras_vit.from_preset(path)
    mean = golden["features"].mean((1, 2))
    wanted = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1) + 1e-6)[:, None]
    close(run(model, golden["x"]), wanted)
    goldens.repository("convnext-plain", tmp_path / "plain", num_classes=0)
    state = goldens.weights("convnext-plain")
    kept = {k: v for k, v in state.items() if not k.startswith("head.")}
    goldens.save_file(kept, tmp_path / "plain/model.safetensors")
    with pytest.raises(WeightsError, match="2 missing from the file:\n    head.norm.weight"):
        keras_vit.from_preset(tmp_path / "plain")


def test_a_fresh_head_needs_no_hidden_layer(tmp_path):
    golden = goldens.arrays("convnext-mlp")
    directory = goldens.repository("convnext-mlp", tmp_path)
    model = keras_vit.from_preset(directory, num_classes=3)
    assert run(model, golden["x"]).shape == (2, 3)
    assert "pre_logits" not in [layer.name for layer in model.layers]
    close(run(model.backbone, golden["x"]), golden["features"])


# --- torchvision ---


@pytest.fixture
def torchvision(timm):
    pytest.importorskip("torchvision")
    import torch
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    def make(depths=SMALL["depths"], dims=SMALL["dims"], classes=5):
        torch.manual_seed(0)
        after = (*dims[1:], None)
        settings = [CNBlockConfig(*sizes) for sizes in zip(dims, after, depths, strict=True)]
        model = ConvNeXt(settings, num_classes=classes).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return model

    return make


def test_torchvisions_weights_give_torchvisions_logits(torchvision, tmp_path):
    import torch
    from safetensors.torch import save_file

    model = torchvision()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    assert model.features[1][0].layer_scale.shape == (8, 1, 1)
    x = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        logits, features = model(x).numpy(), model.features(x).permute(0, 2, 3, 1).numpy()
    ours = keras_vit.from_preset(tmp_path / "m.safetensors", image_size=SIZE)
    assert type(ours) is keras_vit.ConvNeXt and ours.num_classes == 5
    x = x.permute(0, 2, 3, 1).numpy()
    scale = np.abs(features).max()
    close(run(ours.backbone, x) / scale, features / scale, 1e-6)
    close(run(ours, x), logits)


@pytest.mark.parametrize(
    ("depths", "dims", "resize"),
    [
        ((3, 3, 9, 3), (96, 192, 384, 768), 236),
        ((3, 3, 27, 3), (96, 192, 384, 768), 230),
        ((3, 3, 27, 3), (128, 256, 512, 1024), 232),
        ((3, 3, 9, 3), (80, 160, 320, 640), None),
    ],
)
def test_torchvisions_own_weights_are_prepared_as_there(
    depths, dims, resize, tmp_path, torchvision
):
    import torch
    from safetensors.torch import save_file

    with torch.device("meta"):
        state = torchvision(depths, dims, 1000).state_dict()
    zeros = {k: torch.zeros(v.shape, dtype=torch.bfloat16) for k, v in state.items()}
    save_file(zeros, tmp_path / "m.safetensors")
    spec = layouts.spec_of_file(tmp_path / "m.safetensors")
    assert spec.images["interpolation"] == "bilinear" and bool(spec.note) == (resize is None)
    assert spec.images["crop_pct"] == (224 / resize if resize else 1.0)


# --- keras.applications ---


def applications(classes=5, **options):
    from keras.src.applications.convnext import ConvNeXt

    keras.utils.set_random_seed(0)
    options = {"include_top": True, "name": "convnext_tiny", **options}
    model = ConvNeXt(
        SMALL["depths"],
        SMALL["dims"],
        weights=None,
        classes=classes,
        classifier_activation=None,
        input_shape=(*SIZE, 3),
        **options,
    )
    random = np.random.default_rng(0)
    model.set_weights([w + random.normal(0, 0.2, w.shape) for w in model.get_weights()])
    return model


def save_as(model, path):
    """Write a model's weights in the format of that name."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    elif path.name == "whole.h5":
        model.save(path)
    else:
        import h5py
        from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, model)


LEGACY = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
FORMATS = ["m.weights.h5", "m.h5", pytest.param("whole.h5", marks=LEGACY)]


def as_ours(model, pixels):
    """Pixels in 0..255 as our models take them; the model itself normalises them in Keras."""
    images = model.preprocessor.image_converter
    return ((pixels / 255 - np.array(images.mean)) / np.array(images.std)).astype("float32")


@pytest.mark.parametrize("name", FORMATS)
def test_kerass_weights_give_kerass_logits(name, tmp_path):
    theirs = applications()
    save_as(theirs, tmp_path / name)
    ours = keras_vit.from_preset(tmp_path / name, image_size=SIZE)
    assert type(ours) is keras_vit.ConvNeXt and ours.num_classes == 5
    pixels = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3)).astype("float32")
    close(run(ours, as_ours(ours, pixels)), run(theirs, pixels))
    assert np.abs(run(ours, pixels / 255) - run(theirs, pixels)).max() > 1e-2


@pytest.mark.parametrize("name", FORMATS[:2])
def test_kerass_weights_without_a_head(name, tmp_path):
    theirs = applications(include_top=False, pooling="avg")
    save_as(theirs, tmp_path / name)
    ours = keras_vit.from_preset(tmp_path / name, image_size=SIZE)
    pixels = np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3)).astype("float32")
    close(run(ours, as_ours(ours, pixels)), run(theirs, pixels))


def test_the_names_of_keras_2_are_read(tmp_path):
    """As in the published files: `layer/layer/kernel:0`, and `Variable:0` of a layer scale."""
    import h5py

    save_as(applications(), tmp_path / "new.h5")
    with h5py.File(tmp_path / "new.h5") as new, h5py.File(tmp_path / "old.h5", "w") as old:

        def copy(name, item):
            if isinstance(item, h5py.Dataset):
                parts = name.split("/")
                leaf = "Variable" if parts[-1].startswith("variable") else parts[-1]
                old["/".join([parts[0], *parts[-2:-1], f"{leaf}:0"])] = item[...]

        new.visititems(copy)
    new, old = (keras_vit.from_preset(tmp_path / f"{name}.h5") for name in ("new", "old"))
    for one, two in zip(new.get_weights(), old.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_weights_of_another_model_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match="of none of the models of keras.applications"):
        keras_vit.from_preset(tmp_path / "m.weights.h5")

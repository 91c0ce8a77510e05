"""The way back: what timm and transformers are given has the tensors that came from them."""

import json
import pathlib

import goldens
import h5py
import keras
import numpy as np
import pytest
import tiny_models
import yaml
from safetensors.numpy import load_file
from test_spellings import weights_file

import keras_vit
from keras_vit.images import ImageConverter, ImagePreprocessor

# The structure of test_vit4 belongs to no checkpoint, so timm has no name to give it.
TIMM = [n for n in goldens.NAMES if n.startswith(("vit-", "deit-", "eva-")) and n != "vit-test4"]
PLAIN = ["hf-vit", "hf-deit-teacher", "hf-vit-model-no_pooler"]


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


@pytest.mark.parametrize("name", TIMM)
def test_timm_to_keras_to_timm_is_bit_exact(name, tmp_path):
    directory = pathlib.Path(goldens.repository(name, tmp_path))
    keras_vit.from_preset(directory).save_to_timm(tmp_path / "back")
    before = load_file(directory / "model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)
    again = keras_vit.from_preset(tmp_path / "back")
    golden = goldens.arrays(name)
    np.testing.assert_allclose(run(again, golden["x"]), golden["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_transformers_to_keras_to_transformers_is_bit_exact(name, tmp_path):
    directory = pathlib.Path(goldens.repository(name, tmp_path))
    model = keras_vit.from_preset(directory)
    model.save_to_transformers(tmp_path / "back")
    before = load_file(directory / "model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[key] == after[key]).all() for key in before)
    again = keras_vit.from_preset(tmp_path / "back")
    x = goldens.arrays(name)["x"]
    np.testing.assert_array_equal(run(again, x), run(model, x))


def theirs(model, x):
    """What a torch model makes of `x`, `(B, H, W, C)`."""
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))))


@pytest.mark.parametrize(
    "name",
    ["vit-plain", "vit-dinov2_reg4", "vit-siglip", "deit-distilled"]
    + [n for n in goldens.TIMM if n.startswith(("convnext-", "eva-"))],
)
def test_timm_loads_what_is_saved(name, timm, tmp_path):
    model = keras_vit.from_preset(goldens.repository(name, tmp_path / "from"))
    model.save_to_timm(tmp_path / "to")
    again = timm.create_model(f"local-dir:{tmp_path / 'to'}", pretrained=True)
    golden = goldens.arrays(name)
    found = theirs(again, golden["x"]).numpy()
    np.testing.assert_allclose(found, run(model, golden["x"]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found, golden["logits"], rtol=0, atol=1e-5)


def hybrid():
    backbone = keras_vit.HybridViTBackbone(
        image_size=(32, 64), patch_size=1, embed_dim=16, depth=2, num_heads=2, stages=[2, 2, 2, 2]
    )
    return keras_vit.HybridViT(backbone, 5, ImagePreprocessor(ImageConverter((32, 64))))


def mixer():
    backbone = keras_vit.ResMLPBackbone(image_size=(32, 64), patch_size=16, embed_dim=384, depth=12)
    preprocessor = ImagePreprocessor(ImageConverter((32, 64)))
    return keras_vit.ResMLP(backbone, 5, preprocessor=preprocessor)


@pytest.mark.parametrize("make", [hybrid, mixer])
def test_timm_loads_a_saved_model_of_random_weights(make, timm, tmp_path):
    keras.utils.set_random_seed(0)
    model = make()  # of timm's stages, or width and depth: it lets no caller change these
    model.save_to_timm(tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    x = np.random.default_rng(0).normal(size=(2, 32, 64, 3)).astype("float32")
    found = theirs(again, x).numpy()
    assert np.abs(found).max() > 0.01
    np.testing.assert_allclose(found, run(model, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resmlp_12_224.fb_in1k", "vit_tiny_r_s16_p8_224.augreg_in21k"])
def test_we_load_mixers_and_hybrids_that_we_saved(name, tmp_path):
    model = keras_vit.from_preset(name, load_weights=False)
    model.save_to_timm(tmp_path)
    again = keras_vit.from_preset(tmp_path)
    assert type(again) is type(model)
    x = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype("float32")
    np.testing.assert_array_equal(run(again, x), run(model, x))


def test_a_hybrid_of_default_stages_goes_to_timm_and_back(timm, tmp_path):
    keras.utils.set_random_seed(0)
    backbone = keras_vit.HybridViTBackbone(  # R50's [3, 4, 9]
        image_size=32, patch_size=1, embed_dim=16, depth=1, num_heads=2
    )
    model = keras_vit.HybridViT(backbone, 5, ImagePreprocessor(ImageConverter(32)))
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype("float32")
    there_and_back(model, x, timm, tmp_path)


def there_and_back(model, x, timm, folder):
    """What timm loads, and what we load again, computes what the model does."""
    model.save_to_timm(folder)
    np.testing.assert_allclose(run(keras_vit.from_preset(folder), x), run(model, x), atol=1e-6)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    scale = np.abs(run(model, x)).max()
    np.testing.assert_allclose(theirs(again, x).numpy() / scale, run(model, x) / scale, atol=1e-5)


def test_a_hybrid_of_an_npz_file_goes_to_timm_and_back(timm, tmp_path):
    """Its activation is flax' GELU, its stages are those of timm's smallest hybrid."""
    model = keras_vit.from_preset(weights_file("npz-r", tmp_path))
    x = np.random.default_rng(0).normal(size=(2, *model.image_size, 3)).astype("float32")
    assert model.backbone.options["activation"] == "gelu_tanh"
    there_and_back(model, x, timm, tmp_path / "timm")


def test_another_epsilon_is_named_and_written_if_that_is_allowed(timm, tmp_path):
    model = keras_vit.from_preset(goldens.repository("hf-vit", tmp_path / "from"))
    message = (
        "test_vit matches this ViT except for the epsilon of its norms, 1e-06 there and 1e-12 here"
    )
    with pytest.raises(ValueError, match=message):
        model.save_to_timm(tmp_path / "to")
    assert not (tmp_path / "to").exists()
    model.save_to_timm(tmp_path / "to", allow_epsilon=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'to'}", pretrained=True)
    x = goldens.arrays("hf-vit")["x"]
    np.testing.assert_allclose(theirs(again, x).numpy(), run(model, x), atol=2e-3)


@pytest.mark.parametrize("pooling", ["avg", "map"])
@pytest.mark.parametrize("options", [{}, {"final_norm": False}])
def test_timm_loads_a_changed_pooling(pooling, options, timm, tmp_path):
    keras.utils.set_random_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    backbone = keras_vit.ViTBackbone(**sizes, **options)
    head = {"pooling": pooling, "fc_norm": bool(options)}
    model = keras_vit.ViT(backbone, 5, ImagePreprocessor(ImageConverter(16)), **head)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    there_and_back(model, x, timm, tmp_path)


def test_timm_loads_a_model_of_any_size(timm, tmp_path):
    directory = goldens.repository("vit-plain", tmp_path / "from")
    model = keras_vit.from_preset(directory, image_size=None)
    there_and_back(model, goldens.arrays("vit-plain")["x"], timm, tmp_path / "to")


def test_how_a_model_is_resampled_hinders_no_saving(tmp_path):
    backbone = keras_vit.DeiTBackbone(
        image_size=16, embed_dim=8, depth=1, num_heads=1, resample="bilinear"
    )
    model = keras_vit.DeiT(backbone, 2, ImagePreprocessor(ImageConverter(16)))
    model.save_to_timm(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"].startswith("deit") and "resample" not in config["model_args"]


@pytest.mark.parametrize("name", ["hf-vit", "hf-deit-teacher", "vit-plain", "deit-distilled"])
def test_transformers_loads_what_is_saved(name, transformers, tmp_path):
    model = keras_vit.from_preset(goldens.repository(name, tmp_path / "from"))
    model.save_to_transformers(tmp_path / "to")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "to")
    golden = goldens.arrays(name)
    found = theirs(again, golden["x"]).logits.numpy()
    np.testing.assert_allclose(found, run(model, golden["x"]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found, golden["logits"], rtol=0, atol=1e-5)


def test_the_card_has_the_training_log_and_the_labels(tmp_path):
    directory = goldens.repository("vit-plain", tmp_path)
    model = keras_vit.from_preset(directory, num_classes=2)
    model.labels = ["cat", "dog"]
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(True), run_eagerly=True)
    images = np.zeros((4, 40, 40, 3), "uint8")
    model.fit(images, np.array([0, 1, 0, 1]), epochs=2, verbose=0)
    model.save_to_timm(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| epoch | loss |" in card and "| 2 | " in card and "cat, dog" in card
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["label_names"] == ["cat", "dog"] and config["num_classes"] == 2


def test_the_card_of_a_training_that_was_not_validated_in_each_epoch(tmp_path):
    model = keras_vit.from_preset("vit_digits_patch4_32.sklearn", num_classes=2)
    model.compile(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(True))
    x, y = np.zeros((4, 32, 32, 1), "uint8"), np.array([0, 1, 0, 1])
    model.fit(x, y, epochs=2, validation_data=(x, y), validation_freq=2, verbose=0)
    model.save_to_timm(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| epoch | loss |" in card and "| 2 | " in card and "val_loss" not in card


@pytest.mark.parametrize(
    "preset, head, said",
    [
        (
            "deit_tiny_patch16_224.fb_in1k",
            ["license: apache-2.0", "base_model: timm/deit_tiny_patch16_224.fb_in1k"],
            "is 72.19 %.",
        ),
        (
            "vit_huge_patch16_radio_v3.c_radio",
            [
                "license: other",
                "license_name: nvidia-open-model-license",
                "base_model: timm/vit_huge_patch16_radio_v3.c_radio",
            ],
            "license nvidia-open-model-license.",
        ),
    ],
)
def test_the_card_names_the_preset_and_its_licence(preset, head, said, tmp_path):
    model = keras_vit.from_preset(goldens.repository("vit-plain", tmp_path))
    model.preset, model.source = preset, f"hf://timm/{preset}"
    model.save_to_timm(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    found = yaml.safe_load(card.split("---")[1])
    for line in head:
        key, _, value = line.partition(": ")
        assert found[key] == value
    (text,) = [line for line in card.splitlines() if line.startswith("Based on")]
    assert f"the preset {preset}," in text and text.endswith(said)


def test_the_card_of_the_packages_own_preset_has_no_base_model(tmp_path):
    name = "vit_digits_patch4_32.sklearn"
    keras_vit.from_preset(name).save_to_timm(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "license: apache-2.0" in card and f"the preset {name}," in card
    assert "base_model" not in card and "top-1" not in card


@pytest.mark.parametrize("load_weights", [True, False])
def test_the_card_of_other_weights_claims_no_licence(load_weights, tmp_path):
    name = (
        goldens.repository("vit-plain", tmp_path)
        if load_weights
        else "vit_digits_patch4_32.sklearn"
    )
    model = keras_vit.from_preset(name, load_weights=load_weights)
    model.save_to_timm(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "licen" not in card and "base_model" not in card


def test_what_transformers_cannot_hold_is_named(tmp_path):
    model = keras_vit.from_preset(goldens.repository("vit-dinov2_reg4", tmp_path))
    with pytest.raises(ValueError, match="init_values.*reg_tokens|reg_tokens.*init_values"):
        model.save_to_transformers(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [hybrid, mixer])
def test_what_transformers_does_not_have(make, tmp_path):
    model = make()
    message = f"transformers has no class for a {type(model).__name__}"
    with pytest.raises(ValueError, match=message):
        model.save_to_transformers(tmp_path / "out")


def with_dropout():
    keras.utils.set_random_seed(0)
    rates = {"drop_path_rate": 0.5, "drop_rate": 0.5, "attn_drop_rate": 0.5, "pos_drop_rate": 0.5}
    backbone = keras_vit.ViTBackbone(
        image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, **rates
    )
    preprocessor = ImagePreprocessor(ImageConverter(16))
    return keras_vit.ViT(backbone, 4, preprocessor, drop_rate=0.5)


RAW = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), "uint8")


def test_a_preset_of_a_model_with_dropout_predicts_the_same(tmp_path):
    model = with_dropout()
    model.save_to_preset(tmp_path / "preset")
    again = keras_vit.from_preset(tmp_path / "preset")
    wanted, found = model.predict(RAW, verbose=0), again.predict(RAW, verbose=0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert again.backbone.options["drop_path_rate"] == 0.5 and again.drop_rate == 0.5


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="SavedModels are TensorFlow's")
def test_a_savedmodel_of_a_model_with_dropout_predicts_the_same(tmp_path):
    import tensorflow as tf

    model = with_dropout()
    folder = keras_vit.export.to_saved_model(model, tmp_path / "saved")
    wanted = tf.nn.softmax(model.predict(RAW, verbose=0)).numpy()
    found = tf.saved_model.load(str(folder)).signatures["serving_default"](images=RAW)
    np.testing.assert_allclose(found["probabilities"].numpy(), wanted, rtol=0, atol=1e-5)


def test_the_paths_in_a_saved_file_stay(tmp_path):
    """Keras names them by class: renaming one would orphan every file that users have."""
    tiny_models.classifier(depth=1).save_weights(tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5") as file:
        parts = {"/".join(path.split("/")[1:-2]) for path in h5_paths(file["layers"])}
    block = ("attn/proj", "attn/qkv", "mlp/fc1", "mlp/fc2", "norm1", "norm2")
    assert parts == {
        "dense",
        "layer_normalization",
        "patch_encoder",
        "patch_encoder/proj",
        *(f"transformer_block/{name}" for name in block),
    }


def h5_paths(group):
    paths = []
    group.visititems(lambda _, o: paths.append(o.name.strip("/")) if hasattr(o, "shape") else None)
    return paths


WAYS = {
    "preset": lambda model, folder: model.save_to_preset(folder / "preset"),
    "preset of a backbone": lambda model, folder: model.backbone.save_to_preset(folder / "trunk"),
    "Keras file": lambda model, folder: model.save(folder / "model.keras"),
    "weights": lambda model, folder: model.save_weights(folder / "all.weights.h5"),
    "weights of the head": lambda model, folder: model.save_task_weights(folder / "a.weights.h5"),
    "LoRA": lambda model, folder: model.backbone.save_lora_weights(folder / "a.lora.h5"),
}


@pytest.mark.parametrize("overwriting", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_an_error_and_nothing_changes(way, overwriting, tmp_path):
    model = tiny_models.classifier()
    model.backbone.enable_lora(2)
    if overwriting:
        WAYS[way](model, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with tiny_models.full_disk(1000), pytest.raises(OSError, match="Not enough space .* Free at"):
        WAYS[way](model, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    WAYS[way](model, tmp_path)

"""The layouts of transformers and timm: what their config.json says is what the model computes."""

import json
import pathlib

import goldens
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_vit
import keras_vit_presets as presets
from keras_vit.weights import WeightsError

HF = goldens.HF


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


@pytest.mark.parametrize("name", HF)
def test_features_and_logits_are_those_of_transformers(name, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path))
    wanted = golden["logits"] if "logits" in golden else golden["pooled"]
    np.testing.assert_allclose(run(model.backbone, golden["x"]), golden["features"], atol=1e-5)
    np.testing.assert_allclose(run(model, golden["x"]), wanted, atol=1e-5)
    table = presets.layout("transformers")[goldens.config(name)["model_type"]]
    assert type(model).__name__ == table["class"]


def test_labels_are_in_the_order_of_the_logits(tmp_path):
    model = keras_vit.from_preset(goldens.repository("hf-vit", tmp_path), load_weights=False)
    assert model.labels == [f"name of {i}" for i in range(11)]  # "10" does not follow "1"


@pytest.mark.parametrize(
    ("names", "classes", "wanted"),
    [
        ({"0": "a", "2": "c", "5": "f"}, 3, ["a", "1", "c"]),  # as many names, with gaps
        ({"0": "a", "2": "c", "5": "f"}, 6, ["a", "1", "c", "3", "4", "f"]),
        ({"1": "b", "0": "a"}, 2, ["a", "b"]),
        ({"0": "a", "1": "b"}, 4, ["a", "b", "2", "3"]),
        ({"10": "k", "9": "j"}, 2, ["0", "1"]),
        ({str(i): f"name {i}" for i in range(1000)}, 3, None),  # the names of another head
        ({}, 2, None),
        (None, 2, None),
    ],
)
def test_class_names_go_by_number(names, classes, wanted, tmp_path):
    directory = goldens.repository("hf-vit", tmp_path, id2label=names)
    state = goldens.weights("hf-vit")
    for leaf in ("weight", "bias"):
        state[f"classifier.{leaf}"] = state[f"classifier.{leaf}"][:classes].copy()
    save_file(state, tmp_path / "model.safetensors")
    model = keras_vit.from_preset(directory)
    golden = goldens.arrays("hf-vit")
    np.testing.assert_allclose(run(model, golden["x"]), golden["logits"][:, :classes], atol=1e-5)
    assert model.labels == wanted


CUSTOM = [  # golden, what config.json says instead
    ("hf-vit", ["MyCustomViT"]),
    ("hf-vit", ["ViTModel"]),
    ("hf-vit", None),
    ("hf-vit", []),
    ("hf-deit", ["MyDeiT"]),
    ("hf-deit", ["DeiTForImageClassificationWithTeacher"]),
    ("hf-deit-teacher", ["MyDeiT"]),
    ("hf-deit-teacher", ["DeiTForImageClassification"]),
]


@pytest.mark.parametrize(("name", "architectures"), CUSTOM)
def test_the_head_is_that_of_the_file_whatever_class_the_config_names(
    name, architectures, tmp_path, caplog
):
    directory = goldens.repository(name, tmp_path, architectures=architectures)
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(directory)
    np.testing.assert_allclose(run(model, golden["x"]), golden["logits"], atol=1e-5)
    assert "but the file has a head, " in caplog.text
    caplog.clear()
    wanted = goldens.config(name)["id2label"]
    assert model.labels == [wanted[str(i)] for i in range(len(wanted))]
    keras_vit.from_preset(goldens.repository(name, tmp_path))
    assert not caplog.text


def test_a_head_that_the_config_names_must_be_in_the_file(tmp_path):
    directory = goldens.repository("hf-vit-model", tmp_path)
    edit(directory, architectures=["ViTForImageClassification"])
    with pytest.raises(WeightsError, match="missing from the file:\\n.*classifier.weight"):
        keras_vit.from_preset(directory)
    assert keras_vit.from_preset(directory, num_classes=2).num_classes == 2


def test_a_head_that_timms_config_leaves_out_is_not_dropped_in_silence(tmp_path):
    directory = goldens.repository("vit-plain", tmp_path, num_classes=0)
    with pytest.raises(WeightsError, match=r"2 not used by the model:\n    head.bias"):
        keras_vit.from_preset(directory)
    assert keras_vit.from_preset(directory, num_classes=0).num_classes == 0


WRAPPERS = ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "model.net."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["hf-vit", "hf-vit-v5", "hf-deit-teacher", "vit-plain"])
def test_what_a_wrapper_put_before_all_keys_is_left_out(name, wrapper, tmp_path):
    directory = goldens.repository(name, tmp_path)
    state = {f"{wrapper}{key}": value for key, value in goldens.weights(name).items()}
    save_file(state, tmp_path / "model.safetensors")
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(directory)
    np.testing.assert_allclose(run(model, golden["x"]), golden["logits"], atol=1e-5)


@pytest.mark.parametrize("trunk", ["backbone.", "encoder.vit.", ""])
def test_a_model_of_ones_own_may_call_its_trunk_otherwise(trunk, tmp_path):
    directory = goldens.repository("hf-vit", tmp_path, architectures=["MyModel"])
    state = goldens.weights("hf-vit")
    state = {key.replace("vit.", trunk, 1): value for key, value in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    golden = goldens.arrays("hf-vit")
    model = keras_vit.from_preset(directory)
    np.testing.assert_allclose(run(model, golden["x"]), golden["logits"], atol=1e-5)


@pytest.mark.parametrize("name", ["hf-vit-model", "hf-deit-model"])
def test_a_fresh_head_leaves_the_pooler_out(name, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path), num_classes=3)
    assert run(model, golden["x"]).shape == (2, 3)
    assert "pre_logits" not in [layer.name for layer in model.layers]
    np.testing.assert_allclose(run(model.backbone, golden["x"]), golden["features"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hf-vit", {"layer_norm_eps": 1e-6}),
        ("hf-vit-options", {"layer_norm_eps": 1e-12}),
        ("hf-vit-options", {"hidden_act": "gelu"}),
        ("hf-vit-gelu_new", {"hidden_act": "quick_gelu"}),
        ("hf-convnext-options", {"hidden_act": "gelu"}),
    ],
)
def test_a_field_that_is_not_honoured_shows_in_the_numbers(name, change, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path, **change))
    assert np.abs(run(model.backbone, golden["x"]) - golden["features"]).max() > 1e-4


def test_qkv_bias_is_honoured(tmp_path):
    directory = goldens.repository("hf-vit-options", tmp_path, qkv_bias=True)
    with pytest.raises(WeightsError, match=r"2 missing from the file:\n.*query\.bias"):
        keras_vit.from_preset(directory)


@pytest.mark.parametrize("name", list(goldens.PROCESSORS))
def test_pixels_are_those_of_transformers(name, tmp_path):
    directory = goldens.repository("hf-deit" if "deit" in name else "hf-vit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_size": 16}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(goldens.PROCESSORS[name]))
    model = keras_vit.from_preset(directory, load_weights=False)
    golden = goldens.arrays("processors")
    found = np.asarray(model.preprocessor(golden["image"]))
    assert found.dtype == "float32" and found.shape == golden[name].shape
    # PIL rounds its weights to 22 bits, which decides halves: a few pixels are one level off.
    off = np.abs(found - golden[name]) > 2e-6 * np.maximum(np.abs(golden[name]), 1)
    level = np.abs(np.diff(np.unique(golden[name][..., 0]))).min()
    assert off.mean() < 0.005
    np.testing.assert_allclose(found, golden[name], rtol=0, atol=1.1 * level)


def test_without_preprocessor_config_the_source_s_defaults_hold(tmp_path):
    directory = goldens.repository("hf-vit", tmp_path)
    converter = keras_vit.from_preset(directory, load_weights=False).preprocessor.image_converter
    assert converter.get_config()["interpolation"] == "bilinear"
    assert converter.mean == converter.std == [0.5, 0.5, 0.5]
    assert converter.image_size == (8, 12)


def edit(directory, **changes):
    """Change or (with None) drop fields of config.json."""
    path = pathlib.Path(directory, "config.json")
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return directory


def test_timms_older_flat_config_is_read(tmp_path):
    directory = goldens.repository("vit-plain", tmp_path)
    cfg = {**goldens.config("vit-plain")["pretrained_cfg"], "mean": [0.1, 0.2, 0.3]}
    model = keras_vit.from_preset(edit(directory, pretrained_cfg=None, **cfg))
    golden = goldens.arrays("vit-plain")
    np.testing.assert_allclose(run(model, golden["x"]), golden["logits"], atol=1e-5)
    assert model.preprocessor.image_converter.mean == [0.1, 0.2, 0.3]


def test_timms_label_names_are_the_models(tmp_path):
    names = [f"n{i}" for i in range(7)]
    directory = goldens.repository("vit-plain", tmp_path, label_names=names)
    assert keras_vit.from_preset(directory, load_weights=False).labels == names
    edit(directory, label_descriptions={"n2": "a cat"})
    assert keras_vit.from_preset(directory, load_weights=False).labels[1:3] == ["n1", "a cat"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vit-plain", {"architecture": "resnet50"}, "'resnet50', which is not supported"),
        ("vit-plain", {"model_args": {"qk_norm": True}}, "qk_norm.*not supported"),
        ("vit-plain", {"model_args": {"global_pool": "max"}}, "'max' is not supported"),
        ("vit-plain", {"architecture": None}, "none of the supported layouts"),
        ("hf-vit", {"model_type": "bert"}, "'bert', which is not supported"),
        ("hf-vit", {"hidden_act": "tanh"}, "hidden_act.*tanh"),
        ("hf-vit", {"hidden_size": None}, "hidden_size"),
    ],
)
def test_what_is_not_supported_is_said(name, changes, message, tmp_path):
    directory = edit(goldens.repository(name, tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        keras_vit.from_preset(directory)

"""LoRA adapters of PEFT: the logits are PEFT's.

The goldens are those of tests/goldens/make_peft.py; seeded.py makes the weights.
"""

import json
import pathlib

import goldens
import keras
import numpy as np
import pytest
from goldens import seeded
from hub_server import HubServer, client_of
from safetensors.numpy import save, save_file

import keras_vit
from keras_vit.hub import HubError, MissingFile
from keras_vit.weights import WeightsError

CASES = json.loads((goldens.HERE / "peft.json").read_text("utf-8"))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PROCESSOR = "preprocessor_config.json"
X = seeded.picture(12)


def logits(name):
    with np.load(goldens.HERE / "peft.npz") as file:
        return file[name]


def weights(name):
    return seeded.weights(CASES[name]["shapes"])


def write(folder, name, arrays=None, base=None, **changes):
    """A base model in `folder/base` and its adapter in `folder/adapter`, whose path is returned."""
    case = CASES[name]
    for part in ("base", "adapter"):
        (folder / part).mkdir(exist_ok=True)
    (folder / "base/config.json").write_text(json.dumps({**case["base_config"], **(base or {})}))
    save_file(seeded.weights(case["base_shapes"]), folder / "base/model.safetensors")
    place = str(folder / "base")
    config = {**case["config"], "base_model_name_or_path": place, **changes}
    (folder / "adapter" / CONFIG).write_text(json.dumps(config))
    save_file(weights(name) if arrays is None else arrays, folder / "adapter" / WEIGHTS)
    return str(folder / "adapter")


def run(model, x=X):
    return keras.ops.convert_to_numpy(model(x))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_peft(name, tmp_path):
    folder = write(tmp_path, name)
    model = keras_vit.from_preset(folder)
    np.testing.assert_allclose(run(model), logits(name), atol=1e-5)
    base = keras_vit.from_preset(tmp_path / "base", num_classes=0)
    assert np.abs(run(model.backbone) - run(base.backbone)).max() > 1e-3
    assert model.source == folder and model.num_classes == logits(name).shape[1]


# What transformers 4 called the modules, and the adapters that were trained with it.
V4 = {
    "vit.layers": "vit.encoder.layer",
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@pytest.mark.parametrize("name", ["guide", "bias_all", "no_head"])
def test_an_adapter_with_the_names_of_transformers_4(name, tmp_path):
    arrays = {}
    for key, value in weights(name).items():
        for new, old in V4.items():
            key = key.replace(new, old)
        arrays[key] = value
    assert set(arrays) != set(weights(name))
    model = keras_vit.from_preset(write(tmp_path, name, arrays))
    np.testing.assert_allclose(run(model), logits(name), atol=1e-5)


def test_the_head_of_a_state_dict_that_still_has_peft_s_wrapper(tmp_path):
    arrays = weights("guide")
    for leaf in ("weight", "bias"):
        value = arrays.pop(f"base_model.model.classifier.{leaf}")
        arrays[f"base_model.model.classifier.modules_to_save.{leaf}"] = value
        arrays[f"base_model.model.classifier.original_module.{leaf}"] = value[:3] + 2
    model = keras_vit.from_preset(write(tmp_path, "guide", arrays))
    np.testing.assert_allclose(run(model), logits("guide"), atol=1e-5)


@pytest.mark.parametrize("options", [{"num_classes": 2}, {"num_classes": 0}, {"image_size": 8}])
def test_changes_at_load_time(options, tmp_path):
    folder = write(tmp_path, "guide")
    model = keras_vit.from_preset(folder, **options)
    if "image_size" in options:
        assert run(model, seeded.picture(8)).shape == (2, 5)
    else:
        np.testing.assert_array_equal(
            run(model.backbone), run(keras_vit.from_preset(folder).backbone)
        )


def test_without_weights_only_the_configs_are_needed(tmp_path):
    folder = write(tmp_path, "guide")
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    assert keras_vit.from_preset(folder, load_weights=False).backbone.options["depth"] == 2


NAMES = {"id2label": {"0": "a", "1": "b", "2": "c"}}


@pytest.mark.parametrize(("name", "wanted"), [("guide", None), ("on_the_head", ["a", "b", "c"])])
def test_the_bases_class_names_are_those_of_as_many_classes(name, wanted, tmp_path):
    model = keras_vit.from_preset(write(tmp_path, name, base=NAMES))
    assert model.labels == wanted


def test_a_config_beside_the_adapter_names_the_classes(tmp_path):
    folder = pathlib.Path(write(tmp_path, "guide"))
    names = {str(i): f"flower {i}" for i in range(5)}
    config = {**CASES["guide"]["base_config"], "id2label": names}
    (folder / "config.json").write_text(json.dumps(config))
    model = keras_vit.from_preset(folder)
    assert model.labels == list(names.values())
    np.testing.assert_allclose(run(model), logits("guide"), atol=1e-5)


@pytest.mark.parametrize("place", ["adapter", "base"])
def test_preprocessing_is_the_adapters_or_else_the_bases(place, tmp_path):
    folder = write(tmp_path, "guide")
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "base" / PROCESSOR).write_text(json.dumps({"image_mean": [0.4, 0.4, 0.4]}))
    (tmp_path / place / PROCESSOR).write_text(json.dumps(processor))
    converter = keras_vit.from_preset(folder).preprocessor.image_converter
    assert converter.mean == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("here", ["adapter", "base", "."])
def test_a_base_may_be_named_relative_to_the_working_directory_or_the_adapter(
    here, tmp_path, monkeypatch
):
    folder = write(tmp_path, "guide", base_model_name_or_path="../base")
    monkeypatch.chdir(tmp_path / here)
    np.testing.assert_allclose(run(keras_vit.from_preset(folder)), logits("guide"), atol=1e-5)


def test_an_adapter_of_timms_layout(tmp_path):
    """PEFT on a model of timm, whose base is named by hand."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    goldens.repository("vit-plain", base)
    folder.mkdir()
    random = np.random.default_rng(0)
    state, golden = goldens.weights("vit-plain"), goldens.arrays("vit-plain")
    a, b = (random.normal(size=s).astype("float32") for s in ((2, 12), (36, 2)))
    head = {"head.weight": random.normal(size=(4, 12)), "head.bias": random.normal(size=4)}
    adapter = {f"base_model.model.{k}": v.astype("float32") for k, v in head.items()}
    adapter["base_model.model.blocks.0.attn.qkv.lora_A.weight"] = a
    adapter["base_model.model.blocks.0.attn.qkv.lora_B.weight"] = b
    save_file(adapter, folder / WEIGHTS)
    config = {"peft_type": "LORA", "lora_alpha": 1, "base_model_name_or_path": str(base)}
    (folder / CONFIG).write_text(json.dumps(config))
    model = keras_vit.from_preset(folder)
    state["blocks.0.attn.qkv.weight"] += b @ a / 2
    state |= {k: v.astype("float32") for k, v in head.items()}
    merged = goldens.repository("vit-plain", tmp_path / "merged", num_classes=4)
    save_file(state, pathlib.Path(merged, "model.safetensors"))
    wanted = keras_vit.from_preset(merged)
    x = golden["x"]
    np.testing.assert_allclose(run(model, x), run(wanted, x), atol=1e-5)


@pytest.fixture
def hub(tmp_path):
    case = CASES["guide"]
    base = {
        "config.json": json.dumps(case["base_config"]).encode(),
        "model.safetensors": save(seeded.weights(case["base_shapes"])),
    }
    config = {**case["config"], "base_model_name_or_path": "me/base"}
    adapter = {CONFIG: json.dumps(config).encode(), WEIGHTS: save(weights("guide"))}
    files = {"me/base": base, "me/adapter": adapter}
    with HubServer(files) as server, client_of(server, tmp_path / "cache"):
        yield server


def test_an_adapter_and_its_base_on_the_hub(hub):
    model = keras_vit.from_preset("me/adapter")
    np.testing.assert_allclose(run(model), logits("guide"), atol=1e-5)
    assert model.source == f"hf://me/adapter@{hub.commit('me/adapter')}"
    hub.requests.clear()
    again = keras_vit.from_preset("me/adapter", local_files_only=True)
    np.testing.assert_array_equal(run(again), run(model))
    assert hub.asked() == []


def test_the_bases_revision_is_the_adapters(hub):
    hub.tag("me/base", "v1")
    hub.repositories["me/base"] = {"config.json": b"{}"}
    config = json.loads(hub.repositories["me/adapter"][CONFIG])
    hub.repositories["me/adapter"][CONFIG] = json.dumps({**config, "revision": "v1"}).encode()
    model = keras_vit.from_preset("me/adapter")
    np.testing.assert_allclose(run(model), logits("guide"), atol=1e-5)


def test_a_base_that_is_not_there_is_named(hub):
    del hub.repositories["me/base"]
    with pytest.raises(HubError, match="me/adapter is an adapter of the model 'me/base'"):
        keras_vit.from_preset("me/adapter")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type must be LORA.*'LOHA'.*merge_and_unload"),
        ({"use_dora": True}, "not supported: use_dora=True"),
        ({"use_qalora": True}, "not supported: use_qalora=True"),
        ({"target_parameters": ["x"]}, "not supported: target_parameters="),
        ({"layer_replication": [[0, 1]]}, "not supported: layer_replication="),
        ({"init_lora_weights": "pissa"}, "not supported: init_lora_weights='pissa'"),
        ({"use_of_next_year": 1}, "not supported: use_of_next_year=1"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path of .* must name the base"),
        ({"base_model_name_or_path": "/no/such"}, "adapter of the model '/no/such'"),
        ({"lora_alpha": "many"}, "lora_alpha must be a number"),
        ({"alpha_pattern": {"(a+)+b": 1}}, "alpha_pattern must have names of modules as keys"),
        ({"alpha_pattern": {"(a": 1}}, "alpha_pattern: '.a'"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be an object"),
    ],
)
def test_what_is_not_supported_is_named(changes, message, tmp_path):
    with pytest.raises((ValueError, HubError), match=message):
        keras_vit.from_preset(write(tmp_path, "guide", **changes))


A, B = (f"base_model.model.vit.layers.0.attention.q_proj.lora_{x}.weight" for x in "AB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({A: None}, "lora_A and lora_B of vit.layers.0.attention.q_proj in .* must be"),
        ({A: (3, 12)}, "must be .r, in. and .out, r.. Received: .3, 12. and .12, 4."),
        ({A: (0, 12), B: (12, 0)}, "must be .r, in. and .out, r."),
        ({A: (4, 11)}, "does not fit its base model .*attention.query.weight"),
        ({"base_model.model.vit.pooler.weight": (3,)}, "does not fit .*pooler.weight"),
        ({"base_model.model.classifier.0.weight": (5, 12)}, "does not fit .*classifier.0.weight"),
        ({"base_model.model.classifier.weight": (5, 11)}, "of the wrong shape"),
    ],
)
def test_tensors_that_fit_no_module_are_named(change, message, tmp_path):
    arrays = weights("guide")
    for key, shape in change.items():
        if shape is None:
            del arrays[key]
        else:
            arrays[key] = np.ones(shape, "float32")
    with pytest.raises(WeightsError, match=message):
        keras_vit.from_preset(write(tmp_path, "guide", arrays))


def test_a_pickle_is_refused(tmp_path):
    folder = pathlib.Path(write(tmp_path, "guide"))
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(MissingFile, match="only in adapter_model.bin"):
        keras_vit.from_preset(folder)

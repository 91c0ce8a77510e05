"""Other spellings of the same weights: what a file says is what the model computes.

The goldens are those of tests/goldens/make_spellings.py; seeded.py makes the weights.
"""

import json
import pathlib
import re
import zipfile

import goldens
import keras
import ml_dtypes
import numpy as np
import pytest
from goldens import seeded
from safetensors.numpy import save_file

import keras_vit
import keras_vit_presets as presets
from keras_vit import hub, layouts
from keras_vit.layouts import convert
from keras_vit.weights import Tensor, WeightsError

CASES = json.loads((goldens.HERE / "spellings.json").read_text("utf-8"))
HF = [name for name in CASES if "config" in CASES[name]]
FILES = [name for name in CASES if "config" not in CASES[name]]
FAMILIES = {"vit-hybrid": "HybridViT", "npz-r": "HybridViT", "npz-r50": "HybridViT"}
FAMILIES |= {"npz-mixer": "MLPMixer"}
PROCESSOR = "preprocessor_config.json"
TOLD = {
    n: {"num_heads": 2} for n in ("torchvision", "torchvision-representation")
}  # what the file does not say
ATTENTION = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"


def golden(name):
    with np.load(goldens.HERE / "spellings.npz") as file:
        return {key: file[f"{name}/{key}"] for key in ("features", "outputs")}


def weights(name):
    return seeded.weights(CASES[name]["shapes"])


def directory(name, folder, arrays=None, **changes):
    """A golden as transformers saves it; `changes` replace fields of config.json."""
    config = json.loads(json.dumps(CASES[name]["config"]))
    for field, value in changes.items():
        nested = "vision_config" in config and field not in ("architectures", "processor")
        (config["vision_config"] if nested else config)[field] = value
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(name) if arrays is None else arrays, folder / "model.safetensors")
    return str(folder)


def weights_file(name, folder, arrays=None):
    """A golden as one file, without config.json."""
    arrays = weights(name) if arrays is None else arrays
    path = folder / f"{name}.{'npz' if name.startswith('npz') else 'safetensors'}"
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return str(path)


def source(name, folder):
    return (weights_file if name in FILES else directory)(name, folder)


def load(name, path, **options):
    return keras_vit.from_preset(path, **TOLD.get(name, {}), **options)


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


def picture(model):
    return seeded.picture(model.image_size[0])


def check(model, name, atol=1e-5):
    wanted, x = golden(name), picture(model)
    np.testing.assert_allclose(run(model.backbone, x), wanted["features"], atol=atol)
    np.testing.assert_allclose(run(model, x), wanted["outputs"], atol=atol)


def off(model, name):
    """The largest difference from the golden's outputs."""
    return np.abs(run(model, picture(model)) - golden(name)["outputs"]).max()


@pytest.mark.parametrize("name", list(CASES))
def test_features_and_outputs_are_those_of_the_source(name, tmp_path):
    model = load(name, source(name, tmp_path))
    assert type(model).__name__ == FAMILIES.get(name, "ViT")
    check(model, name)


@pytest.mark.parametrize("name", ["dinov2", "clip", "siglip_vision_model", "npz-vit", "npz-mixer"])
def test_a_fresh_head_keeps_the_trunk(name, tmp_path):
    model = keras_vit.from_preset(source(name, tmp_path), num_classes=3)
    x = picture(model)
    np.testing.assert_allclose(run(model.backbone, x), golden(name)["features"], atol=1e-5)
    assert run(model, x).shape == (2, 3)


# --- transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["siglip_vision_model", "clip_vision_model"])
@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_the_prefix_of_a_tower_may_be_there_or_not(name, prefix, tmp_path):
    arrays = {prefix + key.removeprefix("vision_model."): v for key, v in weights(name).items()}
    check(keras_vit.from_preset(directory(name, tmp_path, arrays)), name)


V5 = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "weights_out": "down_proj",
}
V5_VIT = {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "encoder.layer.": "layers."}


@pytest.mark.parametrize(
    "name", ["vit_msn", "vit_mae", "dinov2", "dinov2-swiglu", "dinov2_with_registers"]
)
def test_the_keys_of_transformers_5(name, tmp_path):
    words = V5 | (V5_VIT if name.startswith("vit") else {})
    arrays = {}
    for key, value in weights(name).items():
        for old, new in words.items() if not key.startswith("decoder") else ():
            key = key.replace(old, new)
        parts = {"gate_proj": 0, "up_proj": 1} if "weights_in" in key else {"": 0}
        for part, i in parts.items():
            rows = len(value) // len(parts)
            part_key = key.replace("weights_in", part) if part else key
            arrays[part_key] = value[i * rows : (i + 1) * rows].copy()
    assert set(arrays) != set(weights(name))
    check(keras_vit.from_preset(directory(name, tmp_path, arrays)), name)


def test_registers_and_class_token_lie_where_they_did(tmp_path):
    model = keras_vit.from_preset(directory("dinov2_with_registers", tmp_path))
    encoder = model.get_layer("patch_embed")
    arrays = weights("dinov2_with_registers")
    prefix = "dinov2_with_registers.embeddings."
    table = arrays[prefix + "position_embeddings"]
    np.testing.assert_array_equal(encoder.pos_embed, table[:, 1:])
    np.testing.assert_array_equal(encoder.cls_token, arrays[prefix + "cls_token"] + table[:, :1])
    np.testing.assert_array_equal(encoder.reg_token, arrays[prefix + "register_tokens"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("clip_vision_model", {"hidden_act": "gelu"}),  # QuickGELU is the default
        ("clip_vision_model-gelu", {"hidden_act": "quick_gelu"}),
        ("clip_vision_model", {"layer_norm_eps": 1e-6}),
        ("clip", {"layer_norm_eps": 1e-6}),
        ("siglip_vision_model", {"layer_norm_eps": 1e-5}),
        ("siglip", {"hidden_act": "quick_gelu"}),
        ("dinov2", {"layer_norm_eps": 1e-4}),
        ("vit_msn", {"layer_norm_eps": 1e-4}),
        ("dinov2", {"hidden_act": "quick_gelu"}),
    ],
)
def test_a_field_that_is_not_honoured_shows_in_the_numbers(name, change, tmp_path):
    model = keras_vit.from_preset(directory(name, tmp_path, **change))
    assert off(model, name) > 5e-5


@pytest.mark.parametrize("name", ["clip_vision_model", "clip", "siglip", "siglip_vision_model"])
def test_fields_that_a_config_leaves_out_have_the_values_of_its_class(name, tmp_path):
    folder = directory(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    vision = config.get("vision_config", config)
    for field in ("hidden_act", "layer_norm_eps"):
        vision.pop(field)
    (tmp_path / "config.json").write_text(json.dumps(config))
    check(keras_vit.from_preset(folder), name)


def test_an_empty_vision_config_is_the_base_model(tmp_path):
    config = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["SiglipModel"]}))
    spec = layouts.from_repository(hub.Repository(tmp_path))
    wanted = {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4, "patch_size": 16,
              "image_size": (224, 224), "activation": "gelu_tanh", "norm_eps": 1e-6}  # fmt: skip
    assert {key: spec.backbone[key] for key in wanted} == wanted


@pytest.mark.parametrize("name", ["dinov2-swiglu", "dinov2_with_registers-swiglu"])
def test_the_halves_of_swiglu_are_not_the_other_way_round(name, tmp_path):
    arrays = weights(name)
    for key, value in arrays.items():
        if "weights_in" in key:
            arrays[key] = np.concatenate(np.split(value, 2)[::-1])
    assert off(keras_vit.from_preset(directory(name, tmp_path, arrays)), name) > 1e-3


@pytest.mark.parametrize(("dtype", "atol"), [("float16", 2e-2), ("bfloat16", 1e-1)])
@pytest.mark.parametrize("name", ["clip", "dinov2_with_registers", "npz-vit", "torchvision"])
def test_half_precision_files(name, dtype, atol, tmp_path):
    numbers = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    arrays = {key: value.astype(numbers) for key, value in weights(name).items()}
    write = weights_file if name in FILES else directory
    model = load(name, write(name, tmp_path, arrays))
    rounded = {key: value.astype("float32") for key, value in arrays.items()}
    (tmp_path / "whole").mkdir()
    whole = load(name, write(name, tmp_path / "whole", rounded))
    x = picture(model)
    np.testing.assert_array_equal(run(model, x), run(whole, x))  # as the file says, to the bit
    assert 0 < off(model, name) < atol


def test_shards_with_an_index(tmp_path):
    folder = directory("clip", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    keys = sorted(weights("clip"))
    parts = {
        "model-00001-of-00002.safetensors": keys[::2],
        "model-00002-of-00002.safetensors": keys[1::2],
    }
    for shard, held in parts.items():
        save_file({key: weights("clip")[key] for key in held}, tmp_path / shard)
    index = {"weight_map": {key: shard for shard, held in parts.items() for key in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    check(keras_vit.from_preset(folder), "clip")


def test_token_avg_is_named_where_timm_cannot_have_it(tmp_path):
    model = keras_vit.from_preset(directory("dinov2", tmp_path))
    assert model.pooling == "token_avg"
    model.save_to_preset(tmp_path / "keras")
    check(keras_vit.from_preset(tmp_path / "keras"), "dinov2")
    for write in (model.save_to_timm, model.save_to_transformers):
        with pytest.raises(ValueError, match="pooling"):
            write(tmp_path / "back")


@pytest.mark.parametrize("pooling", ["tokens", "seq"])
def test_a_pooling_that_timm_does_not_have_is_named(pooling, tmp_path):
    model = keras_vit.from_preset(directory("clip", tmp_path), pooling=pooling, num_classes=3)
    model.save_to_preset(tmp_path / "keras")
    x = np.random.default_rng(0).normal(size=(1, *model.image_size, 3)).astype("float32")
    loaded = keras_vit.from_preset(tmp_path / "keras")
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))
    for write in (model.save_to_timm, model.save_to_transformers):
        with pytest.raises(ValueError, match="pooling"):
            write(tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone_config": {"layer_type": "preactivation"}}, "layer_type must be"),
        ({"backbone_config": {"depths": "many"}}, "depths must be"),
        ({"backbone_config": {"global_padding": "valid"}}, "global_padding must be"),
    ],
)
def test_a_hybrid_of_another_kind_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        keras_vit.from_preset(directory("vit-hybrid", tmp_path, **change))


def test_tensors_of_the_wrong_shape_are_reported(tmp_path):
    arrays = weights("siglip_vision_model")
    key = next(k for k in arrays if k.endswith("in_proj_weight"))
    arrays[key] = arrays[key][:-1]
    with pytest.raises(
        WeightsError, match="(?s)missing from the file.*head.attention.query.weight"
    ):
        keras_vit.from_preset(directory("siglip_vision_model", tmp_path, arrays))


def test_every_verb_of_the_table_is_known():
    verbs = {
        v
        for t in presets.layout("transformers").values()
        for s in t.get("convert", {}).values()
        for v in s
    }
    assert verbs == set(convert.VERBS)


def test_what_a_verb_does_not_fit_stays():
    tensor = Tensor((), lambda: np.zeros(()))
    rows = {"a": {"split": ["b", "c"]}, "d": {"first_row_to": "e"}, "f.*": {"axes": 2}}
    assert convert.tensors({"a": tensor, "d": tensor}, rows) == {"a": tensor, "d": tensor}
    assert convert.tensors({"f.3.g": tensor}, rows)["f.3.g"].shape == (1, 1)


# --- preprocessing --------------------------------------------------------------------------------

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
OLD_CLIP = {
    "crop_size": 12, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": CLIP_MEAN,
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 12,
}  # fmt: skip
DINO = {
    "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "resample": 3,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
SIGLIP = {
    "image_processor_type": "SiglipImageProcessor", "size": {"height": 12, "width": 12},
    "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "wanted"),
    [
        ("clip", OLD_CLIP, ("center", 1.0, "bicubic", CLIP_MEAN)),
        ("clip", None, ("center", 1.0, "bicubic", CLIP_MEAN)),
        ("dinov2", DINO, ("center", 0.875, "bicubic", DINO["image_mean"])),
        ("dinov2_with_registers", None, ("center", 0.875, "bicubic", DINO["image_mean"])),
        ("siglip", SIGLIP, ("squash", 1.0, "bicubic", [0.5] * 3)),
        ("siglip_vision_model", None, ("squash", 1.0, "bicubic", [0.5] * 3)),
        ("vit_msn", None, ("squash", 1.0, "bilinear", DINO["image_mean"])),
        ("vit-hybrid", None, ("center", 1.0, "bicubic", [0.5] * 3)),
    ],
)
@pytest.mark.parametrize("filename", [PROCESSOR, "processor_config.json"])
def test_preprocessing_of_each_family(name, file, wanted, filename, tmp_path):
    folder = directory(name, tmp_path)
    if file:
        nested = filename != PROCESSOR  # of 5.x' CLIPProcessor and SiglipProcessor
        (tmp_path / filename).write_text(json.dumps({"image_processor": file} if nested else file))
    images = keras_vit.from_preset(folder, load_weights=False).preprocessor.image_converter
    found = (images.crop_mode, images.crop_pct, images.interpolation)
    assert found == wanted[:3]
    np.testing.assert_allclose(images.mean, wanted[3])
    assert images.image_size == tuple([CASES_SIZE[name]] * 2)


CASES_SIZE = {
    name: case["config"].get("vision_config", case["config"])["image_size"]
    for name, case in CASES.items()
    if "config" in case
}


# --- files without config.json --------------------------------------------------------------------


def test_the_architecture_follows_from_the_tensors(tmp_path):
    options = keras_vit.from_preset(weights_file("npz-r50", tmp_path)).backbone.options
    assert options["stages"] == (1, 2) and options["patch_size"] == 2
    assert options["num_heads"] == 3 and options["activation"] == "gelu_tanh"
    assert options["image_size"] == (32, 32)
    options = load("torchvision", weights_file("torchvision", tmp_path)).backbone.options
    assert options["num_heads"] == 2 and options["activation"] == "gelu"
    assert options["norm_eps"] == 1e-6


def test_npz_files_with_an_optimizer_or_of_flax_modules(tmp_path):
    for prefix in ("opt/target/", "params/"):
        arrays = {prefix + key: value for key, value in weights("npz-vit").items()}
        arrays["opt/state/step"] = np.zeros((), "float32")
        check(keras_vit.from_preset(weights_file("npz-vit", tmp_path, arrays)), "npz-vit")


def with_representation(head):
    arrays = weights("npz-vit")
    arrays["pre_logits/kernel"] = seeded.values("pre_logits/kernel", (12, 12))
    arrays["pre_logits/bias"] = seeded.values("pre_logits/bias", (12,))
    if head == "zero":
        arrays["head/kernel"] = np.zeros_like(arrays["head/kernel"])
    if head == "none":
        arrays = {key: value for key, value in arrays.items() if not key.startswith("head/")}
    return arrays


@pytest.mark.parametrize("head", ["none", "zero", "trained"])
def test_the_representation_layer_is_kept(head, tmp_path):
    arrays = with_representation(head)
    model = keras_vit.from_preset(weights_file("npz-vit", tmp_path, arrays))
    token = golden("npz-vit")["features"][:, 0]
    wanted = np.tanh(token @ arrays["pre_logits/kernel"] + arrays["pre_logits/bias"])
    if head == "trained":
        wanted = wanted @ arrays["head/kernel"] + arrays["head/bias"]
    assert model.num_classes == (5 if head == "trained" else 0)
    np.testing.assert_allclose(run(model, picture(model)), wanted, atol=1e-5)


def test_preprocessing_of_files(tmp_path):
    images = keras_vit.from_preset(weights_file("npz-vit", tmp_path)).preprocessor.image_converter
    assert (images.crop_mode, images.crop_pct, images.interpolation) == ("squash", 1.0, "bilinear")


def test_the_keys_of_older_torchvision(tmp_path):
    arrays = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in weights("torchvision").items()
    }
    assert set(arrays) != set(weights("torchvision"))
    check(load("torchvision", weights_file("torchvision", tmp_path, arrays)), "torchvision")


def test_another_size_of_a_file(tmp_path):
    model = keras_vit.from_preset(weights_file("npz-vit", tmp_path), image_size=(8, 20))
    assert run(model, np.zeros((1, 8, 20, 3), "float32")).shape == (1, 5)
    with pytest.raises(ValueError, match="fit images of 12 x 12 pixels only"):
        keras_vit.from_preset(weights_file("npz-mixer", tmp_path), image_size=16)


def refused(path):
    with pytest.raises(ValueError) as found:
        keras_vit.from_preset(str(path))
    return str(found.value)


def test_files_that_hold_no_model_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3, "float32"))
    assert "has a tensor Transformer/posembed_input" in refused(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", cls=np.array([{}], dtype=object))
    assert "not floating-point" in refused(tmp_path / "b.npz")
    pathlib.Path(tmp_path, "c.npz").write_bytes(b"no zip")
    assert "not a complete .npz file" in refused(tmp_path / "c.npz")
    save_file(
        {"patch_embed.proj.weight": np.zeros((4, 3, 2, 2), "float32")}, tmp_path / "d.safetensors"
    )
    assert "config.json beside it" in refused(tmp_path / "d.safetensors")
    pathlib.Path(tmp_path, "e.bin").write_bytes(b"pickle")
    assert "is not a directory" in refused(tmp_path / "e.bin")
    assert "There is no file" in refused(tmp_path / "f.npz")
    pathlib.Path(tmp_path, ".npz").write_bytes(b"no zip")
    assert "not a complete .npz file" in refused(tmp_path / ".npz")


@pytest.mark.parametrize("shape", [(1 << 14, 1 << 14), (64, 1 << 16)])
def test_an_archive_of_zeros_is_refused(shape, tmp_path):
    """A gigabyte in a megabyte, or 16 MB in 16 kB."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in weights("npz-vit").items():
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, value)
        with archive.open("zeros.npy", "w") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(shape[0]):
                file.write(bytes(4 * shape[1]))
    with pytest.raises(ValueError, match="holds arrays of .* bytes, more than weights can be comp"):
        keras_vit.from_preset(path)


def test_a_compressed_archive_of_weights_is_read(tmp_path):
    """With the head of zeros that the ViT paper's ImageNet-21k files have."""
    arrays = with_representation("zero") | {"head/bias": np.zeros(5, "float32")}
    np.savez_compressed(tmp_path / "weights.npz", **arrays)
    assert keras_vit.from_preset(tmp_path / "weights.npz").num_classes == 0


def test_an_unknown_tensor_is_named_as_the_file_names_it(tmp_path):
    arrays = weights("npz-r50") | {"block1/unit01/foo/bar": np.zeros(2, "float32")}
    message = refused(weights_file("npz-r50", tmp_path, arrays))
    assert "1 not used by the model:\n    block1/unit01/foo/bar" in message


def test_a_cut_or_mutated_npz_file_is_an_error_that_names_it(tmp_path):
    whole = pathlib.Path(weights_file("npz-vit", tmp_path)).read_bytes()
    path = tmp_path / "broken.npz"
    for length in (0, 10, 1000, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        assert "broken.npz" in refused(path)
    random = np.random.RandomState(0)
    for _ in range(60):
        data = bytearray(whole)
        for position in random.randint(0, len(whole), 20):
            data[position] = random.randint(256)
        path.write_bytes(bytes(data))
        try:
            keras_vit.from_preset(str(path), load_weights=False)
        except ValueError as error:
            assert "broken.npz" in str(error)


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("npz-vit", {"Transformer/posembed_input/pos_embedding": (1, 9, 12)}, "of a square image"),
        ("npz-mixer", {"MixerBlock_0/token_mixing/Dense_0/kernel": (8, 7)}, "fit a square image"),
        ("npz-vit", {"head/bias": (6,)}, "of the wrong shape"),
        ("torchvision", {"conv_proj.weight": (40, 3, 4, 4)}, "40 is the width of none"),
        ("npz-vit", {f"{ATTENTION}/out/kernel": (2, 32, 0)}, "attn.proj.weight: .0, 64. in the"),
        ("npz-vit", {f"{ATTENTION}/query/kernel": (0, 2, 32)}, "attn.query.weight"),
    ],
)
def test_tensors_that_make_no_model_are_named(name, shapes, message, tmp_path):
    arrays = weights(name) | {k: np.ones(s, "float32") for k, s in shapes.items()}
    assert re.search(message, refused(weights_file(name, tmp_path, arrays)))

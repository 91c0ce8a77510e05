"""Names both ways, bit-exact export, and one report of all that does not fit."""

import goldens
import keras
import numpy as np
import pytest

import keras_vit
from keras_vit import presets, weights
from keras_vit.keys import key_of, spellings, translate

VIT = presets.families()["vit"]["rename"]
HF = presets.transformers()["vit"]["rename"]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("blocks_0/attn/qkv/kernel", "blocks.0.attn.qkv.weight"),
        ("blocks_11/norm1/gamma", "blocks.11.norm1.weight"),
        ("blocks_11/norm1/beta", "blocks.11.norm1.bias"),
        ("blocks_3/norm2/scale", "blocks.3.norm2.weight"),
        ("blocks_3/ls1/layer_scale", "blocks.3.ls1.gamma"),
        ("blocks_3/mlp/fc1_g/bias", "blocks.3.mlp.fc1_g.bias"),
        ("patch_embed/proj/kernel", "patch_embed.proj.weight"),
        ("patch_embed/embed_norm/scale", "patch_embed.norm.weight"),
        ("patch_embed/pos_embed", "pos_embed"),
        ("patch_embed/cls_token", "cls_token"),
        ("patch_embed/reg_token", "reg_token"),
        ("attn_pool/latent", "attn_pool.latent"),
        ("head/kernel", "head.weight"),
    ],
)
def test_a_path_is_a_key_by_one_rule(path, key):
    assert key_of(path, VIT) == key


def test_an_index_is_kept_and_joins_query_key_and_value():
    wanted = [f"layers.7.attention.{part}_proj.bias" for part in "qkv"]
    old = [f"encoder.layer.7.attention.attention.{w}.bias" for w in ("query", "key", "value")]
    assert spellings("blocks.7.attn.qkv.bias", HF) == [old, wanted]
    assert spellings("blocks.7.attn.proj.bias", HF) == [
        ["encoder.layer.7.attention.output.dense.bias"],
        ["layers.7.attention.o_proj.bias"],
    ]
    assert spellings("norm.weight", HF) == [["layernorm.weight"]]
    assert spellings("of.no.row", HF) == [["of.no.row"]]


def test_more_specific_rows_win():
    rename = {"a": "b", "a.c": "d", "a.c.*.e": "f.*"}
    keys = ("a.x", "a.c.x", "a.c.3.e.x", "ab.x")
    assert [translate(key, rename) for key in keys] == ["b.x", "d.x", "f.3.x", "ab.x"]


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 2)])
def test_kernels_change_their_axes_by_name_never_by_shape(shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    kernel = weights.to_keras(array, "head/kernel")
    assert kernel.shape == (*shape[2:], shape[1], shape[0])
    np.testing.assert_array_equal(weights.to_torch(kernel, "head/kernel"), array)
    assert weights.to_keras(array, "patch_embed/pos_embed") is array


TIMM = [name for name in goldens.CONFIGS if not name.startswith("hf-")]


@pytest.mark.parametrize("name", TIMM)
def test_what_was_loaded_is_exported_bit_by_bit(name, tmp_path):
    model = keras_vit.from_preset(goldens.repository(name, tmp_path))
    family = name.split("-")[0]
    rename = presets.families().get(family, presets.families()["vit"])["rename"]
    found = weights.export(model, rename)
    wanted = goldens.weights(name)
    assert set(found) == set(wanted)
    for key, tensor in found.items():
        array = tensor.read()
        assert array.shape == tensor.shape and array.dtype == "float32"
        np.testing.assert_array_equal(array, wanted[key], err_msg=key)


def tensors(arrays):
    return {key: weights.Tensor(a.shape, lambda a=a: a) for key, a in arrays.items()}


@pytest.fixture
def model(tmp_path):
    directory = goldens.repository("vit-plain", tmp_path)
    return keras_vit.from_preset(directory, load_weights=False)


def test_all_that_does_not_fit_comes_in_one_error_and_nothing_is_assigned(model):
    before = model.get_weights()
    arrays = goldens.weights("vit-plain")
    del arrays["norm.bias"], arrays["blocks.1.attn.qkv.weight"]
    arrays |= {"fc_norm.bias": np.zeros(12, "float32"), "extra": np.zeros(1, "float32")}
    arrays["blocks.0.mlp.fc1.weight"] = arrays["blocks.0.mlp.fc1.weight"].T
    arrays["cls_token"] = arrays["cls_token"][0]
    with pytest.raises(weights.WeightsError) as caught:
        weights.load(model, tensors(arrays), VIT, where="the file")
    message = str(caught.value)
    assert message.splitlines() == [
        "The weights of the file do not fit the model:",
        "  2 missing from the file:",
        "    blocks.1.attn.qkv.weight",
        "    norm.bias",
        "  2 not used by the model:",
        "    fc_norm.bias",
        "    extra",
        "  2 of the wrong shape:",
        "    cls_token: (1, 12) in the file, (1, 1, 12) in the model",
        "    blocks.0.mlp.fc1.weight: (12, 36) in the file, (36, 12) in the model",
    ]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_square_kernel_is_transposed_a_square_table_is_not(model):
    arrays = goldens.weights("vit-plain")
    weights.load(model, tensors(arrays), VIT)
    proj = model.get_layer("blocks_0").attn.proj.kernel
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(proj), arrays["blocks.0.attn.proj.weight"].T
    )


def test_leftovers_are_tolerated_by_name_only(model):
    arrays = goldens.weights("vit-plain") | {"mask_token": np.zeros(3, "float32")}
    weights.load(model, tensors(arrays), VIT, ignore=("mask_token",))
    with pytest.raises(weights.WeightsError, match="mask_token"):
        weights.load(model, tensors(arrays), VIT, ignore=("mask",))


def test_optional_weights_keep_their_values(model):
    arrays = goldens.weights("vit-plain")
    head = keras.ops.convert_to_numpy(model.get_layer("head").kernel)
    arrays["head.weight"] = np.zeros((1000, 12), "float32")
    weights.load(model, tensors(arrays), VIT, optional=("head",))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model.get_layer("head").kernel), head)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model.get_layer("norm").gamma), arrays["norm.weight"]
    )

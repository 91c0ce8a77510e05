"""Names both ways, bit-exact export, and one report of all that does not fit."""

import fnmatch

import goldens
import keras
import numpy as np
import pytest
import tiny_models

import keras_vit
import keras_vit_presets as presets
from keras_vit import weights
from keras_vit.keys import key_of, spellings, translate
from keras_vit.layouts import family_of

VIT = presets.families()["vit"].rename
HF = presets.layout("transformers")["vit"]["rename"]


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


def test_a_depthwise_kernel_has_one_input_channel():
    array = np.arange(5 * 3 * 2).reshape(5, 1, 3, 2)
    kernel = weights.to_keras(array, "conv_dw/depthwise_kernel")
    assert kernel.shape == (3, 2, 5, 1)
    np.testing.assert_array_equal(kernel[:, :, 4, 0], array[4, 0])
    np.testing.assert_array_equal(weights.to_torch(kernel, "conv_dw/depthwise_kernel"), array)
    assert (
        key_of("stages_1_blocks_0/conv_dw/depthwise_kernel") == "stages.1.blocks.0.conv_dw.weight"
    )


TIMM = goldens.TIMM


@pytest.mark.parametrize("name", TIMM)
def test_what_was_loaded_is_exported_bit_by_bit(name, tmp_path):
    model = keras_vit.from_preset(goldens.repository(name, tmp_path))
    family = family_of(type(model))
    found = weights.export(model, family.rename)
    wanted = goldens.weights(name)
    ignored = {key for pattern in family.ignore for key in fnmatch.filter(wanted, pattern)}
    assert set(found) == set(wanted) - ignored
    for key, tensor in found.items():
        array = tensor.read()
        assert array.shape == tensor.shape and array.dtype == "float32"
        # A 1x1 convolution of timm is a dense layer here.
        np.testing.assert_array_equal(array, wanted[key].reshape(array.shape), err_msg=key)


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
        weights.load_tensors(model, tensors(arrays), VIT, where="the file")
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
    weights.load_tensors(model, tensors(arrays), VIT)
    proj = model.get_layer("blocks_0").attn.proj.kernel
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(proj), arrays["blocks.0.attn.proj.weight"].T
    )


def test_leftovers_are_tolerated_by_name_only(model):
    arrays = goldens.weights("vit-plain") | {"mask_token": np.zeros(3, "float32")}
    weights.load_tensors(model, tensors(arrays), VIT, ignore=("mask_token",))
    with pytest.raises(weights.WeightsError, match="mask_token"):
        weights.load_tensors(model, tensors(arrays), VIT, ignore=("mask",))


def test_optional_weights_keep_their_values(model):
    arrays = goldens.weights("vit-plain")
    head = keras.ops.convert_to_numpy(model.get_layer("head").kernel)
    arrays["head.weight"] = np.zeros((1000, 12), "float32")
    weights.load_tensors(model, tensors(arrays), VIT, fresh=("head/kernel", "head/bias"))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model.get_layer("head").kernel), head)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model.get_layer("norm").gamma), arrays["norm.weight"]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", ["keras", "timm", "transformers"])
def test_nan_and_infinity_are_reported_by_the_tensors_name(layout, value, tmp_path):
    model = tiny_models.classifier(image_size=224, embed_dim=192, depth=12)
    bias = model.get_layer("blocks_1").mlp.fc2.bias
    bias.assign(np.where(np.arange(192) == 3, value, np.asarray(bias)))
    write = {"keras": model.save_to_preset, "timm": model.save_to_timm}
    write.get(layout, model.save_to_transformers)(tmp_path / "m")
    name = {"keras": "blocks_1/mlp/fc2/bias", "timm": "blocks.1.mlp.fc2.bias"}
    name = name.get(layout, "output.dense.bias")
    with pytest.raises(weights.WeightsError, match=f"{name} .*NaN or infinity in 1 of 192 values"):
        keras_vit.from_preset(tmp_path / "m")


def test_numbers_whose_sum_overflows_load():
    large = np.full(4, 3e38, "float32")
    assert weights.finite(large, "large", "a file") is large

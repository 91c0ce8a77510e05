"""EVA: rotary position embeddings, in the sources' numbers and in exported files."""

import collections
import json

import goldens
import keras
import numpy as np
import pytest
import tiny_models
from PIL import Image
from safetensors.numpy import save_file
from test_models import close, difference, run, sprung, swap, swap_halves
from tiny_models import classifier, softmax

import keras_vit
from keras_vit import EVA

TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("eva-dinov3", {"rope_rotate_half": False}),
        ("eva-dinov3", {"rope_type": "cat"}),
        ("eva-dinov3", {"rope_temperature": 10000.0}),
        ("eva-dinov3", {"rope_grid_indexing": "xy"}),
        ("eva-dinov3", {"rope_type": "none"}),
        ("eva-dinov3", {"norm_eps": 1e-6}),
        ("eva-dinov3_plus", {"activation": "gelu"}),
        ("eva-eva02", {"ref_feat_shape": None}),
        ("eva-eva02", {"rope_rotate_half": True}),
        ("eva-eva02", {"norm_eps": 1e-5}),
        ("eva-eva02_small", {"activation": "gelu"}),
        ("eva-pe_core", {"rope_grid_offset": None}),
        ("eva-pe_core", {"rope_grid_indexing": "ij"}),
        ("eva-pe_core", {"attn_pool_num_heads": None}),
        ("eva-pe_core", {"pool_include_prefix": False}),
        ("eva-pe_spatial", {"rope_grid_offset": None}),
        ("eva-rope", {"rope_temperature": 10000.0}),
        ("eva-rope", {"rope_grid_indexing": "ij"}),
        ("eva-rope_ape", {"rope_grid_offset": 1.0, "ref_feat_shape": (2, 2)}),
        ("eva-rope_mixed", {"rope_grid_indexing": "ij"}),
        ("eva-rope_reg", {"num_heads": 4}),
    ],
)
def test_a_wrong_option_loads_and_gives_other_numbers(name, option, tmp_path):
    assert difference(sprung(name, tmp_path, **option), goldens.arrays(name)) > 1e-4


def columns_before_rows(arrays):
    arrays["rope.freqs"] = arrays["rope.freqs"][::-1].copy()


@pytest.mark.parametrize(
    ("name", "misread"),
    [
        ("eva-rope_mixed", columns_before_rows),
        ("eva-eva02_small", swap_halves),
        ("eva-eva02", swap("blocks.0.mlp.fc1_g", "blocks.0.mlp.fc1_x")),
        ("eva-eva02", swap("blocks.0.attn.q_proj", "blocks.0.attn.v_proj")),
        ("eva-dinov3_qkvb", swap("blocks.0.attn.q_bias", "blocks.0.attn.v_bias")),
        ("eva-dinov3", swap("blocks.0.gamma_1", "blocks.0.gamma_2")),
        ("eva-eva02_post_norm", swap("blocks.0.norm1", "blocks.0.norm2")),
    ],
)
def test_a_misread_tensor_loads_and_gives_other_numbers(name, misread, tmp_path):
    assert difference(sprung(name, tmp_path, misread), goldens.arrays(name)) > 1e-4


@pytest.mark.parametrize("name", ["eva-dinov3", "eva-eva02", "eva-pe_core", "eva-rope_mixed_ape"])
def test_one_model_gives_timms_logits_at_two_sizes(name, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path), image_size=None)
    pairs = [(golden["x"], golden["logits"]), (goldens.other_size(golden["x"]), golden["resized"])]
    for x, logits in [*pairs, pairs[0]]:
        close(run(model, x), logits)


def test_heads_are_multiples_of_four_channels():
    with pytest.raises(ValueError, match="multiple of 4 channels. Received: 6 channels"):
        classifier(EVA, num_heads=8)


def test_unknown_rotations_are_refused():
    with pytest.raises(ValueError, match="rope_type must be one of none, cat.*'axial'"):
        classifier(EVA, rope_type="axial")
    with pytest.raises(ValueError, match="rope_grid_indexing must be one of ij, xy.*'yx'"):
        classifier(EVA, rope_grid_indexing="yx")


VARIANTS = {
    "half": {"rope_type": "dinov3", "rope_rotate_half": True, "use_abs_pos_emb": False},
    "neighbors": {"key_bias": False, "reg_tokens": 2},
    "apart": {"qkv_fused": False, "key_bias": False, "scale_attn_inner": True, "inner_norm": True},
    "mixed": {"rope_type": "mixed", "rope_temperature": 10.0, "class_token": False},
    "gated": {"gate": "packed", "activation": "silu", "init_values": 0.1, "mlp_ratio": 8 / 3},
    "post-norm": {"use_post_norm": True, "rope_type": "none"},
    "map": {"pooling": "map", "attn_pool_num_heads": 2, "pre_norm": True},
}
VARIANTS["mixed"]["pooling"] = "avg"


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_attention_maps_are_what_the_blocks_use(options):
    """The values of a head, weighted by its map, are its part of what the block attends to."""
    model = classifier(EVA, **options)
    block = model.backbone.blocks[-1]
    pictures = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    given = keras.Model(model.input, block.input)(pictures)
    x, rope = given if isinstance(given, (list, tuple)) else (given, None)
    x = x if block.use_post_norm else block.norm1(x)
    _, _, v = block.attn.heads(x, rope=rope)
    mixed = keras.ops.matmul(block.scores(given), v)
    mixed = keras.ops.reshape(keras.ops.transpose(mixed, (0, 2, 1, 3)), x.shape)
    mixed = mixed if block.attn.norm is None else block.attn.norm(mixed)
    found = keras.ops.convert_to_numpy(block.attn(x, rope=rope))
    np.testing.assert_allclose(run(block.attn.proj, mixed), found, atol=1e-5)
    maps = keras_vit.explain.attention_maps(model, tiny_models.pictures())
    np.testing.assert_allclose(np.sum(maps, -1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["half", "neighbors", "mixed"])
def test_mixed_precision_is_near_float32(name):
    exact, half = (classifier(EVA, dtype=d, **VARIANTS[name]) for d in (None, "mixed_bfloat16"))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    found, expected = run(half, x), run(exact, x)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.skipif(not TENSORFLOW, reason="files are made on the TensorFlow backend")
@pytest.mark.parametrize("name", ["half", "neighbors", "apart", "mixed"])
def test_tflite_computes_what_the_model_does(name, tmp_path):
    """Rotations are constants there, and the weights of neighbors lie half a head apart."""
    from keras_vit.export import runtime, to_tflite

    model = classifier(EVA, **VARIANTS[name])
    path = to_tflite(model, tmp_path / "m.tflite")
    pixels = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), "uint8")
    expected = run(model, model.preprocessor.image_converter.normalize(pixels))
    loaded = runtime.interpreter(path, 1)
    (found,) = loaded.get_signature_runner()(images=pixels).values()
    np.testing.assert_allclose(found, softmax(expected), atol=2e-5)
    assert runtime.partitions(loaded) == 1
    operations = collections.Counter(runtime.operations(loaded))
    assert operations["TRANSPOSE"] <= 8 and operations["SPLIT"] == 4  # of two blocks
    assert not {"COS", "SIN", "NEG", "GATHER", "REVERSE_V2", "PACK"} & set(operations)


# --- timm's arguments ---


@pytest.mark.parametrize(
    ("name", "pooling", "norms"),
    [
        ("eva-eva02", "token", (True, False)),  # the norm moves before the pooling
        ("eva-eva_clip", "avg", (False, True)),
        ("eva-dinov3", "token", (True, False)),  # timm's function says use_fc_norm=False: it stays
        ("eva-pe_lang", "token", (False, False)),
    ],
)
def test_another_pooling_moves_the_norm_as_in_timm(name, pooling, norms, timm, tmp_path):
    config = goldens.config(name)
    directory = tmp_path / "changed"
    arguments = {**config["model_args"], "global_pool": pooling}
    goldens.repository(name, directory, model_args=arguments)
    theirs = timm.create_model(config["architecture"], **{**arguments, "num_classes": 7})
    weights = {k: v.numpy() for k, v in theirs.state_dict().items()}
    save_file(weights, directory / "model.safetensors")
    model = keras_vit.from_preset(directory)
    assert (model.backbone.options["final_norm"], model.fc_norm) == norms
    golden = goldens.arrays(name)
    pixels = torch_pictures(golden["x"])
    close(run(model, golden["x"]), theirs.eval()(pixels).detach().numpy())
    model.save_to_timm(tmp_path / "back")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True)
    close(run(model, golden["x"]), again.eval()(pixels).detach().numpy())


def torch_pictures(x):
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


# --- transformers' DINOv3 ---


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hf-dinov3", {"rope_theta": 1000.0}),
        ("hf-dinov3", {"layer_norm_eps": 1e-4}),
        ("hf-dinov3", {"hidden_act": "silu"}),
        ("hf-dinov3-gated", {"hidden_act": "gelu"}),
        ("hf-dinov3-no_bias", {"rope_theta": 100.0}),
    ],
)
def test_a_field_that_is_not_honoured_shows_in_the_numbers(name, change, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path, **change))
    assert np.abs(run(model.backbone, golden["x"]) - golden["features"]).max() > 1e-4


@pytest.mark.parametrize("change", [{"key_bias": True}, {"query_bias": False}])
def test_biases_that_the_config_says_are_looked_for(change, tmp_path):
    directory = goldens.repository("hf-dinov3", tmp_path, **change)
    with pytest.raises(keras_vit.weights.WeightsError, match="missing from the file|not used"):
        keras_vit.from_preset(directory)


PROCESSOR = {  # of facebook/dinov3-vits16-pretrain-lvd1689m, but for the size
    "crop_size": None,
    "do_center_crop": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 8, "width": 12},
}


@pytest.mark.parametrize("config", [PROCESSOR, None], ids=["its own", "none"])
def test_pixels_are_those_of_transformers(config, tmp_path):
    """It resizes floats: pixels are not rounded to 8 bits."""
    directory = goldens.repository("hf-dinov3", tmp_path)
    if config:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    model = keras_vit.from_preset(directory)
    golden = goldens.arrays("hf-dinov3")
    converter = model.preprocessor.image_converter
    found = np.asarray(converter(golden["image"]))
    np.testing.assert_allclose(found, golden["pixels"], atol=2e-6)
    pictures = [Image.fromarray(golden["image"]), golden["image"].astype("float32")]
    for picture in (pictures, np.stack([golden["image"]] * 2)):
        np.testing.assert_allclose(converter(picture), np.stack([found] * 2), atol=2e-6)
    rounded = converter.normalize(converter.pixels(golden["image"]))
    assert 1e-3 < np.abs(rounded - found).max() < 1 / 255 / 0.224  # it rounds twice, by a half
    assert type(converter).from_config(converter.get_config()).rounded is False


@pytest.mark.skipif(not TENSORFLOW, reason="a graph of TensorFlow")
def test_pixels_in_a_graph_are_those_of_transformers(tmp_path):
    import tensorflow as tf

    model = keras_vit.from_preset(goldens.repository("hf-dinov3", tmp_path))
    golden = goldens.arrays("hf-dinov3")
    images = tf.TensorSpec((None, None, 3), "uint8")
    graph = tf.function(model.preprocessor.image_converter, input_signature=[images])
    np.testing.assert_allclose(graph(golden["image"]), golden["pixels"], atol=2e-6)


def test_show_says_that_the_licence_of_dinov3_is_not_free():
    from keras_vit_command import tables

    text = dict(tables.facts("vit_small_patch16_dinov3.lvd1689m"))["licence"]
    assert text.startswith("dinov3-license (Meta's terms, not a free licence: https://ai.meta.com/")
    assert dict(tables.facts("eva02_tiny_patch14_224.mim_in22k"))["licence"] == "mit"

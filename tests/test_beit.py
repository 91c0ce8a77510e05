"""BEiT and the ViT with relative positions: what is their own, beside the tests of all families."""

import goldens
import keras
import numpy as np
import pytest
from test_models import difference, run, sprung

from keras_vit import BEiTBackbone, RelPosViTBackbone, explain, from_preset
from keras_vit.layers.relative import RelativeBias

TINY = {"image_size": (8, 12), "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("beit-beit", {"norm_eps": 1e-5}),
        ("beit-beit", {"num_heads": 1}),
        ("relpos-fc_norm", {"norm_eps": 1e-5}),
        ("relpos-clsgap", {"pool_include_prefix": True}),
        ("relpos-clsgap", {"pooling": "token"}),
    ],
)
def test_a_wrong_option_loads_and_gives_other_numbers(name, options, tmp_path):
    if "num_heads" in options:  # its tables would not fit
        with pytest.raises(ValueError, match="relative_position_bias_table"):
            sprung(name, tmp_path, **options)
        return
    assert difference(sprung(name, tmp_path, **options), goldens.arrays(name)) > 1e-4


def tables(arrays):
    return [key for key in arrays if key.endswith("relative_position_bias_table")]


def keys_minus_queries(arrays):
    for key in tables(arrays):
        arrays[key] = np.concatenate([arrays[key][:-3][::-1], arrays[key][-3:]])


def class_token_first(arrays):
    for key in tables(arrays):
        arrays[key] = np.roll(arrays[key], 3, axis=0)


def from_and_to_the_class_token(arrays):
    for key in tables(arrays):
        arrays[key][[-3, -2]] = arrays[key][[-2, -3]]


def no_class_token(arrays):
    for key in tables(arrays):
        arrays[key][-3:] = 0


def biases_swapped(arrays):
    for key in [key for key in arrays if key.endswith("q_bias")]:
        other = key.replace("q_bias", "v_bias")
        arrays[key], arrays[other] = arrays[other], arrays[key]


def scales_swapped(arrays):
    for key in [key for key in arrays if key.endswith("gamma_1")]:
        other = key.replace("gamma_1", "gamma_2")
        arrays[key], arrays[other] = arrays[other], arrays[key]


@pytest.mark.parametrize(
    ("name", "misread"),
    [
        ("beit-beit", keys_minus_queries),
        ("beit-beit", class_token_first),
        ("beit-beit", from_and_to_the_class_token),
        ("beit-beit", no_class_token),
        ("args-beit", no_class_token),
        ("beit-beit", biases_swapped),
        ("beit-beit", scales_swapped),
    ],
)
def test_a_misread_tensor_loads_and_gives_other_numbers(name, misread, tmp_path):
    model = sprung(name, tmp_path, misread)
    assert difference(model, goldens.arrays(name)) > 1e-4


def test_the_bias_is_that_of_a_loop():
    layer = RelativeBias(2, (2, 3), class_token=True)
    layer.build()
    table = np.random.default_rng(0).normal(size=(3 * 5 + 3, 2)).astype("float32")
    layer.set_weights([table])
    expected = np.empty((7, 7, 2), "float32")
    for i in range(7):
        for j in range(7):
            if i and j:
                (y, x), (v, u) = divmod(i - 1, 3), divmod(j - 1, 3)
                expected[i, j] = table[(y - v + 1) * 5 + x - u + 2]
            else:
                expected[i, j] = table[-1 if i == j else -3 if j else -2]
    found = keras.ops.convert_to_numpy(layer.bias())
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1)[None])


@pytest.mark.parametrize("name", ["beit-beit", "args-beit", "relpos-cls", "relpos-shared"])
def test_maps_are_those_that_the_block_applies(name, tmp_path):
    golden = goldens.arrays(name)
    model = from_preset(goldens.repository(name, tmp_path))
    for block in model.backbone.blocks:
        found = keras.Model(model.input, block.input)(golden["x"])
        x, *bias = found if isinstance(found, (list, tuple)) else [found]
        normed = block.norm1(x)
        v = keras.ops.convert_to_numpy(block.attn.heads(normed)[2])
        scores = keras.ops.convert_to_numpy(block.scores([x, *bias]))
        mixed = np.moveaxis(scores @ v, 1, 2).reshape(x.shape)
        by_block = keras.ops.convert_to_numpy(block.attn(normed, bias=bias[0] if bias else None))
        by_maps = keras.ops.convert_to_numpy(block.attn.proj(mixed))
        np.testing.assert_allclose(by_maps, by_block, atol=1e-5)
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), "uint8")
    assert explain.relevance(model, image).shape == (1, 2, 3)


@pytest.mark.parametrize("name", ["beit-beit", "args-beit", "relpos-shared", "relpos-clsgap"])
def test_what_is_saved_comes_back(name, tmp_path):
    golden = goldens.arrays(name)
    model = from_preset(goldens.repository(name, tmp_path))
    model.save(tmp_path / "m.keras")
    model.save_to_timm(tmp_path / "timm")
    for again in (keras.models.load_model(tmp_path / "m.keras"), from_preset(tmp_path / "timm")):
        np.testing.assert_allclose(run(again, golden["x"]), golden["logits"], atol=1e-5)


@pytest.mark.parametrize("cls", [BEiTBackbone, RelPosViTBackbone])
def test_images_have_one_size(cls):
    with pytest.raises(ValueError, match="images of one size only"):
        cls(**{**TINY, "image_size": None})
    with pytest.raises(ValueError, match="must be a multiple of the patch size 4"):
        cls(**{**TINY, "image_size": 10})


def test_half_precision(tmp_path):
    golden = goldens.arrays("args-beit")
    model = from_preset(goldens.repository("args-beit", tmp_path), dtype="mixed_bfloat16")
    assert np.abs(run(model, golden["x"]) - golden["logits"]).max() < 0.1

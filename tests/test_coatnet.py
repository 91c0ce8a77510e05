"""CoAtNet and MaxViT: the traps of their weights, their blocks, training and attention maps."""

import pathlib

import goldens
import keras
import numpy as np
import pytest
from keras_hub.src.tests import test_case
from safetensors.numpy import load_file
from test_models import run, sprung
from test_save import theirs

import keras_vit
from keras_vit.explain import attention_maps
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.layers.mbconv import Downsample
from keras_vit.layers.padded import PaddedConv
from keras_vit.layers.relative import RelativeBias, RelativeBiasTF, RelativeMLP, spread
from keras_vit.models.maxvit import PartitionAttention

SIZE = (64, 96)
TINY = {
    "image_size": SIZE,
    "embed_dim": (4, 4, 8, 8),
    "depths": (1, 1, 1, 1),
    "stem_width": (3, 4),
    "dim_head": 4,
}


def difference(name, folder, misread=None, **options):
    """By how much a wrong reading changes a golden's features or logits; their tolerance is
    1e-5."""
    golden = goldens.arrays(name)
    model = sprung(name, folder, misread, **options)
    outputs = {"features": model.backbone.output, "logits": model.output}
    found = keras.Model(model.input, outputs)(golden["x"])
    return max(np.abs(keras.ops.convert_to_numpy(found[k]) - golden[k]).max() for k in outputs)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("maxvit-tf", {"padding": "symmetric"}),
        ("maxvit-rw", {"padding": "same"}),
        ("coatnet-rw_1", {"padding": "same"}),
        ("maxvit-tf", {"head_first": True}),
        ("maxvit-rw", {"head_first": False}),
        ("maxvit-tf", {"conv_norm_eps": 1e-5}),
        ("maxvit-tf", {"norm_eps": 1e-6}),
        ("coatnet-bn", {"norm_eps": 1e-3}),
        ("maxvit-tf", {"conv_activation": "gelu"}),
        ("maxvit-tf", {"activation": "gelu"}),
        ("maxvit-tf", {"representation_activation": "gelu"}),
        ("coatnet-rw_1", {"conv_activation": "gelu"}),
        ("coatnet-rw_1", {"se_activation": "silu"}),
        ("coatnet-rw_2", {"se_activation": "relu"}),
        ("coatnet-rw_2", {"pre_norm_act": False}),
        ("coatnet-rmlp_nano", {"pre_norm_act": True}),
        ("coatnet-nano", {"stride_mode": "dw"}),
        ("coatnet-rmlp_1", {"pool_type": "avg2"}),
        ("coatnet-rw_0", {"pool_type": "max"}),
    ],
)
def test_a_wrong_option_loads_and_gives_other_numbers(name, option, tmp_path):
    assert difference(name, tmp_path, **option) > 1e-5


def each(text, change):
    """A misreading: all tensors whose keys contain `text` are changed."""

    def misread(arrays):
        for key in [key for key in arrays if text in key]:
            arrays[key] = np.ascontiguousarray(change(arrays[key]))

    return misread


def heads_last(qkv, heads=2):
    """Rows ordered by heads, as if they were ordered by query, key and value."""
    return qkv.reshape(heads, 3, -1, *qkv.shape[1:]).swapaxes(0, 1).reshape(qkv.shape)


def grids_for_windows(arrays):
    for key in [key for key in arrays if "attn_block" in key]:
        other = key.replace("attn_block", "attn_grid")
        arrays[key], arrays[other] = arrays[other], arrays[key]


@pytest.mark.parametrize(
    ("name", "misread"),
    [
        ("coatnet-rw_1", each("stages.3.blocks.0.attn.qkv", heads_last)),
        ("coatnet-rw_1", each("bias_table", lambda table: table[::-1])),  # key minus query
        ("maxvit-rw", each("bias_table", lambda table: table[::-1])),
        ("maxvit-tf", each("bias_table", lambda table: table[:, ::-1, ::-1])),  # query minus key
        ("maxvit-tf", each("bias_table", lambda table: 0 * table + table[:1])),  # one for all heads
        ("maxvit-rw", grids_for_windows),
        ("coatnet-next", each("conv_dw.weight", lambda x: x[[*range(0, len(x), 2)] * 2])),
        ("coatnet-bn", each("running_mean", np.zeros_like)),
        ("coatnet-bn", each("running_var", np.ones_like)),
    ],
)
def test_a_misread_tensor_loads_and_gives_other_numbers(name, misread, tmp_path):
    assert difference(name, tmp_path, misread) > 1e-5


def test_the_norm_of_the_hidden_head_follows_the_pool(tmp_path):
    def renamed(arrays):
        for leaf in ("weight", "bias"):
            arrays[f"norm.{leaf}"] = arrays.pop(f"head.norm.{leaf}")

    options = {"final_norm": True, "fc_norm": False}
    assert difference("maxvit-tf", tmp_path, renamed, **options) > 1e-5


def test_a_fresh_head_stands_on_the_trained_hidden_layer(tmp_path):
    name = "maxvit-tf"
    model = keras_vit.from_preset(goldens.repository(name, tmp_path), num_classes=3)
    assert model.representation_size == 10
    golden = goldens.arrays(name)
    features = keras.Model(model.input, model.get_layer("head").input)
    np.testing.assert_allclose(run(features, golden["x"]), golden["pooled"], atol=1e-5)


# --- Layers ---


def test_maxima_at_the_edge_are_of_the_map_alone():
    x = -1.0 - np.random.default_rng(0).random((1, 4, 6, 2)).astype("float32")
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    wanted = [[padded[0, i : i + 3, j : j + 3].max((0, 1)) for j in (0, 2, 4)] for i in (0, 2)]
    np.testing.assert_array_equal(run(Downsample(pool_type="max"), x)[0], wanted)


def test_an_odd_map_is_not_halved():
    with pytest.raises(ValueError, match=r"halves even edges only. Received: \(5, 4\)"):
        Downsample()(np.zeros((1, 5, 4, 2), "float32"))


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_a_strided_convolution_is_padded_on_the_side_that_it_says(padding, size):
    layer = PaddedConv(2, kernel_size=3, strides=2, depthwise=True, padding=padding)
    x = np.random.default_rng(0).normal(size=(1, *size, 2)).astype("float32")
    found = run(layer, x)[0]
    kernel = keras.ops.convert_to_numpy(layer.kernel)[..., 0]
    before = [1 if padding == "symmetric" or n % 2 else 0 for n in size]
    padded = np.pad(x[0], [(n, 2) for n in before] + [(0, 0)])
    rows, columns = (range(0, n, 2) for n in size)
    wanted = [[(padded[i : i + 3, j : j + 3] * kernel).sum((0, 1)) for j in columns] for i in rows]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])  # factors go into the larger maps, the larger kernels
@pytest.mark.parametrize("options", [{}, {"kernel_size": 3}, {"kernel_size": 3, "depthwise": True}])
def test_affine_functions_around_a_convolution_go_into_its_kernel(size, options):
    random = np.random.default_rng(0)
    x = random.normal(size=(2, size, size, 6)).astype("float32")
    before, after = random.normal(size=(2, 2, 6)).astype("float32")
    layer = PaddedConv(6, **options)
    wanted = run(layer, x * before[0] + before[1]) * after[0] + after[1]
    found = layer(x, after=tuple(after), before=tuple(before))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("cls", [RelativeBias, RelativeBiasTF])
@pytest.mark.parametrize("window", [(2, 3), (1, 4)])
def test_the_bias_is_that_of_the_tokens_distance(cls, window):
    layer = cls(2, window)
    layer.build(())
    table = keras.ops.convert_to_numpy(layer.table).reshape(*(2 * n - 1 for n in window), 2)
    bias = keras.ops.convert_to_numpy(layer.bias())
    places = list(np.ndindex(*window))
    sign = -1 if cls is RelativeBiasTF else 1
    for i, query in enumerate(places):
        for j, key in enumerate(places):
            y, x = (sign * (q - k) + n - 1 for q, k, n in zip(query, key, window, strict=True))
            np.testing.assert_array_equal(bias[0, :, i, j], table[y, x])


def test_the_bias_of_distances_is_an_mlp_of_their_logarithms():
    layer = RelativeMLP(2, (2, 3), rel_pos_dim=5)
    layer.build(())
    dense = [
        keras.ops.convert_to_numpy(layer.fc1.kernel),
        keras.ops.convert_to_numpy(layer.fc2.kernel),
    ]
    values = np.log([[1, 1], [2, 3]]) @ dense[0]  # of the distances (0, 0) and (1, 2)
    wanted = np.maximum(values, 0) @ dense[1]
    bias = keras.ops.convert_to_numpy(layer.bias())[0]
    np.testing.assert_allclose(bias[:, [0, 5], [0, 0]].T, wanted, atol=1e-6)


def test_values_of_all_distances_are_spread_without_a_sign():
    table = np.arange(15, dtype="float32").reshape(1, 3, 5)
    np.testing.assert_array_equal(
        spread(table, (2, 3), sign=-1)[0, 0], np.transpose(spread(table, (2, 3))[0, 0])
    )


# --- Files ---


@pytest.mark.parametrize("name", ["coatnet-rw_0", "coatnet-next", "maxvit-tf", "maxvit-maxxvit"])
def test_timm_to_keras_to_timm_is_bit_exact(name, timm, tmp_path):
    directory = pathlib.Path(goldens.repository(name, tmp_path))
    keras_vit.from_preset(directory).save_to_timm(tmp_path / "back")
    before = load_file(directory / "model.safetensors")
    after = load_file(tmp_path / "back/model.safetensors")
    assert before.keys() - after.keys() == {k for k in before if k.endswith("num_batches_tracked")}
    assert all(np.array_equal(before[key], after[key]) for key in after)
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True)
    golden = goldens.arrays(name)
    np.testing.assert_allclose(theirs(again, golden["x"]), golden["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["coatnet-rw_2", "maxvit-rw"])
def test_timm_loads_a_model_for_another_size(name, timm, tmp_path):
    model = keras_vit.from_preset(goldens.repository(name, tmp_path), image_size=(96, 64))
    model.save_to_timm(tmp_path / "back")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True)
    golden = goldens.arrays(name)
    found = theirs(again, goldens.other_size(golden["x"]))
    np.testing.assert_allclose(found, golden["resized"], rtol=0, atol=1e-5)


# --- Training ---


# What a BatchNorm or a softmax behind them takes away again.
WITHOUT_EFFECT = ("pre_norm/beta", "rel_pos/fc2/bias", "running_mean")


@pytest.mark.parametrize("name", ["coatnet-rmlp_2", "maxvit-tf", "maxvit-maxxvit"])
def test_every_weight_trains(name, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path))
    before = {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}
    model.preprocessor = None
    model.compile(optimizer=keras.optimizers.SGD(1.0), run_eagerly=True)
    model.train_on_batch(golden["x"], np.array([0, 4]))
    still = []
    for variable in model.weights:
        changed = np.abs(keras.ops.convert_to_numpy(variable) - before[variable.path])
        if variable.path.endswith("bias_table"):  # of every head
            changed = changed.reshape(-1, changed.shape[-1]).max(0).min()
        if not changed.max() > 0:
            still.append(variable.path)
    assert [path for path in still if not path.endswith(WITHOUT_EFFECT)] == []


def tiny(cls, **options):
    """A model of random weights."""
    keras.utils.set_random_seed(0)
    backbone = cls.backbone_cls(**TINY, **options)
    preprocessor = ImagePreprocessor(ImageConverter(SIZE, mean=[0.5] * 3, std=[0.5] * 3))
    model = cls(backbone, 3, preprocessor)
    random = np.random.default_rng(0)
    model.set_weights([w + random.uniform(0, 0.3, w.shape) for w in model.get_weights()])
    return model


def test_a_frozen_batch_norm_keeps_its_statistics():
    model = tiny(keras_vit.CoAtNet)
    model.backbone.trainable = False
    x = np.random.default_rng(0).normal(size=(2, *SIZE, 3)).astype("float32")
    before, weights = run(model, x), model.get_weights()
    after = keras.ops.convert_to_numpy(model(x, training=True))
    np.testing.assert_allclose(after, before, rtol=1e-4)
    for new, old in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("partition", ["block", "grid"])
def test_stochastic_depth_drops_whole_images(partition):
    block = PartitionAttention(partition, (2, 2), num_heads=1, dim_head=4, drop_path=0.5)
    x = np.random.default_rng(0).normal(size=(32, 4, 4, 4)).astype("float32")
    block.build(x.shape)
    block.mlp.fc2.kernel.assign(0 * block.mlp.fc2.kernel)
    block.attn.proj.bias.assign(block.attn.proj.bias + 1)
    change = np.abs(keras.ops.convert_to_numpy(block(x, training=True)) - x).min(-1)
    dropped = (change < 1e-6).reshape(32, -1)
    assert (dropped.all(1) | ~dropped.any(1)).all() and 0 < dropped[:, 0].sum() < 32


# --- Attention maps ---


@pytest.mark.parametrize(
    ("cls", "options", "sizes"),
    [
        (keras_vit.CoAtNet, {}, [(4, 6), (2, 3)]),
        (keras_vit.MaxViT, {}, [(16, 24)] * 2 + [(8, 12)] * 2 + [(4, 6)] * 2 + [(2, 3)] * 2),
        (keras_vit.MaxViT, {"block_attn": False}, [(16, 24), (8, 12), (4, 6), (2, 3)]),
    ],
)
def test_attention_maps_lie_on_the_picture(cls, options, sizes):
    model = tiny(cls, **options)
    maps = attention_maps(model, np.zeros((*SIZE, 3), "uint8"))
    assert [m.shape[2:] for m in maps] == [(h * w, h * w) for h, w in sizes]
    for found in maps:
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("partition", ["block", "grid"])
def test_a_token_attends_to_its_part_of_the_map(partition):
    block = PartitionAttention(partition, (2, 3), num_heads=2, dim_head=4)
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 8)).astype("float32")
    block.build(x.shape)
    found = keras.ops.convert_to_numpy(block.scores(x)).reshape(2, 2, 4, 6, 4, 6)
    y, x = np.indices((4, 6))
    part = (y // 2, x // 3) if partition == "block" else (y % 2, x % 2)
    for i, j in np.ndindex(4, 6):
        shared = (part[0] == part[0][i, j]) & (part[1] == part[1][i, j])
        assert (found[:, :, i, j][..., shared] > 0).all()
        assert (found[:, :, i, j][..., ~shared] == 0).all()


# --- KerasHub's own tests ---


@pytest.mark.parametrize("cls", [keras_vit.CoAtNetBackbone, keras_vit.MaxViTBackbone])
def test_kerashubs_backbone_test(cls):
    x = np.random.default_rng(0).normal(size=(2, *SIZE, 3)).astype("float32")
    options = {**TINY, "drop_path_rate": 0.2}
    case = test_case.TestCase()
    case.run_model_saving_test(cls, options, x)
    maps = cls(**options).pyramid_outputs
    assert {k: v.shape[1:] for k, v in maps.items()} == {
        "P2": (16, 24, 4), "P3": (8, 12, 4), "P4": (4, 6, 8), "P5": (2, 3, 8)
    }  # fmt: skip


@pytest.mark.parametrize("size", [48, (64, 80)])
def test_sizes_are_multiples_of_the_stride(size):
    with pytest.raises(ValueError, match="must be a multiple of the total stride, 32"):
        keras_vit.CoAtNetBackbone(**{**TINY, "image_size": size})


def test_a_size_is_needed():
    with pytest.raises(ValueError, match="images of one size"):
        keras_vit.MaxViTBackbone(**{**TINY, "image_size": None})

"""Swin and Swin V2: what is their own, beside the tests of all families."""

import json

import goldens
import keras
import numpy as np
import pytest
from keras_hub.src.tests import test_case
from safetensors.numpy import save_file
from test_models import close, difference, run, sprung
from tiny_models import FAMILIES, OPTIONS, classifier, pictures

from keras_vit import Swin, SwinBackbone, SwinV2, SwinV2Backbone, explain, from_preset
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.layers.window_attention import WindowAttention
from keras_vit.layers.windows import ShiftedWindows
from keras_vit.models import swin
from keras_vit.resize import resize_bias_table

TIMM = ["swin-plain", "swin-s3", "swin_v2-plain", "swin_v2-pretrained"]
ALL = [*TIMM, "hf-swin", "hf-swin-options", "hf-swinv2", "hf-swinv2-pretrained"]
TINY = {**OPTIONS[Swin], "drop_path_rate": 0.2, "attn_drop_rate": 0.1}


@pytest.mark.parametrize("name", TIMM)
def test_the_stages_are_timms(name, tmp_path):
    golden = goldens.arrays(name)
    model = from_preset(goldens.repository(name, tmp_path))
    backbone = model.backbone
    maps = keras.Model(backbone.input, list(backbone.pyramid_outputs.values()))(golden["x"])
    assert list(backbone.pyramid_outputs) == ["P0", "P1", "P2"]  # one pixel is a patch
    for i, found in enumerate(maps):
        close(keras.ops.convert_to_numpy(found), golden[f"stage{i}"])


@pytest.mark.parametrize("name", TIMM)
def test_a_smaller_size_gives_timms_logits(name, tmp_path):
    golden = goldens.arrays(name)
    model = from_preset(goldens.repository(name, tmp_path), image_size=(7, 10))
    close(run(model, golden["x"][:, :7, :10]), golden["smaller"])


@pytest.mark.parametrize("name", ["torchvision-swin", "torchvision-swin_v2"])
def test_torchvisions_state_dict(name, tmp_path):
    golden = goldens.arrays(name)
    save_file(goldens.weights(name), tmp_path / "swin.safetensors")
    model = from_preset(tmp_path / "swin.safetensors")
    assert type(model) is (SwinV2 if "v2" in name else Swin)
    close(run(model.backbone, golden["x"]), golden["features"])
    close(run(model, golden["x"]), golden["logits"])
    resized = from_preset(tmp_path / "swin.safetensors", image_size=model.image_size[0] // 2)
    halves = [(w[0] // 2,) * 2 for w in model.backbone.options["window_size"]]
    assert list(resized.backbone.options["window_size"]) == halves


@pytest.mark.parametrize(
    ("family", "depths", "width", "size", "crop_pct"),
    [
        ("swin", (2, 2, 6, 2), 96, 224, 224 / 232),
        ("swin", (2, 2, 18, 2), 96, 224, 224 / 246),
        ("swin", (2, 2, 18, 2), 128, 224, 224 / 238),
        ("swin", (2, 2, 18, 2), 192, 224, 1.0),  # torchvision has none
        ("swin_v2", (2, 2, 6, 2), 96, 256, 256 / 260),
        ("swin_v2", (2, 2, 18, 2), 128, 256, 256 / 272),
    ],
)
def test_torchvisions_own_weights_are_prepared_as_there(
    family, depths, width, size, crop_pct, tmp_path, caplog
):
    """Keys and shapes as there, of the tensors that tell the architecture."""
    shapes = {"features.0.0.weight": (width, 3, 4, 4), "head.weight": (1000, 8 * width)}
    bias = {"swin": "relative_position_bias_table", "swin_v2": "logit_scale"}[family]
    for i, depth in enumerate(depths):
        heads = (width // 32) * 2**i
        for j in range(depth):
            block = f"features.{2 * i + 1}.{j}"
            shapes[f"{block}.mlp.0.weight"] = (4, 1)
            shapes[f"{block}.attn.{bias}"] = (169, heads) if family == "swin" else (heads, 1, 1)
    shapes["features.1.0.mlp.0.weight"] = (4 * width, 1)
    path = tmp_path / "swin.safetensors"
    save_file({key: np.zeros(shape, "float16") for key, shape in shapes.items()}, path)
    model = from_preset(path, load_weights=False)
    assert model.image_size == (size, size) and model.backbone.options["depths"] == depths
    assert model.backbone.options["num_heads"] == tuple((width // 32) * 2**i for i in range(4))
    images = model.preprocessor.image_converter
    assert (images.crop_pct, images.interpolation) == (crop_pct, "bicubic")
    assert bool(caplog.text) == (crop_pct == 1)  # assumed


# --- Silent traps: each of these loads, and computes something else ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swin-plain", {"pad_first": True}),  # timm rolls, then pads
        ("swin_v2-plain", {"pad_first": True}),
        ("hf-swin", {"pad_first": False}),  # transformers pads, then rolls
        ("hf-swinv2", {"pad_first": False}),
        ("hf-swinv2-mask", {"mask_penalty": 100.0}),  # transformers adds it twice
        ("swin-plain", {"norm_eps": 1e-6}),
        ("hf-swin-options", {"norm_eps": 1e-5}),
        ("hf-swin-options", {"activation": "gelu"}),
        ("swin_v2-pretrained", {"pretrained_window_sizes": (0, 0, 0)}),
        ("swin_v2-plain", {"pretrained_window_sizes": (5, 3, 2)}),
        ("hf-swinv2-pretrained", {"pretrained_window_sizes": (0, 0)}),
    ],
)
def test_a_wrong_option_loads_and_gives_other_numbers(name, options, tmp_path):
    assert difference(sprung(name, tmp_path, **options), goldens.arrays(name)) > 1e-4


def columns_first(arrays):
    """Neighbours in the order of space_to_depth: upper left, upper right, lower left, lower right.

    The norm after the reduction does not know of it.
    """
    for key, value in arrays.items():
        if "downsample" in key and value.shape[-1] % 4 == 0 and "norm" not in key:
            parts = np.split(value, 4, axis=-1)
            arrays[key] = np.concatenate([parts[i] for i in (0, 2, 1, 3)], axis=-1)


def keys_minus_queries(arrays):
    for key, value in arrays.items():
        if key.endswith("relative_position_bias_table"):
            arrays[key] = value[::-1].copy()


def clamped(arrays):
    """What the limit makes of the scale: no difference, if there is a limit."""
    for key, value in arrays.items():
        if key.endswith("logit_scale"):
            arrays[key] = np.minimum(value, np.log(np.float32(100)))


def below_the_limit(arrays):
    for key, value in arrays.items():
        if key.endswith("logit_scale"):
            arrays[key] = np.minimum(value, 4)


@pytest.mark.parametrize(
    ("name", "misread"),
    [
        ("swin-plain", columns_first),
        ("swin_v2-plain", columns_first),
        ("swin-plain", keys_minus_queries),
        ("swin_v2-plain", below_the_limit),
    ],
)
def test_a_misread_tensor_loads_and_gives_other_numbers(name, misread, tmp_path):
    assert difference(sprung(name, tmp_path, misread), goldens.arrays(name)) > 1e-4


@pytest.mark.parametrize("name", ["swin_v2-plain", "hf-swinv2"])
def test_the_scale_of_cosines_has_a_limit(name, tmp_path):
    golden = goldens.arrays(name)
    assert max(golden[k].max() for k in golden if k.endswith("logit_scale")) > np.log(100)
    assert difference(sprung(name, tmp_path, clamped), golden) < 1e-5


def no_limit(monkeypatch):
    monkeypatch.setattr("keras_vit.layers.window_attention.math.log", lambda x: 1e3)


def hidden_padding(monkeypatch):
    """Padding that no token attends to."""

    def regions(self):
        found = plain(self)
        found = np.zeros_like(self.places()) if found is None else found
        return np.where(self.places() < 0, -1, found)

    plain = ShiftedWindows.regions
    monkeypatch.setattr(ShiftedWindows, "regions", regions)


def regions_of_the_map(monkeypatch):
    """A mask where the map was cut, as if it had no padding (KerasHub)."""

    def regions(self):
        if not any(self.shift):
            return None
        lines = [
            np.digitize(np.arange(p), [n - w, n - s]) if s else np.zeros(p, int)
            for p, n, w, s in zip(self.padded, self.size, self.window, self.shift, strict=True)
        ]
        return self._cut(3 * lines[0][:, None] + lines[1])

    monkeypatch.setattr(ShiftedWindows, "regions", regions)


def no_mask(monkeypatch):
    monkeypatch.setattr(ShiftedWindows, "regions", lambda self: None)


def always_shifted(monkeypatch):
    """A map that is one window moves, too."""

    def windowing(*args):
        return [(w, tuple(n // 2 for n in w)) for w, _ in plain(*args)]

    plain = swin.windowing
    monkeypatch.setattr(swin, "windowing", windowing)


@pytest.mark.parametrize("name", ["swin-plain", "swin_v2-plain", "hf-swin", "hf-swinv2"])
@pytest.mark.parametrize("spring", [hidden_padding, no_mask, regions_of_the_map, always_shifted])
def test_another_reading_of_the_windows_gives_other_numbers(name, spring, monkeypatch, tmp_path):
    if spring is always_shifted and "hf" in name:
        pytest.skip("No window covers these maps.")
    spring(monkeypatch)
    assert difference(sprung(name, tmp_path), goldens.arrays(name)) > 1e-4


def unchanged_axis(table, old, new):
    """Only the axes that change are resized."""
    for axis in range(2):
        if old[axis] != new[axis]:
            step = (new[0], old[1]) if axis == 0 else new
            table, old = plain_resize(table, old, step), step
    return table


def plain_resize(table, old, new):
    """Linear, of equal steps."""
    grid = table.reshape(2 * old[0] - 1, 2 * old[1] - 1, -1)
    for axis in range(2):
        lines = np.linspace(0, 2 * old[axis] - 2, 2 * new[axis] - 1)
        weights = np.stack(
            [np.interp(lines, np.arange(len(e)), e) for e in np.eye(2 * old[axis] - 1)], 1
        )
        grid = np.moveaxis(np.tensordot(weights, grid, ([1], [axis])), 0, axis)
    return grid.reshape(-1, table.shape[-1]).astype(table.dtype)


@pytest.mark.parametrize("resize", [plain_resize, unchanged_axis])
def test_another_resize_of_the_bias_gives_other_numbers(resize, monkeypatch, tmp_path):
    monkeypatch.setattr(swin, "resize_bias_table", resize)
    golden = goldens.arrays("swin-plain")
    model = from_preset(goldens.repository("swin-plain", tmp_path), image_size=(12, 8))
    assert np.abs(run(model, goldens.other_size(golden["x"])) - golden["resized"]).max() > 1e-4


# --- Windows ---


@pytest.mark.parametrize("pad_first", [False, True])
@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((8, 12), (3, 5), (1, 2)), ((8, 12), (4, 4), (2, 0)), ((3, 4), (3, 4), (0, 0))],
)
def test_windows_are_cut_and_joined(size, window, shift, pad_first):
    windows = ShiftedWindows(size, window, shift, pad_first)
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    cut = windows.cut(keras.ops.convert_to_tensor(x))
    assert cut.shape == (2 * windows.count, window[0] * window[1], 3)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(windows.join(cut)), x)
    places = windows.places()
    flat = np.concatenate([x.reshape(2, -1, 3), np.zeros((2, 1, 3), "float32")], axis=1)
    found = keras.ops.convert_to_numpy(cut).reshape(2, *places.shape, 3)
    np.testing.assert_array_equal(flat[:, places], found)


@pytest.mark.parametrize("windows", [((3, 4), (5, 2)), ((3, 3), (3, 6)), ((2, 2), (1, 1))])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm's
def test_a_resized_bias_is_timms(windows, timm):
    import torch
    from timm.layers import resize_rel_pos_bias_table

    old, new = windows
    rows = [(2 * h - 1) * (2 * w - 1) for h, w in windows]
    table = np.random.default_rng(0).normal(size=(rows[0], 3)).astype("float32")
    wanted = resize_rel_pos_bias_table(torch.tensor(table), new, (rows[1], 3), old)
    np.testing.assert_allclose(resize_bias_table(table, old, new), wanted, atol=1e-5)
    assert resize_bias_table(table, old, old) is table


@pytest.mark.parametrize(
    ("image_size", "window_size", "wanted"),
    [
        ((28, 56), 7, [((7, 7), (0, 3)), ((4, 7), (0, 0))]),
        (32, (7, 14), [((7, 8), (3, 0)), ((4, 4), (0, 0))]),
        (60, ((7, 7), (14, 14)), [((7, 7), (3, 3)), ((8, 8), (0, 0))]),
    ],
)
def test_a_window_is_no_larger_than_the_map(image_size, window_size, wanted):
    assert swin.windowing(image_size, 4, (2, 2), window_size, False) == wanted
    both = [(w, s if 0 not in s else (0, 0)) for w, s in wanted]
    assert swin.windowing(image_size, 4, (2, 2), window_size, True) == both


def test_windows_grow_with_the_image():
    options = SwinBackbone.complete({"window_size": (7, 7, 14, 7)})
    changed = SwinBackbone.changed(options, {"image_size": (448, 160)})
    assert changed["window_size"] == ((14, 5), (14, 5), (28, 10), (14, 5))
    assert SwinBackbone.changed(options, {})["window_size"] == options["window_size"]
    assert SwinBackbone.changed(options, {"patch_size": 8})["window_size"][0] == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": None}, "images of one size only"),
        ({"image_size": 30}, "multiple of the patch size 4"),
        ({"window_size": (7, 7, 7)}, "one for each of 2 stages"),
        ({"window_size": "7"}, "window_size must be"),
        ({"window_size": 0}, "window_size must be"),
        ({"num_heads": (2,)}, "one number for each of 2 stages"),
        ({"pretrained_window_sizes": (1, 2, 3)}, "one number for each of 2 stages"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SwinV2Backbone(**{**OPTIONS[SwinV2], **options})


# --- What every family has ---


@pytest.mark.parametrize("name", ALL)
def test_what_is_saved_loads_again(name, tmp_path):
    golden = goldens.arrays(name)
    model = from_preset(goldens.repository(name, tmp_path / "source"), image_size=(12, 8))
    x = goldens.other_size(golden["x"])
    expected = run(model, x)
    model.save_to_preset(tmp_path / "keras")
    again = from_preset(tmp_path / "keras")
    close(run(again, x), expected)
    assert again.backbone.options == model.backbone.options  # of these, the order of padding
    if name in TIMM:
        model.save_to_timm(tmp_path / "timm")
        config = json.loads((tmp_path / "timm" / "config.json").read_text())
        assert config["model_args"]["window_size"][0] == list(
            model.backbone.options["window_size"][0]
        )
        close(run(from_preset(tmp_path / "timm"), x), expected)
    else:
        with pytest.raises(ValueError, match="timm has no architecture for this Swin"):
            model.save_to_timm(tmp_path / "timm")


def test_timm_loads_what_is_saved(timm, tmp_path):
    import torch

    for name in ("swin-s3", "swin_v2-pretrained"):
        golden = goldens.arrays(name)
        model = from_preset(goldens.repository(name, tmp_path / name), image_size=(12, 8))
        model.save_to_timm(tmp_path / f"saved-{name}")
        theirs = timm.create_model(f"local-dir:{tmp_path}/saved-{name}", pretrained=True).eval()
        x = goldens.other_size(golden["x"])
        with torch.no_grad():
            logits = theirs(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
        close(logits, golden["resized"])


@pytest.mark.parametrize("name", ["swin-plain", "swin_v2-plain", "hf-swin", "hf-swinv2"])
def test_every_weight_has_a_gradient(name, tmp_path):
    golden = goldens.arrays(name)
    model = from_preset(goldens.repository(name, tmp_path))
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.preprocessor = None  # a golden's pictures are normalised
    model.compile(optimizer=keras.optimizers.SGD(10.0), run_eagerly=True)
    model.train_on_batch(golden["x"], np.array([0, 4]))
    same = {
        variable.path
        for variable, old in zip(model.trainable_variables, before, strict=True)
        if not np.abs(keras.ops.convert_to_numpy(variable) - old).max() > 0
    }
    assert all(path.endswith("logit_scale") for path in same)  # one head alone, at its limit


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("family", ["Swin", "SwinV2"])
def test_maps_are_those_that_the_block_applies(family, dtype):
    model = classifier(**FAMILIES[family], dtype=dtype)
    maps = explain.attention_maps(model, pictures())
    x = model.preprocessor(pictures())
    assert [m.shape for m in maps] == [(3, 2, 64, 64)] * 2 + [(3, 4, 16, 16)] * 2
    for block, found in zip(model.backbone.blocks, maps, strict=True):
        inputs = keras.Model(model.input, block.input)(x)
        inputs = block.norm1(inputs) if family == "Swin" else inputs
        windows = block.attn.windows
        _, _, v = block.attn.heads(windows.cut(inputs))  # of the windows, zeros among them
        heads, size = v.shape[1:3]
        places = windows.places().ravel()
        v = keras.ops.reshape(v, (3, windows.count, heads, size, -1))
        v = keras.ops.convert_to_numpy(keras.ops.cast(v, "float32")).transpose(0, 2, 1, 3, 4)
        v = v.reshape(3, heads, windows.count * size, -1)
        on_map = np.empty((3, heads, found.shape[-1], v.shape[-1]), "float32")
        on_map[:, :, places[places >= 0]] = v[:, :, places >= 0]
        rest = 1 - found.sum(-1, keepdims=True)  # fell on zeros, whose value is the bias
        assert (rest > -1e-5).all()
        assert any(windows.shift) or (rest.max() > 1e-3) == any(windows.padding)
        padding = v[:, :, places < 0][:, :, :1] if any(windows.padding) else 0
        mixed = np.moveaxis(found @ on_map + rest * padding, 1, 2)
        mixed = mixed.reshape(*inputs.shape)
        by_maps, by_block = (
            keras.ops.convert_to_numpy(keras.ops.cast(t, "float32"))
            for t in (block.attn.proj(mixed), block.attn(inputs))
        )
        np.testing.assert_allclose(by_maps, by_block, atol=1e-5 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("family", ["Swin", "SwinV2"])
def test_what_is_too_large_to_fuse_computes_the_same(family, monkeypatch):
    options = FAMILIES[family]
    expected = classifier(**options).predict(pictures(), verbose=0)
    monkeypatch.setattr("keras_vit.layers.window_attention.FUSED", 0)
    model = classifier(**options)
    assert not any(block.attn.fuses for block in model.backbone.blocks)
    np.testing.assert_allclose(model.predict(pictures(), verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize(("cls", "width"), [(SwinBackbone, 48), (SwinV2Backbone, 48)])
def test_kerashubs_backbone_test(cls, width):
    x = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype("float32")
    options = {**TINY, "image_size": (32, 48)}
    case = test_case.TestCase()
    case.run_backbone_test(cls, options, x, expected_output_shape=(2, 4, 6, width))
    case.run_model_saving_test(cls, options, x)


@pytest.mark.filterwarnings("ignore:The `check_types` argument is deprecated")
@pytest.mark.parametrize("cls", [Swin, SwinV2])
def test_kerashubs_task_test(cls):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    arguments = {
        "backbone": cls.backbone_cls(**TINY),
        "num_classes": 3,
        "preprocessor": ImagePreprocessor(ImageConverter((32, 32))),
    }
    case = test_case.TestCase()
    case.run_task_test(
        cls,
        arguments,
        (images, np.array([0, 2])),
        expected_output_shape=(2, 3),
        compile_kwargs={"jit_compile": False},
    )


def test_dropout_of_attention_is_random_in_training_only():
    layer = WindowAttention(2, (3, 3), (1, 1), drop_rate=0.5)
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 8)).astype("float32")
    one, two = (run(lambda x: layer(x, training=True), x) for _ in range(2))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_array_equal(run(layer, x), run(layer, x))


def test_any_pooling(tmp_path):
    directory = goldens.repository("swin-plain", tmp_path)
    model = from_preset(directory, pooling="map", num_classes=2)
    assert run(model, np.zeros((1, 8, 12, 3), "float32")).shape == (1, 2)
    with pytest.raises(ValueError, match="needs a class token"):
        from_preset(directory, pooling="token")

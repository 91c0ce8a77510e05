"""The families against the numbers of timm, and against KerasHub's own generic tests."""

import goldens
import keras
import numpy as np
import pytest
from keras_hub.src.tests import test_case
from tiny_models import FAMILIES, classifier, pixels

import keras_vit
import keras_vit_presets as presets
from keras_vit import hub, layouts, weights, zoo
from keras_vit.images import ImageConverter, ImagePreprocessor

TIMM = goldens.TIMM
TINY = {"image_size": (8, 12), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
RANDOM = {"drop_path_rate": 0.2, "drop_rate": 0.1, "attn_drop_rate": 0.1, "pos_drop_rate": 0.1}
MIXER = {"image_size": (8, 12), "patch_size": 4, "embed_dim": 16, "depth": 2}
BACKBONES = [  # class, arguments, tokens
    (keras_vit.ViTBackbone, {**TINY, **RANDOM, "init_values": 0.1}, 7),
    (keras_vit.DeiTBackbone, {**TINY, **RANDOM, "distillation_token": True}, 8),
    (keras_vit.EVABackbone, {**TINY, **RANDOM, "rope_type": "mixed", "qkv_fused": False}, 7),
    (keras_vit.GMLPBackbone, {**MIXER, "drop_path_rate": 0.2}, 6),
    (
        keras_vit.HybridViTBackbone,
        {**TINY, "image_size": (16, 24), "patch_size": 1, "stages": [1]},
        4 * 6 + 1,
    ),
]
VIT = {**TINY, **RANDOM}
TASKS = [
    (keras_vit.ViT, keras_vit.ViTBackbone, VIT),
    (keras_vit.DeiT, keras_vit.DeiTBackbone, {**VIT, "distillation_token": True}),
    (keras_vit.EVA, *BACKBONES[2][:2]),
    (keras_vit.HybridViT, *BACKBONES[-1][:2]),
    (keras_vit.GMLP, *BACKBONES[-2][:2]),
]


def run(model, x):
    """The outputs as numpy arrays. JAX compiles a whole model four times faster than each of its
    operations by itself."""
    whole = keras.backend.backend() == "jax"
    outputs = keras.Model.predict_on_batch(model, x) if whole else model(x)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)


def close(found, wanted):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TIMM)
def test_features_and_logits_are_timms(name, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path))
    levels = {level for level in golden if level.startswith("P")}  # of a pyramid
    outputs = {"features": model.backbone.output, "logits": model.output}
    if levels:
        outputs |= {level: model.backbone.pyramid_outputs[level] for level in levels}
    for name, found in run(keras.Model(model.input, outputs), golden["x"]).items():
        close(found, golden[name])


PYRAMIDS = [name for name in TIMM if "P2" in goldens.NAMES[name]]


@pytest.mark.parametrize("name", PYRAMIDS)
def test_feature_maps_are_those_of_timms_stages(name, tmp_path):
    golden = goldens.arrays(name)
    backbone = keras_vit.from_preset(goldens.repository(name, tmp_path)).backbone
    levels = {k: v for k, v in backbone.pyramid_outputs.items() if k in golden}
    assert len(levels) >= 3
    found = run(keras.Model(backbone.input, levels), golden["x"])
    for level in levels:
        close(found[level], golden[level])


@pytest.mark.parametrize("name", TIMM)
def test_pooled_features_are_timms(name, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path), num_classes=0)
    close(run(model, golden["x"]), golden["pooled"])


@pytest.mark.parametrize("name", goldens.RESIZED)
def test_another_image_size_gives_timms_logits(name, tmp_path):
    golden = goldens.arrays(name)
    height, width = golden["x"].shape[1:3]
    model = keras_vit.from_preset(goldens.repository(name, tmp_path), image_size=(width, height))
    close(run(model, goldens.other_size(golden["x"])), golden["resized"])


@pytest.mark.parametrize(
    "output, changes",
    [
        ("patch2", {"patch_size": 2}),
        ("patch8", {"patch_size": 8, "image_size": (16, 24)}),
        ("patch8-square", {"patch_size": 8, "image_size": (16, 16)}),
    ],
)
def test_another_patch_size_of_a_flexivit_gives_timms_logits(output, changes, tmp_path):
    golden = goldens.arrays("vit-flexivit")
    model = keras_vit.from_preset(goldens.repository("vit-flexivit", tmp_path), **changes)
    x = np.tile(golden["x"], (1, 2, 2, 1)) if "8" in output else golden["x"]
    close(run(model, x[:, :, : model.image_size[1]]), golden[output])


def test_a_flexivit_of_any_size_resamples_as_timms_dynamic_img_size(tmp_path):
    golden = goldens.arrays("vit-flexivit")
    directory = goldens.repository("vit-flexivit", tmp_path)
    model = keras_vit.from_preset(directory, image_size=None)
    close(run(model, goldens.other_size(golden["x"])), golden["dynamic"])


@pytest.mark.parametrize(
    "name, resample",
    [
        ("deit_tiny_patch16_224.fb_in1k", "bicubic"),
        ("flexivit_small.300ep_in1k", "bilinear"),
        ("vit_base_patch16_radio_v3.c_radio", "bilinear_corners"),
        ("vit_large_patch16_radio_v3.c_radio", "bilinear"),
        ("vit_huge_patch16_radio_v3.c_radio", "bilinear_corners"),
        ("vit_giant_patch16_radio_v3.c_radio", "bilinear"),
        ("vit_so400m_patch16_radio_v4.c_radio", "bilinear"),
        ("vit_huge_patch16_radio_v4.c_radio", "bilinear"),
    ],
)
def test_a_rows_architecture_says_how_it_is_resampled(name, resample):
    assert (
        layouts.from_checkpoint(presets.checkpoints()[name], None).backbone["resample"] == resample
    )


@pytest.mark.parametrize("name", ["vit-flexivit", "vit-radio_scaled"])
def test_what_is_saved_remembers_how_it_is_resampled(name, tmp_path):
    golden = goldens.arrays(name)
    keras_vit.from_preset(goldens.repository(name, tmp_path)).save_to_preset(tmp_path / "keras")
    model = keras_vit.from_preset(tmp_path / "keras", image_size=(12, 8))
    close(run(model, goldens.other_size(golden["x"])), golden["resized"])
    keras_vit.from_preset(tmp_path / "keras").save_to_timm(tmp_path / "timm")
    model = keras_vit.from_preset(tmp_path / "timm", image_size=(12, 8))
    close(run(model, goldens.other_size(golden["x"])), golden["resized"])


@pytest.mark.parametrize("cls, backbone_cls, options", TASKS)
def test_the_preprocessor_is_the_third_argument(cls, backbone_cls, options):
    preprocessor = ImagePreprocessor(ImageConverter(options["image_size"]))
    assert cls(backbone_cls(**options), 3, preprocessor).preprocessor is preprocessor


@pytest.mark.parametrize("size", [208, (224, 208)])
def test_a_hybrids_size_is_told_in_pixels(size):
    name = "vit_tiny_r_s16_p8_224.augreg_in21k"
    message = "total stride of ResNet and patches, 32. Received: 208 pixels.*192 and 224"
    with pytest.raises(ValueError, match=message):
        keras_vit.from_preset(name, image_size=size, load_weights=False)


def test_a_mixer_has_one_size():
    name = "resmlp_12_224.fb_in1k"
    with pytest.raises(ValueError, match="images of one size only. Received: image_size=None"):
        keras_vit.from_preset(name, image_size=None, load_weights=False)


def test_an_unknown_way_to_resample_is_refused():
    with pytest.raises(ValueError, match="resample must be one of bicubic, bilinear.*'nearest'"):
        keras_vit.ViTBackbone(**TINY, resample="nearest")


def test_every_structure_has_a_golden():
    used = {
        f"{family}-{row.get('structure', 'plain')}"
        for family, table in presets.families().items()
        for row in table.table["architectures"].values()
    }
    assert used <= set(TIMM)


def sprung(name, folder, misread=None, **options):
    """A golden's model, with options or tensors that a wrong reading of the file would give."""
    spec = layouts.from_repository(hub.Repository(goldens.repository(name, folder)))
    for key, value in options.items():
        place = spec.backbone if key in spec.backbone else spec.head
        place[key] = value
    arrays = goldens.weights(name)
    if misread is not None:
        misread(arrays)
    tensors = {key: weights.Tensor(a.shape, lambda a=a: a) for key, a in arrays.items()}
    spec.source.tensors = lambda: tensors
    return zoo.build_classifier(spec, spec.tensors(), {}, {}, None, None)


def difference(model, golden):
    """The largest difference of features and logits to a golden's."""
    x = golden["x"]
    pairs = ((model.backbone, golden["features"]), (model, golden["logits"]))
    return max(np.abs(run(part, x) - wanted).max() for part, wanted in pairs)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("vit-clip_quickgelu", {"activation": "gelu"}),
        ("vit-clip", {"activation": "quick_gelu"}),
        ("vit-siglip_gap_tanh", {"activation": "gelu"}),
        ("vit-siglip_gap", {"activation": "gelu_tanh"}),
        ("vit-dinov2_giant", {"activation": "gelu"}),
        ("vit-aimv2", {"activation": "gelu"}),
        ("vit-plain", {"norm_eps": 1e-5}),
        ("vit-clip", {"norm_eps": 1e-6}),
        ("vit-beit3", {"norm_eps": 1e-6}),
        ("vit-aimv2", {"norm_eps": 1e-6}),
        ("hf-vit", {"norm_eps": 1e-6}),
        ("vit-plain", {"num_heads": 3}),
        ("vit-siglip", {"num_heads": 3}),
        ("vit-sbb_reg4", {"pool_include_prefix": True}),
        ("vit-so150m", {"pool_include_prefix": True}),
        ("vit-test3", {"pool_include_prefix": False}),
        ("mixer-gmixer", {"gate": "packed"}),
        ("convnext-plain", {"norm_eps": 1e-5}),
        ("convnext-xxlarge", {"norm_eps": 1e-6}),
        ("convnext-test", {"activation": "gelu"}),
        ("convnext-test3", {"activation": "gelu_tanh"}),
        ("convnext-mlp", {"representation_activation": "gelu_tanh"}),
        ("hf-convnext-options", {"fc_norm_eps": None}),
    ],
)
def test_a_wrong_option_loads_and_gives_other_numbers(name, option, tmp_path):
    assert difference(sprung(name, tmp_path, **option), goldens.arrays(name)) > 1e-4


def swap_halves(arrays):
    for key in [key for key in arrays if ".mlp.fc1." in key]:
        arrays[key] = np.roll(arrays[key], len(arrays[key]) // 2, axis=0)


def registers_last(arrays):
    arrays["pos_embed"] = np.roll(arrays["pos_embed"], -4, axis=1)


def keys_before_queries(arrays):
    key = "blocks.0.attn.qkv.weight"
    q, k, v = np.split(arrays[key], 3)
    arrays[key] = np.concatenate([k, q, v])


def swap(a, b):
    def swapped(arrays):
        for suffix in ("", ".weight", ".bias"):
            if a + suffix in arrays:
                arrays[a + suffix], arrays[b + suffix] = arrays[b + suffix], arrays[a + suffix]

    return swapped


@pytest.mark.parametrize(
    ("name", "misread"),
    [
        ("vit-dinov2_giant", swap_halves),
        ("vit-tips_giant", swap_halves),
        ("vit-aimv2", swap("blocks.0.mlp.fc1_g", "blocks.0.mlp.fc1_x")),
        ("vit-so150m", registers_last),
        ("vit-plain", keys_before_queries),
        ("deit-distilled", swap("head", "head_dist")),
        ("deit-distilled", swap("cls_token", "dist_token")),
    ],
)
def test_a_misread_tensor_loads_and_gives_other_numbers(name, misread, tmp_path):
    assert difference(sprung(name, tmp_path, misread), goldens.arrays(name)) > 1e-4


@pytest.mark.parametrize("name", ["vit-gap_fc_norm", "vit-sbb_reg4", "vit-beit3", "args-avg"])
def test_a_norm_before_the_pool_is_not_one_after_it(name, tmp_path):
    def renamed(arrays):
        for leaf in ("weight", "bias"):
            arrays[f"norm.{leaf}"] = arrays.pop(f"fc_norm.{leaf}")

    model = sprung(name, tmp_path, renamed, final_norm=True, fc_norm=False)
    golden = goldens.arrays(name)
    assert np.abs(run(model, golden["x"]) - golden["logits"]).max() > 1e-4


def test_the_class_head_alone_is_not_deits_prediction(tmp_path):
    golden = goldens.arrays("deit-distilled")
    model = keras_vit.from_preset(goldens.repository("deit-distilled", tmp_path))
    features = run(model.backbone, golden["x"])
    one = features[:, 0] @ golden["weights/head.weight"].T + golden["weights/head.bias"]
    other = features[:, 1] @ golden["weights/head_dist.weight"].T + golden["weights/head_dist.bias"]
    close((one + other) / 2, golden["logits"])
    assert np.abs(one - golden["logits"]).max() > 1e-4


@pytest.mark.parametrize(
    "name",
    ["vit-aimv2", "vit-beit3", "vit-clip", "vit-dinov2_giant_reg4", "vit-test3", "deit-distilled"]
    + sorted(set(TIMM) - set(goldens.RESIZED)),
)
def test_every_weight_has_a_gradient(name, tmp_path):
    golden = goldens.arrays(name)
    model = keras_vit.from_preset(goldens.repository(name, tmp_path))
    model.preprocessor = None  # a golden's pictures are normalised
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.compile(optimizer=keras.optimizers.SGD(10.0), run_eagerly=True)
    model.train_on_batch(golden["x"], np.array([0, 4]))
    assert len(before) == len(goldens.weights(name))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(keras.ops.convert_to_numpy(variable) - old).max() > 0, variable.path


@pytest.mark.parametrize(("cls", "options", "tokens"), BACKBONES)
def test_kerashubs_backbone_test(cls, options, tokens):
    size = (2, *options["image_size"], 3)
    x = np.random.default_rng(0).normal(size=size).astype("float32")
    case = test_case.TestCase()
    case.run_backbone_test(cls, options, x, expected_output_shape=(2, tokens, 16))
    case.run_model_saving_test(cls, options, x)


# KerasHub's helper passes an argument that Keras no longer wants.
@pytest.mark.filterwarnings("ignore:The `check_types` argument is deprecated")
@pytest.mark.parametrize(("cls", "backbone", "options"), TASKS)
def test_kerashubs_task_test(cls, backbone, options):
    size = options["image_size"]
    arguments = {
        "backbone": backbone(**options),
        "num_classes": 3,
        "preprocessor": ImagePreprocessor(ImageConverter(size)),
        "drop_rate": 0.1,
    }
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype("float32")
    case = test_case.TestCase()
    data = (images, np.array([0, 2]))
    case.run_task_test(
        cls, arguments, data, expected_output_shape=(2, 3), compile_kwargs={"jit_compile": False}
    )
    case.run_model_saving_test(cls, arguments, images / 255)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_near(family, dtype):
    exact, half = (classifier(**FAMILIES[family], dtype=policy) for policy in (None, dtype))
    x = pixels(exact).astype("float32") / 127.5 - 1
    expected, found = (keras.ops.convert_to_numpy(model(x)) for model in (exact, half))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < (0.01 if dtype == "mixed_float16" else 0.08)

"""from_preset and back: names, changes at load time, round trips, and a real checkpoint."""

import concurrent.futures

import goldens
import keras
import keras_hub
import numpy as np
import pytest

import keras_vit
import keras_vit_presets as presets
from keras_vit_command import run as main

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), dtype="uint8")


def run(model, x):
    return keras.ops.convert_to_numpy(model(x))


def values(model):
    """The weights, without the states of random generators."""
    return [w for w in model.weights if "seed_generator" not in w.path]


def same_weights(a, b):
    a, b = values(a), values(b)
    assert [v.path for v in a] == [v.path for v in b]
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (x, y)), err_msg=x.path)


@pytest.fixture
def plain(tmp_path):
    """The directory of a tiny ViT, 8 x 12 pixels, 7 classes."""
    return goldens.repository("vit-plain", tmp_path / "vit-plain")


# --- Names ---


def test_patterns_select_names():
    names = keras_vit.list_presets("deit3_*_384.*")
    assert len(names) == 6 and "deit3_base_patch16_384.fb_in1k" in names
    assert set(names) < set(keras_vit.list_presets())
    assert keras_vit.list_presets("no such*") == []


@pytest.mark.parametrize(
    ("pattern", "same"),
    [("DeiT*", "deit*"), ("tiny", "*tiny*"), ("Tiny_Patch16", "*tiny_patch16*"), ("", "*")],
)
def test_names_by_a_part_and_in_any_case(pattern, same, capsys):
    names = keras_vit.list_presets(pattern)
    assert names and names == keras_vit.list_presets(same)
    assert main(["list", pattern]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:]] == sorted(names)


def test_preset_info_says_what_is_known():
    info = keras_vit.preset_info("vit_base_patch16_clip_quickgelu_224.openai")
    assert info["class"] == "ViT" and info["num_classes"] == 512 and info["image_size"] == 224
    assert info["source"] == "timm/vit_base_patch16_clip_224.openai"
    assert info["params"] == 86_193_152 and info["top1"] is None
    assert info["mean"] == [0.48145466, 0.4578275, 0.40821073] and info["crop_pct"] == 0.9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_225.augreg_in21k_ft_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k"),
        ("vit_base_patch16_rpn_224.sw_in1k", "is not supported: ResPostBlock"),
        ("vit_so400m_patch14_siglip_384.webli", "not supported: .* does not divide 384"),
    ],
)
@pytest.mark.parametrize("function", [keras_vit.from_preset, keras_vit.preset_info])
def test_a_wrong_name_is_answered_with_the_nearest(function, name, message):
    with pytest.raises(ValueError, match=message):
        function(name)


def test_a_class_takes_its_own_checkpoints_and_those_of_its_subclasses(plain, tmp_path):
    deit = goldens.repository("deit-distilled", tmp_path / "deit")
    assert type(keras_vit.ViT.from_preset(deit, load_weights=False)) is keras_vit.DeiT
    with pytest.raises(ValueError, match=r"of ViT, not of DeiT\. Use keras_vit\.ViT\.from_preset"):
        keras_vit.DeiT.from_preset(plain)


# --- Changes at load time ---


def test_num_classes_none_a_number_and_zero(plain):
    golden = goldens.arrays("vit-plain")
    kept, fresh, none = (keras_vit.from_preset(plain, num_classes=n) for n in (None, 3, 0))
    np.testing.assert_allclose(run(kept, golden["x"]), golden["logits"], atol=1e-5)
    np.testing.assert_allclose(run(none, golden["x"]), golden["pooled"], atol=1e-5)
    assert run(fresh, golden["x"]).shape == (2, 3)
    np.testing.assert_array_equal(run(fresh.backbone, golden["x"]), run(kept.backbone, golden["x"]))
    kernel = keras.ops.convert_to_numpy(fresh.get_layer("head").kernel)
    assert 0.01 < kernel.std() < 0.03  # not zeros, not the checkpoint's


def test_a_fresh_head_has_no_labels(tmp_path):
    directory = goldens.repository("hf-vit", tmp_path)
    assert keras_vit.from_preset(directory).labels[2] == "name of 2"
    assert keras_vit.from_preset(directory, num_classes=3).labels is None


def test_both_heads_of_deit_are_fresh(tmp_path):
    directory = goldens.repository("deit-distilled", tmp_path)
    model = keras_vit.from_preset(directory, num_classes=3)
    assert model.get_layer("head").units == model.get_layer("head_dist").units == 3


def test_image_size_changes_model_and_preprocessing(plain):
    model = keras_vit.from_preset(plain, image_size=(16, 20))
    assert model.input.shape == (None, 16, 20, 3)
    assert model.image_size == model.preprocessor.image_converter.image_size == (16, 20)
    assert model.predict(PICTURES, verbose=0).shape == (5, 7)
    assert keras_vit.from_preset(plain, image_size=16).image_size == (16, 16)


def test_an_image_size_that_the_patch_does_not_divide(plain):
    with pytest.raises(ValueError, match="width.* multiple of the patch size 4.* 18 .*16 and 20"):
        keras_vit.from_preset(plain, image_size=(16, 18))


def test_one_channel_sees_what_three_equal_ones_do(plain):
    x = goldens.arrays("vit-plain")["x"][..., :1]
    grey, colour = keras_vit.from_preset(plain, in_channels=1), keras_vit.from_preset(plain)
    np.testing.assert_allclose(
        run(grey, x), run(colour, np.repeat(x, 3, axis=-1)), rtol=0, atol=1e-5
    )
    assert grey.predict(PICTURES[..., :1], verbose=0).shape == (5, 7)


def test_four_channels_repeat_the_kernel(plain):
    model = keras_vit.from_preset(plain, in_channels=4)
    kernel = keras.ops.convert_to_numpy(model.get_layer("patch_embed").proj.kernel)
    np.testing.assert_array_equal(kernel[:, :, 3], kernel[:, :, 0])
    assert len(model.preprocessor.image_converter.mean) == 4
    rgba = np.concatenate([PICTURES, PICTURES[..., :1]], -1)
    assert model.predict(rgba, verbose=0).shape == (5, 7)


def test_pooling_may_change(plain):
    golden = goldens.arrays("vit-plain")
    model = keras_vit.from_preset(plain, pooling="avg", num_classes=0)
    wanted = golden["features"][:, 1:].mean(axis=1)
    np.testing.assert_allclose(run(model, golden["x"]), wanted, atol=1e-5)
    assert "attn_pool" in [
        layer.name for layer in keras_vit.from_preset(plain, pooling="map").layers
    ]
    with pytest.raises(ValueError, match="token, avg, .*'max'"):
        keras_vit.from_preset(plain, pooling="max")


def test_drop_rates_are_for_training_only(plain):
    golden = goldens.arrays("vit-plain")
    model = keras_vit.from_preset(plain, drop_path_rate=0.3, drop_rate=0.5)
    assert [block.drop_path for block in model.backbone.blocks] == [0.0, 0.3]
    assert model.get_layer("head_drop").rate == 0.5
    np.testing.assert_allclose(run(model, golden["x"]), golden["logits"], atol=1e-5)
    assert np.abs(keras.ops.convert_to_numpy(model(golden["x"], training=True))).max() > 0


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_dtype_is_that_of_the_computation_and_logits_are_float32(plain, dtype):
    golden = goldens.arrays("vit-plain")
    model = keras_vit.from_preset(plain, dtype=dtype)
    assert model.get_layer("blocks_0").attn.qkv.compute_dtype == dtype.removeprefix("mixed_")
    found = run(model, golden["x"])
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, golden["logits"], atol=0.02)
    assert {v.dtype for v in values(model)} == {"float32"}


def test_without_weights_nothing_but_config_is_needed(tmp_path):
    directory = goldens.repository("vit-plain", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model = keras_vit.from_preset(directory, load_weights=False)
    golden = goldens.arrays("vit-plain")
    assert np.abs(run(model, golden["x"]) - golden["logits"]).max() > 0.01
    table = keras_vit.from_preset("vit_tiny_patch16_224.augreg_in21k", load_weights=False)
    assert table.num_classes == 21843 and table.preset == "vit_tiny_patch16_224.augreg_in21k"


def test_what_is_no_argument_is_said(plain):
    with pytest.raises((TypeError, ValueError), match="img_size"):
        keras_vit.from_preset(plain, img_size=16)


# --- Round trips ---


ROUND = ["vit-plain", "vit-siglip_tanh", "vit-dinov2_giant_reg4", "vit-aimv2", "deit-distilled"]


@pytest.mark.parametrize("name", [*ROUND, "hf-deit", "hf-vit-model"])
def test_a_keras_directory_gives_the_same_model(name, tmp_path):
    model = keras_vit.from_preset(goldens.repository(name, tmp_path / "source"))
    model.save_to_preset(tmp_path / "keras")
    x = goldens.arrays(name)["x"]
    pixels = model.preprocessor(PICTURES)
    for from_preset in (
        keras_vit.from_preset,
        type(model).from_preset,
        keras_hub.models.ImageClassifier.from_preset,
    ):
        loaded = from_preset(str(tmp_path / "keras"))
        assert type(loaded) is type(model) and loaded.labels == model.labels
        same_weights(loaded, model)
        np.testing.assert_array_equal(run(loaded, x), run(model, x))
        np.testing.assert_array_equal(loaded.preprocessor(PICTURES), pixels)


def test_a_keras_directory_may_be_changed(tmp_path):
    source = goldens.repository("deit-distilled", tmp_path / "source")
    keras_vit.from_preset(source, drop_path_rate=0.1).save_to_preset(tmp_path / "keras")
    for options in ({"image_size": (12, 8)}, {"num_classes": 0}, {"in_channels": 1}):
        found = keras_vit.from_preset(str(tmp_path / "keras"), **options)
        wanted = keras_vit.from_preset(source, **options)
        same_weights(found, wanted)
        assert found.backbone.options["drop_path_rate"] == 0.1
    fresh = keras_vit.DeiT.from_preset(str(tmp_path / "keras"), num_classes=3, drop_path_rate=0.3)
    assert fresh.num_classes == 3 and fresh.backbone.blocks[-1].drop_path == 0.3
    same_weights(fresh.backbone, wanted_backbone := keras_vit.from_preset(source).backbone)
    assert wanted_backbone.options["drop_path_rate"] == 0.0


def trained(plain):
    """A model with dropout and drop path, after two steps of AdamW."""
    model = keras_vit.from_preset(plain, num_classes=3, drop_path_rate=0.5, drop_rate=0.2)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3, weight_decay=0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        run_eagerly=True,  # two steps do not pay for a graph
    )
    model.fit(PICTURES, np.arange(5) % 3, batch_size=3, verbose=0)
    return model


def test_a_keras_file_holds_model_and_compile_state(plain, tmp_path):
    model = trained(plain)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is keras_vit.ViT
    np.testing.assert_array_equal(
        loaded.predict(PICTURES, verbose=0), model.predict(PICTURES, verbose=0)
    )
    assert loaded.get_config() == model.get_config()
    assert isinstance(loaded.optimizer, keras.optimizers.AdamW) and loaded.loss.from_logits
    assert float(loaded.optimizer.learning_rate) == pytest.approx(1e-3)
    assert loaded.optimizer.weight_decay == 0.05
    state, wanted = loaded.optimizer.variables, model.optimizer.variables
    assert int(loaded.optimizer.iterations) == 2 and len(state) == len(wanted) > 20
    for a, b in zip(state, wanted, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))
    # and training goes on as if nothing had been
    seeded = keras.callbacks.LambdaCallback(  # on torch dropout draws from the global generator
        on_train_batch_begin=lambda step, logs: keras.utils.set_random_seed(step)
    )
    options = {"initial_epoch": 1, "epochs": 2, "callbacks": seeded, "verbose": 0}
    for one in (model, loaded):
        one.fit(PICTURES, np.arange(5) % 3, batch_size=3, **options)
    for a, b in zip(values(model), values(loaded), strict=True):
        np.testing.assert_allclose(
            *map(keras.ops.convert_to_numpy, (a, b)), atol=1e-6, err_msg=a.path
        )


def test_a_clone_and_a_config_give_the_same_model(plain):
    model = trained(plain)
    x = goldens.arrays("vit-plain")["x"]
    clone = keras.models.clone_model(model)  # a plain functional model: so Keras wants it
    assert isinstance(clone.optimizer, keras.optimizers.AdamW)
    again = keras_vit.ViT.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    for copy in (clone, again):
        copy.set_weights(model.get_weights())
        np.testing.assert_array_equal(run(copy, x), run(model, x))


@pytest.mark.parametrize("optimizer", ["sgd", "auto"])
def test_a_model_that_was_never_trained_is_saved_without_a_warning(plain, tmp_path, optimizer):
    model = keras_vit.from_preset(plain)
    model.compile(optimizer=optimizer)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")  # a warning would be an error
    assert type(loaded.optimizer) is type(model.optimizer) and not loaded.optimizer.built
    clone = keras.models.clone_model(model)
    assert type(clone.optimizer) is type(model.optimizer)


def test_features_of_a_block_are_a_functional_model_that_saves(plain, tmp_path):
    model = keras_vit.from_preset(plain)
    x = goldens.arrays("vit-plain")["x"]
    features = keras.Model(model.input, model.get_layer("blocks_0").output)
    features.save(tmp_path / "features.keras")
    loaded = keras.models.load_model(tmp_path / "features.keras")
    assert run(loaded, x).shape == (2, 7, 12)
    np.testing.assert_array_equal(run(loaded, x), run(features, x))


# --- The real DeiT-Tiny on photographs ---


def test_deit_tiny_is_timms_from_jpeg_to_logits(deit_tiny, photographs, shared):
    model = keras_vit.from_preset(str(deit_tiny))
    files, classes = photographs
    with np.load(shared / "images/imagenet/deit_tiny_reference.npz") as file:
        reference = dict(file)
    order = {name: i for i, name in enumerate(reference["files"])}
    wanted = reference["logits"][[order[path.name] for path in files]]
    logits = model.predict([str(path) for path in files], verbose=0)
    top = logits.argmax(-1)
    assert (top == wanted.argmax(-1)).sum() >= 124
    assert (top == np.array(classes)).mean() == pytest.approx(0.84, abs=0.0081)
    assert np.abs(logits - wanted).max() <= 0.05
    pixels = {path.name: path for path in files}
    pixels = [pixels[name] for name in reference["pixel_files"]]
    found = model.preprocessor.image_converter.pixels([str(path) for path in pixels])
    assert np.abs(found - reference["pixels"].astype(float)).mean() <= 0.5


def test_deit_tiny_names_what_it_sees(deit_tiny, photographs):
    model = keras_vit.from_preset(str(deit_tiny))
    assert model.preset == "deit_tiny_patch16_224.fb_in1k"
    path = next(p for p in photographs[0] if "tench" in p.name)
    (name, probability), *others = model.classify(str(path), top=5)
    assert name.startswith("tench") and probability > 0.5 and len(others) == 4


def test_every_family_is_found_by_its_class():
    for table in presets.families().values():
        assert issubclass(getattr(keras_vit, table.cls), keras_hub.models.ImageClassifier)


# --- Several at once ---


def test_from_preset_in_several_threads(tmp_path):
    """Keras itself changes classes and global state while it builds."""
    names = ("vit-plain", "deit-distilled", "mixer-plain", "hf-vit")
    paths = {name: goldens.repository(name, tmp_path / name) for name in names}
    keras_vit.from_preset(paths["vit-plain"]).save_to_preset(tmp_path / "keras")
    paths["keras"] = str(tmp_path / "keras")
    tasks = [(name, options) for name in paths for options in ({}, {"num_classes": 0})] * 3

    def load(task):
        name, options = task
        return keras_vit.from_preset(paths[name], **options)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        models = list(threads.map(load, tasks))
    for (name, options), model in zip(tasks, models, strict=True):
        golden = goldens.arrays("vit-plain" if name == "keras" else name)
        found = run(model, golden["x"])
        if options:
            assert found.shape == (2, model.backbone.output_shape[-1])
        else:
            np.testing.assert_allclose(found, golden["logits"], atol=1e-5)


# --- Classes of a user's own ---


@pytest.fixture
def doubled():
    """A class whose train_step and whose logits are its own.

    It is unregistered afterwards: KerasHub's own from_preset takes any class of a kind.
    """

    @keras.saving.register_keras_serializable("test_zoo")
    class Doubled(keras_vit.ViT):
        def train_step(self, *args, **kwargs):
            logs = super().train_step(*args, **kwargs)
            return {**logs, "own": 1.0}

        def logits(self, x):
            return 2 * super().logits(x)

    yield Doubled
    del keras.saving.get_custom_objects()["test_zoo>Doubled"]


@pytest.mark.parametrize("layout", ["timm", "keras"])
@pytest.mark.parametrize("options", [{}, {"num_classes": 7}, {"drop_rate": 0.1}])
def test_a_class_derived_from_ours_loads_checkpoints(plain, doubled, layout, options, tmp_path):
    golden, source = goldens.arrays("vit-plain"), plain
    if layout == "keras":
        keras_vit.from_preset(plain).save_to_preset(tmp_path / "ViT")
        source = tmp_path / "ViT"
    model = doubled.from_preset(source, **options)
    assert type(model) is doubled
    if "num_classes" not in options:
        np.testing.assert_allclose(run(model, golden["x"]), 2 * golden["logits"], atol=1e-5)
    model.compile(
        optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    history = model.fit(PICTURES, np.arange(5), batch_size=5, verbose=0).history
    assert history["own"] == [1.0]


def test_a_class_derived_from_ours_is_saved_and_loaded(plain, doubled, tmp_path):
    model = doubled.from_preset(plain)
    model.save_to_preset(tmp_path / "own")
    x = goldens.arrays("vit-plain")["x"]
    for loaded in (
        keras_vit.from_preset(tmp_path / "own"),
        keras_vit.ViT.from_preset(tmp_path / "own"),
        doubled.from_preset(tmp_path / "own", drop_rate=0.1),
    ):
        assert type(loaded) is doubled
        np.testing.assert_allclose(run(loaded, x), run(model, x), atol=1e-6)
    with pytest.raises(ValueError, match="of Doubled, not of DeiT"):
        keras_vit.DeiT.from_preset(tmp_path / "own")


def test_a_class_derived_from_another_family_is_refused(doubled, tmp_path):
    directory = goldens.repository("mixer-plain", tmp_path)
    with pytest.raises(ValueError, match="of MLPMixer, not of Doubled"):
        doubled.from_preset(directory)

"""LoRA: what is trained is saved, what is written elsewhere is merged."""

import keras
import numpy as np
import pytest
from tiny_models import classifier

import keras_vit
from keras_vit import layers
from keras_vit.layers import lora

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
LABELS = np.arange(4)


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    return model


@pytest.fixture
def trained():
    """A classifier whose outputs are far from those of its kernels alone."""
    model = classifier()
    before = outputs(model)
    model.backbone.enable_lora(2)
    fill(lora.adapted_layers(model))
    assert np.abs(outputs(model) - before).max() > 0.1
    return model


def fill(layers):
    """As if they had been trained."""
    for layer in layers:
        b = layer.lora_kernel_b
        b.assign(np.random.default_rng(0).normal(0, 0.2, b.shape))


def outputs(model):
    return keras.ops.convert_to_numpy(model(model.preprocessor(IMAGES)))


def trainable(model):
    return [v.path for v in model.trainable_variables]


def through_keras_file(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def through_preset(model, folder):
    model.save_to_preset(folder / "preset")
    return keras_vit.from_preset(folder / "preset")


def through_weights(model, folder):
    model.save_weights(folder / "model.weights.h5")
    copy = classifier()
    copy.backbone.enable_lora(2)
    compiled(copy).optimizer.build(copy.trainable_variables)
    copy.load_weights(folder / "model.weights.h5")
    return copy


def through_timm(model, folder):
    model.save_to_timm(folder / "timm")
    return keras_vit.from_preset(folder / "timm")


def through_transformers(model, folder):
    model.save_to_transformers(folder / "transformers")
    return keras_vit.from_preset(folder / "transformers")


def through_a_changed_copy(model, folder):
    model.save_to_preset(folder / "preset")
    return keras_vit.from_preset(folder / "preset", drop_rate=0.1)


@pytest.mark.parametrize("through", [through_keras_file, through_preset, through_weights])
def test_training_goes_on_where_it_was(trained, through, tmp_path):
    compiled(trained).fit(IMAGES, LABELS, verbose=0)
    copy = through(trained, tmp_path)
    np.testing.assert_allclose(outputs(copy), outputs(trained), rtol=0, atol=1e-4)
    assert trainable(copy) == trainable(trained)
    if through is through_keras_file:  # the optimizer, too
        np.testing.assert_array_equal(copy.optimizer.iterations, trained.optimizer.iterations)
        for model in (copy, trained):
            model.fit(IMAGES, LABELS, epochs=2, verbose=0, shuffle=False)
        np.testing.assert_allclose(outputs(copy), outputs(trained), rtol=0, atol=1e-3)


@pytest.mark.parametrize("through", [through_timm, through_transformers, through_a_changed_copy])
def test_what_is_written_elsewhere_is_merged(through, tmp_path):
    known = {"embed_dim": 192, "depth": 12, "image_size": 224}  # a size that timm has
    model = classifier(**(known if through is through_timm else {}))
    model.backbone.enable_lora(2)
    fill(lora.adapted_layers(model))
    x = np.random.default_rng(2).normal(0, 1, (1, *model.image_size, 3)).astype("float32")
    copy = through(model, tmp_path)
    found, wanted = (keras.ops.convert_to_numpy(m(x)) for m in (copy, model))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert [v.path for v in copy.weights if "lora" in v.path] == []


def test_merged_it_is_a_plain_model_with_the_same_outputs(trained):
    wanted = outputs(trained)
    compiled(trained)
    before = trained.predict(IMAGES, verbose=0)
    trained.merge_lora()
    np.testing.assert_allclose(trained.predict(IMAGES, verbose=0), before, rtol=0, atol=1e-4)
    np.testing.assert_allclose(outputs(trained), wanted, rtol=0, atol=1e-4)
    assert [w.shape for w in trained.get_weights()] == [w.shape for w in classifier().get_weights()]
    assert trainable(trained) == ["head/kernel", "head/bias"]
    trained.fit(IMAGES, LABELS, verbose=0)  # compiled as before
    assert trained.optimizer.learning_rate == np.float32(0.05)
    trained.trainable = True
    trained.backbone.enable_lora(4)  # begins anew
    trained.backbone.merge_lora()
    trained.merge_lora()  # nothing is left


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
@pytest.mark.parametrize("mode", [None, "int8"])
def test_layers_of_every_kind_merge(mode):
    inputs = keras.Input((8,))
    x = keras.layers.Dense(8, name="a")(inputs)
    x = keras.layers.Reshape((1, 8))(keras.layers.Dense(8, name="b")(x))
    x = keras.layers.EinsumDense("abc,cd->abd", (None, 8), name="c")(x)
    if mode is None:
        x = keras.layers.Conv1D(8, 1, name="d")(x)
    model = keras.Model(inputs, x)
    if mode:
        model.quantize(mode)
    adapted = [layer for layer in model.layers if hasattr(layer, "enable_lora")]
    for layer in adapted:
        layer.enable_lora(2)
    fill(adapted)
    x = np.random.default_rng(1).normal(0, 1, (4, 8)).astype("float32")
    wanted = model.predict(x, verbose=0)
    lora.merge(model)
    found = model.predict(x, verbose=0)
    atol = 1e-5 if mode is None else 0.03 * np.abs(wanted).max()  # quantized again
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)
    assert lora.adapted_layers(model) == []


def test_a_file_of_lora_holds_all_that_the_backbone_has_learnt(trained, tmp_path):
    trained.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    trained.save_task_weights(tmp_path / "head.task.weights.h5")
    copy = classifier()
    copy.backbone.load_lora_weights(tmp_path / "a.lora.h5")
    copy.load_task_weights(tmp_path / "head.task.weights.h5")
    np.testing.assert_allclose(outputs(copy), outputs(trained), rtol=0, atol=1e-5)
    assert sorted(trainable(copy)) == sorted(trainable(trained))


@pytest.mark.parametrize("names", [["qkv"], ["fc1"], ["fc1", "qkv"], ["proj", "fc2"]])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_file_of_lora_knows_its_layers(names, enabled, tmp_path):
    model, copy = classifier(), classifier()
    model.backbone.enable_lora(3, names)
    fill(lora.adapted_layers(model))
    model.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    if enabled:
        copy.backbone.enable_lora(3, names)
    copy.backbone.load_lora_weights(tmp_path / "a.lora.h5")
    np.testing.assert_allclose(outputs(copy), outputs(model), rtol=0, atol=1e-5)
    assert sorted(trainable(copy)) == sorted(trainable(model))


OTHERS = {
    "other layers": (
        lambda b: b.enable_lora(2, ["fc1"]),
        r"2 layers \(fc1; rank 2\).*\(qkv; rank 2",
    ),
    "another rank": (lambda b: b.enable_lora(3), r"\(qkv; rank 3\).*\(qkv; rank 2"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_file_of_lora_for_other_layers(trained, case, tmp_path):
    enable, says = OTHERS[case]
    trained.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    model = classifier()
    enable(model.backbone)
    before = outputs(model)
    with pytest.raises(ValueError, match=says):
        model.backbone.load_lora_weights(tmp_path / "a.lora.h5")
    np.testing.assert_array_equal(outputs(model), before)


def test_a_file_of_lora_of_another_architecture(tmp_path):
    deep = classifier(depth=4)
    deep.backbone.enable_lora(2)
    deep.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    classifier().save_weights(tmp_path / "b.weights.h5")
    for name in ("a.lora.h5", "b.weights.h5"):
        with pytest.raises(ValueError, match="is not LoRA of this architecture"):
            classifier().backbone.load_lora_weights(tmp_path / name)


def test_a_reloaded_backbone_saves_lora_again(trained, tmp_path):
    copy = through_keras_file(trained, tmp_path)
    for model, name in ((trained, "a"), (copy, "b")):
        model.backbone.save_lora_weights(tmp_path / f"{name}.lora.h5")
    plain = [classifier(), classifier()]
    for model, name in zip(plain, "ab", strict=True):
        model.backbone.load_lora_weights(tmp_path / f"{name}.lora.h5")
    a, b = (outputs(model) for model in plain)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_weights_without_lora_begin_it(tmp_path):
    classifier().save_weights(tmp_path / "plain.weights.h5")
    model = classifier()
    model.backbone.enable_lora(2)
    model.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_allclose(outputs(model), outputs(classifier()), rtol=0, atol=1e-6)
    for layer in lora.adapted_layers(model):  # Keras' own would have two zeros: no gradient
        assert np.any(layer.lora_kernel_a) and not np.any(layer.lora_kernel_b)


def test_lora_in_a_model_of_ones_own(tmp_path):
    inputs = keras.Input((32, 32, 3))
    x = layers.PatchEncoder(24, 16, name="patches")(inputs)
    model = keras.Model(inputs, layers.TransformerBlock(2, name="block")(x))
    model.trainable = False
    model.get_layer("block").trainable = True
    model.get_layer("block").attn.qkv.enable_lora(2, lora_alpha=8)
    factor = model.get_layer("block").attn.qkv.lora_kernel_b
    factor.assign(np.ones(factor.shape))
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    x = IMAGES.astype("float32")
    found, wanted = (keras.ops.convert_to_numpy(m(x)) for m in (copy, model))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert trainable(copy) == trainable(model)


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda b: b.enable_lora(2, ["query"]), "named 'query'. There are: .*qkv"),
        (lambda b: (b.enable_lora(2), b.enable_lora(2)), "merge_lora"),
        (lambda b: b.save_lora_weights("x.lora.h5"), "no lora-enabled layers"),
    ],
)
def test_what_cannot_be_done_is_said(do, says):
    with pytest.raises(ValueError, match=says):
        do(classifier().backbone)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TFLite needs TensorFlow")
def test_an_exported_file_is_that_of_the_merged_model(trained, tmp_path):
    sizes = []
    for name in ("adapted", "merged"):
        path = tmp_path / f"{name}.tflite"
        keras_vit.export.to_tflite(trained, path)
        sizes.append(path.stat().st_size)
        found = keras_vit.export.compare(path, trained, IMAGES)
        assert found.largest_difference < 1e-5
        trained.merge_lora()
    assert abs(sizes[0] - sizes[1]) < 100

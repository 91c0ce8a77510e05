"""Keras' own quantization: model.quantize("int8") and "int4" of every family."""

import keras
import numpy as np
import pytest
from tiny_models import FAMILIES, classifier, pictures

import keras_vit
from keras_vit.layers.block import TransformerBlock

NOISE = {"int8": 0.03, "int4": 0.4}  # root mean square, as part of the logits'


def dense(model):
    return [x for x in model._flatten_layers() if isinstance(x, keras.layers.Dense)]


def run(layer, x, **options):
    return keras.ops.convert_to_numpy(layer(x, **options))


def normalised(model):
    """Inputs of a model, as its preprocessor gives them."""
    shape = (3, *model.backbone.example_size, 3)
    return np.random.default_rng(5).normal(0, 1, shape).astype("float32")


@pytest.mark.parametrize("mode", NOISE)
@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_and_close(family, mode):
    model = classifier(**FAMILIES[family])
    inputs = normalised(model)
    expected = run(model, inputs)
    model.quantize(mode)
    assert {layer.quantization_mode for layer in dense(model)} == {mode}
    assert all("int8" in {v.dtype for v in x.variables} for x in dense(model))
    error = run(model, inputs) - expected
    assert 0 < np.sqrt(np.mean(error**2) / np.mean(expected**2)) < NOISE[mode]
    assert model.predict(pictures(), verbose=0).shape == (3, 7)


@pytest.mark.parametrize(
    ("family", "mode"), [*((family, "int8") for family in FAMILIES), ("ViT", "int4")]
)
def test_saved_and_loaded_exactly(family, mode, tmp_path):
    model = classifier(**FAMILIES[family], representation_size=16)
    inputs = normalised(model)
    model.quantize(mode)
    expected = run(model, inputs)
    model.save_to_preset(tmp_path / "preset")
    model = keras_vit.from_preset(tmp_path / "preset")
    assert {layer.quantization_mode for layer in dense(model)} == {mode}
    np.testing.assert_array_equal(run(model, inputs), expected)
    model.save(tmp_path / "model.keras")  # what was loaded is saved again
    model = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(model, inputs), expected)


def test_settings_and_precision_are_kept(tmp_path):
    model = classifier(dtype="mixed_bfloat16")
    model.quantize(config=keras.quantizers.Int4QuantizationConfig(block_size=16))
    dtypes = [layer.compute_dtype for layer in model._flatten_layers()]
    assert "bfloat16" in dtypes
    inputs = normalised(model)
    expected = run(model, inputs)
    model.save_to_preset(tmp_path)
    again = keras_vit.from_preset(tmp_path)
    assert [layer.compute_dtype for layer in again._flatten_layers()] == dtypes
    np.testing.assert_array_equal(run(again, inputs), expected)


def test_some_layers_only(tmp_path):
    model = classifier()
    model.quantize("int8", filters="fc[12]")
    modes = {layer.name: layer.quantization_mode for layer in dense(model)}
    assert modes == {"qkv": None, "proj": None, "fc1": "int8", "fc2": "int8", "head": None}
    model.save_to_preset(tmp_path)
    again = keras_vit.from_preset(tmp_path)
    inputs = normalised(model)
    np.testing.assert_array_equal(run(again, inputs), run(model, inputs))


@pytest.mark.parametrize("mode", NOISE)
def test_leading_tokens_are_the_same(mode):
    """The last block of a classifier computes the class token alone."""
    block = TransformerBlock(num_heads=3)
    x = np.random.default_rng(5).normal(0, 1, (2, 5, 48)).astype("float32")
    block(x)
    for layer in dense(block):
        layer.quantize(mode)
    np.testing.assert_allclose(run(block, x, queries=1), run(block, x)[:, :1], atol=1e-5)


def test_unknown_mode():
    with pytest.raises(ValueError, match="int7"):
        classifier().quantize("int7")


@pytest.mark.parametrize("change", [{"num_classes": 3}, {"image_size": 48}])
def test_what_needs_float_weights_says_so(change, tmp_path):
    model = classifier()
    model.quantize("int8")
    with pytest.raises(ValueError, match="needs float weights"):
        model.save_to_timm(tmp_path / "timm")
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(ValueError, match="TFLite needs float weights"):
            keras_vit.export.to_tflite(model, tmp_path / "m.tflite")
    model.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match="needs float weights"):
        keras_vit.from_preset(tmp_path / "preset", **change)


@pytest.mark.parametrize(("mode", "fewest", "size"), [("int8", 14, 0.29), ("int4", 13, 0.18)])
def test_deit_tiny_on_photographs(mode, fewest, size, deit_tiny, photographs):
    """Every eighth of them; float32: 15 of 16. Keras' int8 is slow on a CPU."""
    paths, classes = (several[::8] for several in photographs)
    model = keras_vit.from_preset(deit_tiny)
    before = sum(weight.nbytes for weight in model.get_weights())
    model.quantize(mode)
    assert sum(weight.nbytes for weight in model.get_weights()) < size * before
    found = model.predict(paths, batch_size=25, verbose=0).argmax(-1)
    assert (found == classes).sum() >= fewest

"""What is frozen stays frozen: saved, loaded, cloned, in either order of compile and freeze."""

import keras
import numpy as np
import pytest
from tiny_models import classifier

import keras_vit
from keras_vit import layers

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
LABELS = np.arange(4)


def freeze_patches_and_attention(model):
    model.get_layer("patch_embed").proj.trainable = False
    model.get_layer("blocks_1").attn.trainable = False


def freeze_all_but_a_block(model):
    model.backbone.trainable = False
    model.get_layer("blocks_1").trainable = True


FREEZE = {
    "backbone": lambda model: setattr(model.backbone, "trainable", False),
    "model": lambda model: setattr(model, "trainable", False),
    "block": lambda model: setattr(model.get_layer("blocks_0"), "trainable", False),
    "head": lambda model: setattr(model.get_layer("head"), "trainable", False),
    "sublayers": freeze_patches_and_attention,
    "all but a block": freeze_all_but_a_block,
}


def through_keras_file(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def through_preset(model, folder):
    model.save_to_preset(folder / "preset")
    return keras_vit.from_preset(folder / "preset")


def through_clone(model, folder):
    return keras.models.clone_model(model)


def through_config(model, folder):
    return type(model).from_config(model.get_config())


def trainable(model):
    return sorted(v.path for v in model.trainable_variables)


def compiled(model):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))


@pytest.mark.parametrize("what", FREEZE)
@pytest.mark.parametrize("first", ["freeze", "compile"])
def test_frozen_layers_come_back_frozen(what, first, tmp_path):
    model = classifier()
    if first == "compile":
        compiled(model)
    FREEZE[what](model)
    if first == "freeze":
        compiled(model)
    if trainable(model):
        model.fit(IMAGES, LABELS, verbose=0)
    assert trainable(model) != trainable(classifier())
    for through in (through_keras_file, through_preset, through_clone, through_config):
        copy = through(model, tmp_path)
        assert trainable(copy) == trainable(model), through.__name__


@pytest.mark.parametrize("change", [{"num_classes": 3}, {"image_size": 48}, {"drop_rate": 0.2}])
@pytest.mark.parametrize("what", sorted(set(FREEZE) - {"head"}))
def test_a_frozen_backbone_stays_frozen_in_a_changed_copy(what, change, tmp_path):
    model = classifier()
    FREEZE[what](model)
    model.save_to_preset(tmp_path / "preset")
    copy = keras_vit.from_preset(tmp_path / "preset", **change)
    assert trainable(copy.backbone) == trainable(model.backbone)
    assert copy.get_layer("head").trainable


def test_a_backbone_alone_keeps_its_frozen_layers(tmp_path):
    backbone = classifier().backbone
    backbone.get_layer("blocks_0").mlp.trainable = False
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.models.load_model(tmp_path / "backbone.keras")
    assert trainable(loaded) == trainable(backbone) != trainable(classifier().backbone)


def test_layers_in_a_model_of_ones_own_keep_what_is_frozen(tmp_path):
    inputs = keras.Input((32, 32, 3))
    x = layers.PatchEncoder(24, 16, name="patches")(inputs)
    for i in range(2):
        x = layers.TransformerBlock(2, name=f"block_{i}")(x)
    model = keras.Model(inputs, x)
    model.get_layer("block_0").trainable = False
    model.get_layer("block_1").attn.trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert trainable(loaded) == trainable(model)
    assert trainable(keras.models.clone_model(model)) == trainable(model)


def test_training_goes_on_with_the_backbone_frozen(tmp_path):
    model = classifier()
    model.backbone.trainable = False
    compiled(model)
    model.fit(IMAGES, LABELS, verbose=0)
    copy = through_keras_file(model, tmp_path)
    before = [np.array(w) for w in copy.backbone.get_weights()]
    copy.fit(IMAGES, LABELS, verbose=0)
    for old, new in zip(before, copy.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)

"""Copies of a model for export: with another image size, in float32."""

import keras

from keras_vit import weights, zoo
from keras_vit.layers.patches import pair
from keras_vit.layouts import saved
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Size


def at_size(model: keras.Model, image_size: Size | None) -> keras.Model:
    """The model for images of that size, with resampled positions; None: the model itself."""
    if image_size is None or pair(image_size) == tuple(model.inputs[0].shape[1:3]):
        return model
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            "image_size is for the classifiers of keras_vit; build other models for the size that "
            f"you need. Received: {model!r}"
        )
    if model.image_size is None:  # its graph resamples the same table of positions
        copy = _copy(model, image_size=pair(image_size))
        if copy.preprocessor:
            copy.preprocessor.image_converter.image_size = image_size
    else:
        spec = saved.spec_of_model(model)
        tensors = weights.export(model, spec.table.rename)
        changes = {"image_size": pair(image_size)}
        copy = zoo.build_classifier(
            spec, tensors, changes, {}, None, model.backbone.dtype_policy.name
        )
    copy.source, copy.preset = model.source, model.preset
    return copy


def in_float32(model: keras.Model) -> keras.Model:
    """The model itself, or a copy that computes in float32, because TFLite has no bfloat16."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            f"TFLite computes in float32. Received: a model of dtype {model.dtype_policy.name!r}. "
            'Build it with dtype="float32" and copy the weights.'
        )
    return _copy(model, dtype="float32")


def _copy(model, **backbone):
    """The same model with other arguments of its backbone, which must not change its weights."""
    config = model.get_config()
    config["backbone"]["config"].update(backbone)
    if "dtype" in backbone:
        config["dtype"] = backbone["dtype"]
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    copy.source, copy.preset = model.source, model.preset
    return copy

"""Copies of a model as a file needs them: for images of another size, in float32."""

from keras_vit import weights, zoo
from keras_vit.layers.patches import pair
from keras_vit.layouts import saved
from keras_vit.models.classifier import ImageClassifier


def at_size(model, image_size):
    """The model for images of that size, its positions resampled; None: the model itself."""
    if image_size is None or pair(image_size) == tuple(model.inputs[0].shape[1:3]):
        return model
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            "image_size is for the classifiers of keras_vit; others are built anew for another "
            f"size. Received: {model!r}"
        )
    if model.image_size is None:  # it resamples positions in its graph, from the same table
        copy = _copy(model, image_size=pair(image_size))
        if copy.preprocessor:
            copy.preprocessor.image_converter.image_size = image_size
    else:
        spec = saved.spec_of_model(model, None)
        tensors = weights.export(model, spec.rename)
        changes = {"image_size": pair(image_size)}
        copy = zoo.build(spec, tensors, changes, {}, None, model.backbone.dtype_policy.name)
    copy.source, copy.preset = model.source, model.preset
    return copy


def in_float32(model):
    """The model itself, or a copy that computes in float32: TFLite has no bfloat16."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model
    if not isinstance(model, ImageClassifier):
        raise ValueError(
            f"TFLite computes in float32. Received: a model of dtype {model.dtype_policy.name!r}. "
            'Build it with dtype="float32" and copy the weights.'
        )
    return _copy(model, dtype="float32")


def _copy(model, **backbone):
    """The same model with other arguments of its backbone, which do not change its weights."""
    config = model.get_config()
    config["backbone"]["config"].update(backbone)
    if "dtype" in backbone:
        config["dtype"] = backbone["dtype"]
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    copy.source, copy.preset = model.source, model.preset
    return copy

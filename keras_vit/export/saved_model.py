"""SavedModel: for TensorFlow Serving, and for programs that have TensorFlow alone."""

import io
import json
import pathlib

import keras
import numpy as np
from PIL import Image

from keras_vit import explain
from keras_vit.export import common, decode, metadata, variants
from keras_vit.models.classifier import ImageClassifier

# By what part of their own size outputs may differ from the model's before a file is broken: a
# pixel between two levels may be rounded either way, and so may most sums in half precision.
TOLERANCE, HALF_TOLERANCE = 0.02, 0.25
# Where activations are rounded to int8, 1e-7 of noise in a DeiT-Tiny's input is 0.03 in its logits.
INT8_TOLERANCE = 0.1
FILES = "image_bytes"  # the name of an input that takes the bytes of picture files
EXTRA = "assets.extra"  # the folder that TensorFlow leaves to others
HEADS = ("head", "head_dist")  # the layers that follow the features


def to_saved_model(
    model, directory, preprocessing=True, batch_size=None, attention=False, image_size=None
):
    """Write a model as a SavedModel.

    It holds the weights once, and these signatures, each of which returns a dict:

    - `serving_default`: `images`, uint8, of any size, `(B, height, width, C)` -> `probabilities`,
      `(B, num_classes)` float32. Resize, crop and normalisation are those of
      `model.preprocessor`.
    - `serve_float`: the same for float32 in 0..255.
    - `serve_bytes`: `image_bytes`, `(B,)` strings, the bytes of JPEG, PNG, GIF, BMP or WebP files
      of any sizes -> the same. Decoded as PIL does it, turned upright, grey as colour, alpha
      dropped. (Not for a model with other than 1 or 3 channels.)
    - `features`: `images` as `serving_default` -> `features`, `(B, D)` float32: what the head reads
      and `num_classes=0` gives.
    - `attention`, on request: `images` -> for each block by its name, `blocks_0` ..., its map
      `(B, heads, N, N)` float32, as `keras_vit.explain.attention_maps` gives it.

    `tf.saved_model.load(directory)` gives an object that is called with images, uint8 or float32,
    and has the methods `serve_bytes`, `features` and `attention`. Neither Keras nor this package
    is needed there. In its folder `assets.extra` lie labels.txt, the names of the classes, and
    preset.json: where the model comes from, the numbers of its preprocessing.

    Without preprocessing the input is `inputs`, preprocessed floats `(B, height, width, C)`, and
    the output `logits`; `serve_float` and `serve_bytes` are left out. A model without a head
    (`num_classes=0`) gives `features` in the place of probabilities and logits.

    Args:
        model: a built classifier, on the TensorFlow backend.
        directory: where to write; a SavedModel that lies there is replaced by the proved one.
        preprocessing: whether raw images go in and probabilities come out.
        batch_size: None: any number of images at once; or a fixed number.
        attention: whether there is a signature for attention maps.
        image_size: int or (height, width) to which images are resized, in pixels; None: the
            model's. Positions are resampled as `from_preset` does.

    Returns:
        The directory, a `pathlib.Path`.

    Raises:
        ValueError: the model is not built or has no preprocessor; attention is asked of a model
            without attention blocks; the directory holds other files.
        RuntimeError: another backend; or the file does not compute what the model does.
        OSError: the directory cannot be written.
    """
    common.check_exportable(model, preprocessing)
    common.check_batch_size(batch_size)
    directory = pathlib.Path(directory)
    if directory.exists() and not _replaceable(directory):
        raise ValueError(
            f"{str(directory)!r} exists and is no SavedModel: it is left alone. "
            "Choose another directory."
        )
    import tensorflow as tf

    model = variants.at_size(model, image_size)
    heads = _heads(model, preprocessing, attention)
    with common.replacing(directory) as new:
        module, signatures = _module(model, heads, preprocessing, batch_size)
        with common.disk_errors(f"The SavedModel {str(directory)!r}"):
            tf.saved_model.save(module, str(new), signatures=signatures)
            _describe(new / EXTRA, model, preprocessing)
        _verify(new, model, heads, preprocessing, batch_size or 2)
    return directory


def _replaceable(directory):
    return directory.is_dir() and (
        (directory / "saved_model.pb").exists() or not any(directory.iterdir())
    )


def _heads(model, preprocessing, attention):
    """What the file computes from prepared images: names, and functions that give dicts."""
    name = common.output_name(model, preprocessing)
    heads = {"__call__": lambda x: {name: common.finish(model(x, training=False), name)}}
    if isinstance(model, ImageClassifier):
        features = _features(model)
        heads["features"] = lambda x: {"features": features(x, training=False)}
    if attention:
        maps = explain.scorer(model)
        names = [block.name for block in explain.chosen_blocks(model, None)]
        heads["attention"] = lambda x: dict(zip(names, maps(x), strict=True))
    return heads


def _features(model):
    """The model that `num_classes=0` would be: prepared images to `(B, D)` float32."""
    heads = [layer for layer in model.layers if layer.name in HEADS]
    read = [head.input for head in heads] or [model.output]
    read = [keras.ops.cast(x, "float32") for x in read]
    return keras.Model(model.input, sum(read[1:], read[0]) * (1 / len(read)))  # DeiT has two heads


def _module(model, heads, preprocessing, batch_size):
    """A `tf.Module` of variables and functions, with nothing of Keras in it, and its signatures."""
    import tensorflow as tf

    converter = common.converter(model) if preprocessing else None
    channels = model.inputs[0].shape[-1]
    size = converter.image_size if preprocessing else model.inputs[0].shape[1:3]
    inputs = tf.TensorSpec((batch_size, *size, channels), "float32", name=common.PREPARED)
    if preprocessing:
        images = (batch_size, None, None, channels)
        specs = [tf.TensorSpec(images, t, name=common.RAW) for t in ("uint8", "float32")]
        # Traced once: all that call it share its graph. So it is with each head.
        prepare = {spec.dtype: _traced(converter, spec) for spec in specs}
    module, signatures = tf.Module(), {}
    for name, head in heads.items():
        signature = "serving_default" if name == "__call__" else name
        core = _traced(head, inputs)
        if not preprocessing:
            function = tf.function(core, input_signature=[inputs], autograph=False)
            signatures[signature] = function.get_concrete_function()
        else:
            function = _after(prepare, core)
            signatures[signature], of_floats = map(function.get_concrete_function, specs)
        setattr(module, name, function)
        if name == "__call__" and preprocessing:
            signatures["serve_float"] = of_floats
            if channels in decode.CHANNELS:
                module.serve_bytes = _of_files(converter, core, (batch_size,), inputs.shape[1:])
                signatures["serve_bytes"] = module.serve_bytes.get_concrete_function()
    every = [variable for trace in signatures.values() for variable in trace.variables]
    module.weights = list({id(variable): variable for variable in every}.values())
    return module, signatures


def _traced(function, spec):
    import tensorflow as tf

    return tf.function(function, input_signature=[spec], autograph=False).get_concrete_function()


def _after(prepare, core):
    import tensorflow as tf

    return tf.function(lambda images: core(prepare[images.dtype](images)), autograph=False)


def _of_files(converter, core, strings, image):
    """`core` on the bytes of picture files: each is cut to the model's size by itself."""
    import tensorflow as tf

    def prepared(content):
        pixels = converter.pixels(decode.pixels(content, image[-1]))
        return tf.ensure_shape(pixels, image)

    def call(image_bytes):
        image_spec = tf.TensorSpec(image, "float32")
        pixels = tf.map_fn(prepared, image_bytes, fn_output_signature=image_spec)
        return core(converter.normalize(pixels))

    spec = tf.TensorSpec(strings, "string", name=FILES)
    return tf.function(call, input_signature=[spec], autograph=False)


def _describe(folder, model, preprocessing):
    """Where the model comes from, and the names of its classes, beside it."""
    folder.mkdir()
    preset = {**metadata.about(model), "preprocessing": preprocessing}
    (folder / metadata.PRESET).write_text(json.dumps(preset, indent=2) + "\n", "utf-8")
    labels = metadata.class_names(model)
    if labels:
        lines = "".join(f"{label}\n" for label in labels)
        (folder / metadata.LABELS).write_text(lines, "utf-8")


def _verify(directory, model, heads, preprocessing, count):
    import tensorflow as tf

    height, width, channels = common.input_shape(model)
    if preprocessing:  # of another size than the model's
        images = common.samples(count, height + height // 3, width + 7, channels)
        inputs = common.converter(model)(images)
    else:
        images = common.samples(count, height, width, channels).astype("float32") / 127.5 - 1
        inputs = images
    loaded = tf.saved_model.load(str(directory))
    expected = {name: head(tf.constant(inputs)) for name, head in heads.items()}
    found = {name: getattr(loaded, name)(tf.constant(images)) for name in heads}
    if "serve_bytes" in loaded.signatures:
        expected["serve_bytes"] = expected["__call__"]
        found["serve_bytes"] = loaded.serve_bytes(tf.constant([_png(image) for image in images]))
    single = all(layer.compute_dtype == "float32" for layer in model.layers)
    int8 = any(layer.quantization_mode == "int8" for layer in model._flatten_layers())
    tolerance = HALF_TOLERANCE if not single else INT8_TOLERANCE if int8 else TOLERANCE
    for function, outputs in expected.items():
        for name, values in outputs.items():
            kind = name if name in common.OUTPUTS else "features"
            pair = (np.asarray(values), found[function][name].numpy())
            common.check_outputs(*pair, kind, tolerance, "The SavedModel")


def _png(image):
    """The bytes of a PNG file with the pixels `(H, W, 1 | 3)`."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()

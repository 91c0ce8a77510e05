"""SavedModel: for TensorFlow Serving and other programs that have TensorFlow but not Keras."""

import io
import json
import pathlib
import shutil

import keras
import numpy as np
from PIL import Image

from keras_vit import atomic, explain
from keras_vit.export import common, decode, metadata, variants
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Path, Size

# The relative error (root mean square) of the outputs above which a file is rejected: a pixel
# halfway between two levels may be rounded either way, and so may most sums in half precision.
TOLERANCE, HALF_TOLERANCE = 0.02, 0.25
FILES = "image_bytes"  # the name of an input that takes the contents of image files
EXTRA = "assets.extra"  # the subdirectory that TensorFlow leaves to other programs


def to_saved_model(
    model: keras.Model,
    directory: Path,
    preprocessing: bool = True,
    batch_size: int | None = None,
    attention: bool = False,
    image_size: Size | None = None,
) -> pathlib.Path:
    """Write a model as a SavedModel.

    It stores the weights once and has these signatures, each of which returns a dict:

    - `serving_default`: `images`, uint8, of any size, `(B, height, width, C)` -> `probabilities`,
      `(B, num_classes)` float32. Resize, crop and normalisation are those of
      `model.preprocessor`.
    - `serve_float`: the same for float32 in 0..255.
    - `serve_bytes`: `image_bytes`, `(B,)` strings, the contents of JPEG, PNG, GIF, BMP or WebP
      files of any size -> the same. They are decoded as PIL does: rotated upright, grey to colour,
      alpha dropped. (Only for models with 1 or 3 channels.)
    - `features`: `images` as in `serving_default` -> `features`, `(B, D)` float32: the input of
      the head, which is the output with `num_classes=0`.
    - `attention`, on request: `images` -> for each block by its name, `blocks_0` ..., its map
      `(B, heads, N, M)` float32, as from `keras_vit.explain.attention_maps`.

    `tf.saved_model.load(directory)` returns an object that can be called on images, uint8 or
    float32, and has the methods `serve_bytes`, `features` and `attention`. It needs neither Keras
    nor this package. The subdirectory `assets.extra` contains labels.txt, the class names, and
    preset.json, the source and preprocessing values.

    Without preprocessing the input is `inputs`, preprocessed floats `(B, height, width, C)`, and
    the output `logits`; `serve_float` and `serve_bytes` are left out. A model without a head
    (`num_classes=0`) gives `features` instead of probabilities and logits.

    Args:
        model: a built classifier, on the TensorFlow backend.
        directory: where to write. The files of a SavedModel that this package wrote there are
            replaced once the new ones are verified; others stay.
        preprocessing: whether the file takes raw images and returns probabilities.
        batch_size: a fixed number of images; None: any number.
        attention: whether to add the signature for attention maps.
        image_size: int or (height, width) to which images are resized, in pixels; None: the
            model's. Positions are resampled as `from_preset` does.

    Returns:
        The directory, a `pathlib.Path`.

    Raises:
        ValueError: a model that is not built or has no preprocessor; `attention` for a model
            without attention blocks; a directory with other files and no SavedModel of this
            package.
        RuntimeError: another backend; or the file does not compute what the model does.
        OSError: the directory cannot be written.
    """
    common.check_exportable(model, preprocessing)
    common.check_batch_size(batch_size)
    directory = pathlib.Path(directory)
    check_directory(directory)
    import tensorflow as tf

    model = variants.at_size(model, image_size)
    heads = _heads(model, preprocessing, attention)
    with atomic.replacing(directory) as new:
        module, signatures = _module(model, heads, preprocessing, batch_size)
        with common.disk_errors(f"The SavedModel {str(directory)!r}"):
            tf.saved_model.save(module, str(new), signatures=signatures)
            _describe(new / EXTRA, model, preprocessing)
            _keep(directory / EXTRA, new / EXTRA)
        _verify(new, model, heads, preprocessing, batch_size)
    return directory


def check_directory(directory: pathlib.Path) -> None:
    """Raise an error unless it is new, empty, or a SavedModel of this package."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"{str(directory)!r} is a file; a SavedModel is a directory.")
    entries = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    if entries <= {"lost+found"}:  # a mounted disk has it
        return
    try:
        about = json.loads((directory / EXTRA / metadata.PRESET).read_text("utf-8"))
        own = "saved_model.pb" in entries and "keras_vit" in about
    except (OSError, ValueError, TypeError):
        own = False
    if not own:
        raise ValueError(
            f"{str(directory)!r} exists and is not a SavedModel that this package wrote, so it is "
            "not replaced. Choose another directory."
        )


def _heads(model, preprocessing, attention):
    """The functions of the file, by name: each maps preprocessed images to a dict."""
    name = common.output_name(model, preprocessing)
    act = common.activation(model)
    heads = {"__call__": lambda x: {name: common.finish(model(x, training=False), name, act)}}
    if isinstance(model, ImageClassifier):
        features = _features(model)
        heads["features"] = lambda x: {"features": features(x, training=False)}
    if attention:
        maps = explain.scorer(model)
        names = [block.name for block in explain.chosen_blocks(model, None)]
        heads["attention"] = lambda x: dict(zip(names, maps(x), strict=True))
    return heads


def _features(model):
    """The model without its head, as with `num_classes=0`: images to `(B, D)` float32."""
    read = [head.input for head in model.heads] or [model.output]
    read = [keras.ops.cast(x, "float32") for x in read]
    return keras.Model(model.input, sum(read[1:], read[0]) * (1 / len(read)))


def _module(model, heads, preprocessing, batch_size):
    """A `tf.Module` of variables and functions, independent of Keras, and its signatures."""
    import tensorflow as tf

    converter = common.converter(model) if preprocessing else None
    channels = model.inputs[0].shape[-1]
    size = converter.image_size if preprocessing else model.inputs[0].shape[1:3]
    inputs = tf.TensorSpec((batch_size, *size, channels), "float32", name=common.NORMALIZED)
    if preprocessing:
        images = (batch_size, None, None, channels)
        specs = [tf.TensorSpec(images, t, name=common.PIXELS) for t in ("uint8", "float32")]
        # Traced once: all callers share its graph. The same holds for each head.
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
    """`core` on the contents of image files, each resized and cropped by itself."""
    import tensorflow as tf

    def prepared(content):
        pixels = converter.pixels(decode.pixels(content, image[-1]))
        return tf.ensure_shape(pixels, image)

    def call(image_bytes):
        image_spec = tf.TensorSpec(image, "float32")
        pixels = tf.map_fn(prepared, image_bytes, fn_output_signature=image_spec)
        return core(converter.normalize(pixels))

    spec = tf.TensorSpec(strings, "string", name=FILES)
    # TensorFlow traces what it saves once more: this function is only a call of the graph.
    return tf.function(_traced(call, spec), input_signature=[spec], autograph=False)


def _describe(folder, model, preprocessing):
    """Write preset.json and labels.txt."""
    folder.mkdir()
    preset = {**metadata.about(model), "preprocessing": preprocessing}
    (folder / metadata.PRESET).write_text(json.dumps(preset, indent=2) + "\n", "utf-8")
    labels = metadata.class_names(model)
    if labels:
        lines = "".join(f"{label}\n" for label in labels)
        (folder / metadata.LABELS).write_text(lines, "utf-8")


def _keep(old, new):
    """Copy what others put beside our files, such as TensorFlow Serving's warm-up requests."""
    for path in old.iterdir() if old.is_dir() else ():
        if path.name not in (metadata.PRESET, metadata.LABELS):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, new / path.name)


def _verify(directory, model, heads, preprocessing, batch_size):
    import tensorflow as tf

    count, (height, width, channels) = common.sample_count(batch_size), common.input_shape(model)
    if preprocessing:  # another size than the model's, so they are resized
        images = common.samples(count, height + height // 3, width + 7, channels)
        inputs = common.converter(model)(images)
    else:
        images = common.samples(count, height, width, channels).astype("float32") / 127.5 - 1
        inputs = images
    loaded = tf.saved_model.load(str(directory))
    expected = {name: head(tf.constant(inputs)) for name, head in heads.items()}
    runs = {name: (getattr(loaded, name), images) for name in heads}
    if "serve_bytes" in loaded.signatures:
        expected["serve_bytes"] = expected["__call__"]
        runs["serve_bytes"] = loaded.serve_bytes, np.array([_png(image) for image in images])
    found = {name: _in_batches(*run, batch_size or count) for name, run in runs.items()}
    single = all(layer.compute_dtype == "float32" for layer in model.layers)
    tolerance = common.tolerance(model, TOLERANCE) if single else HALF_TOLERANCE
    what, images = "The SavedModel", f"{count} generated test images"
    act, errors = common.activation(model), []
    for function, outputs in expected.items():
        for name, values in outputs.items():
            kind = name if name in common.OUTPUTS else "features"
            pair = np.asarray(values), found[function][name]
            errors.append(common.check_outputs(*pair, kind, act, tolerance, what, images))
    common.log_check(what, images, "outputs", max(errors), tolerance)


def _in_batches(function, inputs, size):
    """{name of an output: its values for all inputs}"""
    import tensorflow as tf

    parts = [inputs[start : start + size] for start in range(0, len(inputs), size)]
    outputs = [function(tf.constant(part)) for part in parts]
    return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}


def _png(image):
    """Pixels `(H, W, 1 | 3)` as the contents of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()

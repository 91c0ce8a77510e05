"""What is made of logits: one rule for classify, predictions and files."""

import functools
import json

import keras
import numpy as np
import pytest
from keras import losses
from tiny_models import classifier, pictures, softmax

import keras_vit
from keras_vit import export
from keras_vit.export import metadata
from keras_vit.models import activation

SIGMOID, SOFTMAX = "sigmoid", "softmax"


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {SIGMOID: sigmoid, SOFTMAX: softmax, None: lambda x: x}
BACKEND = keras.backend.backend()


@pytest.mark.parametrize(
    ("given", "classes", "expected"),
    [
        ("auto", 7, SOFTMAX),
        ("auto", 1, SIGMOID),
        ("auto", 0, None),
        (SOFTMAX, 0, None),
        (SIGMOID, 7, SIGMOID),
        (None, 1, None),
        ("linear", 1, None),
    ],
)
def test_activation_by_the_number_of_classes(given, classes, expected):
    assert classifier(num_classes=classes, head_activation=given).activation == expected


@pytest.mark.parametrize(("given", "classes"), [("relu", 7), (SOFTMAX, 1)])
def test_an_activation_that_makes_no_sense(given, classes):
    with pytest.raises(ValueError, match=given):
        classifier(num_classes=classes, head_activation=given)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (losses.SparseCategoricalCrossentropy(from_logits=True), SOFTMAX),
        (losses.CategoricalCrossentropy(from_logits=True), SOFTMAX),
        (losses.CategoricalFocalCrossentropy(from_logits=True), SOFTMAX),
        (losses.BinaryCrossentropy(from_logits=True), SIGMOID),
        (losses.BinaryFocalCrossentropy(from_logits=True), SIGMOID),
        ("mse", None),
        ("mean_absolute_error", None),
        (losses.Huber(), None),
        (losses.LogCosh(), None),
        (losses.mean_squared_error, None),
        (lambda y, x: keras.ops.mean(x), SOFTMAX),  # says nothing: as it was
        (functools.partial(losses.mean_squared_error), SOFTMAX),
        (None, SOFTMAX),
        ("auto", SOFTMAX),
    ],
)
def test_compile_takes_it_from_the_loss(loss, expected):
    model = classifier()
    model.compile("sgd", loss)
    assert model.activation == expected


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        losses.SparseCategoricalCrossentropy(),
        losses.sparse_categorical_crossentropy,
        "binary_crossentropy",
        losses.BinaryCrossentropy(),
        losses.KLDivergence(),
    ],
)
def test_a_loss_of_probabilities_is_warned_of(loss):
    with pytest.warns(UserWarning, match="from_logits=True"):
        classifier().compile("sgd", loss)


@pytest.mark.parametrize(
    ("classes", "given", "labels", "loss"),
    [
        (7, "auto", np.arange(3), "sparse_categorical_crossentropy"),
        (7, SIGMOID, np.eye(3, 7), "binary_crossentropy"),
        (1, "auto", np.ones((3, 1)), "binary_crossentropy"),
        (1, None, np.ones((3, 1)), "mean_squared_error"),
    ],
)
def test_the_loss_by_default_is_that_of_the_activation(classes, given, labels, loss):
    model = classifier(num_classes=classes, head_activation=given)
    model.compile()
    logits = model.predict(pictures(), verbose=0)
    outputs = FUNCTIONS[model.activation](logits.astype("float64"))
    expected = np.mean(getattr(losses, loss)(labels, outputs))
    assert model.evaluate(pictures(), labels, verbose=0)[0] == pytest.approx(expected, rel=1e-4)


def through_keras_file(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def through_preset(model, folder):
    model.save_to_preset(folder / "preset")
    return keras_vit.from_preset(folder / "preset")


def through_a_changed_copy(model, folder):
    model.save_to_preset(folder / "preset")
    return keras_vit.from_preset(folder / "preset", drop_rate=0.1)


def through_transformers(model, folder):
    model.save_to_transformers(folder / "transformers")
    return keras_vit.from_preset(folder / "transformers")


WAYS = [through_keras_file, through_preset, through_a_changed_copy, through_transformers]


@pytest.mark.parametrize("through", WAYS)
@pytest.mark.parametrize("given", [SIGMOID, None])
def test_it_is_saved_with_the_model(given, through, tmp_path):
    model = classifier(head_activation=given)
    copy = through(model, tmp_path)
    assert copy.activation == given
    if through is not through_transformers:  # which names classes that have no names
        assert copy.classify(pictures(), top=7) == model.classify(pictures(), top=7)


def test_a_fresh_head_has_its_own(tmp_path):
    classifier(head_activation=SIGMOID).save_to_preset(tmp_path)
    assert keras_vit.from_preset(tmp_path, num_classes=3).activation == SOFTMAX


CASES = [(7, SOFTMAX), (7, SIGMOID), (1, SIGMOID), (7, None), (1, None)]


@pytest.mark.parametrize(("classes", "given"), CASES)
def test_classify_gives_what_the_activation_makes(classes, given):
    names = [f"name {i}" for i in range(classes)]
    model = classifier(num_classes=classes, head_activation=given, labels=names)
    expected = FUNCTIONS[given](model.predict(pictures(), verbose=0))
    found = model.classify(pictures(), top=classes)
    for row, pairs in zip(expected, found, strict=True):
        assert [name for name, _ in pairs] == [names[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([p for _, p in pairs], np.sort(row)[::-1], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports need TensorFlow")
@pytest.mark.parametrize(("classes", "given"), [(1, SIGMOID), (7, None)])
@pytest.mark.parametrize("kind", ["tflite", "onnx", "saved_model"])
def test_files_compute_the_same(kind, classes, given, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("tf2onnx")
    model = classifier(num_classes=classes, head_activation=given)
    path = tmp_path / {"tflite": "m.tflite", "onnx": "m.onnx", "saved_model": "m"}[kind]
    getattr(export, f"to_{kind}")(model, path)
    x = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), "uint8")
    expected = FUNCTIONS[given](model.predict(x, verbose=0))
    found = export.compare(path, model, x, labels=None if given is None else [0])
    assert found.output == ("logits" if given is None else "probabilities")
    assert found.largest_difference < 1e-5
    assert (found.agreement is None) == (given is None)
    if kind == "tflite":
        read = metadata.read_metadata(path)
        assert read["preset"]["activation"] == given
        runner = _interpreter(path)  # which does not resize and crop
        logits = model(model.preprocessor.image_converter.normalize(x))
        expected = FUNCTIONS[given](keras.ops.convert_to_numpy(logits))
        np.testing.assert_allclose(runner(images=x)[found.output], expected, atol=1e-5)
    if kind == "saved_model":
        import tensorflow as tf

        about = json.loads((path / "assets.extra" / "preset.json").read_text())
        assert about["activation"] == given
        served = tf.saved_model.load(str(path)).signatures["serving_default"]
        outputs = served(images=tf.constant(x))[found.output]
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


def _interpreter(path):
    import tensorflow as tf

    return tf.lite.Interpreter(str(path)).get_signature_runner()


def test_no_overflow():
    logits = np.array([[-1e4, 0.0, 1e4]], "float32")
    np.testing.assert_array_equal(activation.apply(logits, SIGMOID), [[0, 0.5, 1]])
    np.testing.assert_array_equal(activation.apply(logits, SOFTMAX), [[0, 0, 1]])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TFLite")
@pytest.mark.parametrize("preprocessing", [True, False])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", None])
def test_a_file_classifies_by_the_models_activation(kind, preprocessing, tmp_path):
    model = classifier(num_classes=3, head_activation=kind)
    path = export.to_tflite(model, tmp_path / "m.tflite", preprocessing=preprocessing)
    images = pictures()[:4]
    found = export.FileClassifier(path).predict(list(images))
    wanted = activation.apply(model.predict(images, verbose=0), kind)
    np.testing.assert_allclose(found, wanted, atol=1e-4)

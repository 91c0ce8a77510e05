"""`predict(constant_weights=True)`: the values of the model, whatever has changed its weights."""

import gc
import weakref

import keras
import numpy as np
import pytest
from tiny_models import FAMILIES, classifier, pictures

import keras_vit
from keras_vit.models import constant_weights

tensorflow = keras.backend.backend() == "tensorflow"
pytestmark = pytest.mark.skipif(not tensorflow, reason="a graph of TensorFlow")
X = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), "uint8")
Y = np.arange(6) % 7


def predict(model, x=X, **options):
    return model.predict(x, verbose=0, constant_weights=True, **options)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, "float32") for family in FAMILIES),
        *((family, "mixed_bfloat16") for family in ("ViT", "EVA", "Swin", "CoAtNet", "ConvNeXt")),
    ],
)
def test_the_values_are_those_of_predict(family, dtype):
    model = classifier(**FAMILIES[family], dtype=dtype)
    pair = predict(model, pictures()), model.predict(pictures(), verbose=0)
    scale = np.abs(pair[1]).max()
    np.testing.assert_allclose(*pair, atol=scale * (1e-5 if dtype == "float32" else 0.05))


@pytest.fixture
def model():
    made = classifier()
    made.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    return made


def by_a_loop_of_your_own(model, folder):
    import tensorflow as tf

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x) ** 2)
        weights = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, weights), weights)

    step(model.preprocessor.image_converter(X))


def by_a_file(model, folder):
    before = model.get_weights()
    model.set_weights([w + 0.1 for w in before])
    model.save_weights(folder / "a.weights.h5")
    model.set_weights(before)
    predict(model)
    model.load_weights(folder / "a.weights.h5")


CHANGES = {
    "set_weights": lambda m, _: m.set_weights([w + 0.1 for w in m.get_weights()]),
    "assign to one": lambda m, _: m.heads[0].bias.assign(np.arange(7)),
    "a part of one": lambda m, _: m.heads[0].bias.value[2:3].assign([9.0]),
    "fit": lambda m, _: m.fit(X, Y, verbose=0),
    "train_on_batch": lambda m, _: keras.Model.train_on_batch(m, X.astype("float32") / 255, Y),
    "a loop of your own": by_a_loop_of_your_own,
    "load_weights": by_a_file,
    "LoRA": lambda m, _: (m.backbone.enable_lora(2), m.fit(X, Y, verbose=0)),
    "quantize": lambda m, _: m.quantize("int8"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_new_weights_give_new_values(model, tmp_path, change):
    before = predict(model)
    CHANGES[change](model, tmp_path)
    after = predict(model)
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_allclose(after, model.predict(X, verbose=0), atol=1e-5)


def test_a_callback_of_fit_sees_each_epoch(model):
    found = []

    def end(epoch, logs):
        found.append(predict(model))
        np.testing.assert_allclose(found[-1], model.predict(X, verbose=0), atol=1e-5)

    model.fit(X, Y, epochs=3, verbose=0, callbacks=keras.callbacks.LambdaCallback(on_epoch_end=end))
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(found, found[1:], strict=False))


def test_the_graph_is_kept_while_the_weights_stay(model):
    predict(model)
    graph = model.constant_weights
    model.set_weights(model.get_weights())  # equal values in other memory
    for _ in range(2):
        predict(model, X[:5], batch_size=2)
        assert model.constant_weights is graph
    assert len(graph.step._list_all_concrete_functions()) == 1  # for batches of all sizes


def test_predict_without_it_reads_the_variables(model):
    predict(model)
    model.heads[0].bias.assign(np.arange(7))
    np.testing.assert_allclose(model.predict(X, verbose=0), predict(model), atol=1e-5)


def shifted(model):
    """Plain `predict` after a change; the model's own values."""
    model.heads[0].bias.assign_add(np.full(7, 100))
    x = model.preprocessor.image_converter(X)
    return model.predict(X, verbose=0), keras.ops.convert_to_numpy(model(x))


def in_a_callback(model):
    found = []

    def end(batch, logs):
        found.extend([*shifted(model), model.predict_on_batch(X)])

    predict(model, callbacks=[keras.callbacks.LambdaCallback(on_predict_batch_end=end)])
    np.testing.assert_allclose(found[2], found[1], rtol=1e-5)
    return found[:2]


def in_a_generator(model):
    found = []

    def batches():
        found.extend(shifted(model))
        while True:
            yield X

    predict(model, batches(), steps=1)
    return found


def in_a_thread(model):
    import concurrent.futures

    found = []

    def end(batch, logs):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            found.extend(pool.submit(shifted, model).result())

    predict(model, callbacks=[keras.callbacks.LambdaCallback(on_predict_batch_end=end)])
    return found


@pytest.mark.parametrize("place", [in_a_callback, in_a_generator, in_a_thread])
def test_predict_in_the_midst_of_one_with_constants(place, model):
    np.testing.assert_allclose(*place(model), rtol=1e-5)
    assert type(model.predict_function).__name__ == "Function"  # TensorFlow's


def test_compile_makes_a_new_graph(model):
    predict(model)
    for layer in model.backbone._flatten_layers():
        if isinstance(layer, keras.layers.LayerNormalization):
            layer.epsilon = 10.0
    model.compile()
    np.testing.assert_allclose(predict(model), model.predict(X, verbose=0), atol=1e-5)


def test_the_arguments_are_those_of_keras(model):
    import inspect

    own = inspect.signature(type(model).predict).parameters
    theirs = inspect.signature(keras.Model.predict).parameters
    assert list(own)[: len(theirs)] == list(theirs)
    assert own["constant_weights"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_variables_keep_their_values_and_their_type():
    model = classifier(dtype="bfloat16")
    before = model.get_weights()
    predict(model)
    after = model.get_weights()
    assert all(a.dtype == b.dtype for a, b in zip(before, after, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_several_batches_a_call(model):
    model.compile(steps_per_execution=2, jit_compile=False)
    np.testing.assert_allclose(
        predict(model, X[:5], batch_size=1), model.predict(X[:5], verbose=0), atol=1e-5
    )


def test_a_model_without_preprocessor():
    model = classifier(preprocessed=False)
    np.testing.assert_allclose(predict(model), model.predict(X, verbose=0), rtol=1e-5)


def test_former_graphs_are_freed(model):
    former = []
    for i in range(3):
        model.heads[0].bias.assign(np.full(7, i))
        predict(model)
        former.append(weakref.ref(model.constant_weights))
    assert [graph() is not None for graph in former] == [False, False, True]
    model.fit(X, Y, verbose=0)
    gc.collect()
    assert former[-1]() is None


MEMORY = """
import gc, sys
import keras_vit
sys.path.insert(0, "tests")
from test_constant_weights import X, predict
from tiny_models import classifier
model = classifier(num_classes=40_000, depth=1, class_token=False, pooling='avg')  # 8 MB
used = []
for i in range(25):
    model.heads[0].bias.assign_add(model.heads[0].bias * 0 + 1)
    predict(model)
    status = open("/proc/self/status").read()
    used.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
print(used[4], used[24])
"""


def test_memory_after_20_graphs():
    import pathlib
    import subprocess
    import sys

    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("no /proc: the memory of a process is read there")
    run = [sys.executable, "-c", MEMORY]
    root = pathlib.Path(__file__).parents[1]
    text = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True).stdout
    first, last = map(float, text.split())
    assert last - first < 5 * 8, text  # 20 graphs would be 160 MB and more


def test_what_cannot_be(model, monkeypatch):
    monkeypatch.setattr(constant_weights, "LIMIT", 1000)
    with pytest.raises(ValueError, match="at most 2 GB of weights"):
        predict(model)
    monkeypatch.undo()
    model.compile(run_eagerly=True)
    with pytest.raises(RuntimeError, match="run_eagerly"):
        predict(model)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
        with constant_weights.weights_in_graph(model, True):
            pass


def test_threads_that_predict_at_once(model):
    import concurrent.futures

    expected = model.predict(X, verbose=0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        ways = [pool.submit(model.predict, X, verbose=0, constant_weights=i % 2) for i in range(8)]
        for way in ways:
            np.testing.assert_allclose(way.result(), expected, atol=1e-5)
    model.heads[0].bias.assign(np.arange(7))
    assert np.abs(model.predict(X, verbose=0) - expected).max() > 1e-4


def test_the_real_model(deit_tiny, photographs):
    model = keras_vit.from_preset(deit_tiny, dtype="mixed_bfloat16")
    paths = photographs[0][:8]
    constant, plain = predict(model, paths), model.predict(paths, verbose=0)
    assert (constant.argmax(-1) == plain.argmax(-1)).all()
    assert np.abs(constant - plain).max() < 0.15

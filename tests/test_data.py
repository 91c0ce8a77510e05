"""fit, evaluate and predict: what goes in, in which order, and what a resumed run ends with."""

import gc
import time

import keras
import numpy as np
import pytest

from keras_vit import ViT, ViTBackbone, arrays, data
from keras_vit.images import ImageConverter, ImagePreprocessor

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 20, 24, 3), dtype="uint8")
CLASSES = RNG.integers(0, 4, 20)


def classifier(seed=0, **options):
    keras.utils.set_random_seed(seed)
    backbone = ViTBackbone(
        image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, **options
    )
    model = ViT(backbone, 4, ImagePreprocessor(ImageConverter(16)), drop_rate=0.1)
    # run_eagerly: seconds of compilation for milliseconds of work
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, run_eagerly=True)
    return model


def prepare(*batch):
    return batch


def rows(batches):
    return np.concatenate([batches[i][0] for i in range(len(batches))])


def test_every_epoch_sees_all_images_once_in_another_order():
    batches = data.batches(prepare, np.arange(50), np.arange(50), batch_size=8, shuffle=True)
    first = rows(batches)
    batches.epoch = 1
    second = rows(batches)
    batches.epoch = 0
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) != list(second) != list(range(50))
    assert list(rows(batches)) == list(first)


def test_order_follows_from_the_seed():
    one, two, other = (
        rows(data.batches(prepare, np.arange(50), shuffle=True, seed=seed)) for seed in (1, 1, 2)
    )
    assert list(one) == list(two) != list(other)


def test_labels_and_weights_stay_with_their_image():
    batches = data.batches(prepare, np.arange(50), np.arange(50) * 2, np.arange(50) * 3, 7, True)
    for i in range(len(batches)):
        x, y, weight = batches[i]
        assert (y == 2 * x).all() and (weight == 3 * x).all()


class Seen(keras.callbacks.Callback):
    """Counts the batches of an epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.batches = {"training": 0, "validation": 0}

    def on_train_batch_end(self, batch, logs=None):
        self.batches["training"] += 1

    def on_test_batch_end(self, batch, logs=None):
        self.batches["validation"] += 1


def test_fit_shuffles_arrays():
    model, seen = classifier(), []
    preprocessor = model.preprocessor
    model.preprocessor = lambda x: (seen.append(np.asarray(x)[:, 0, 0, 0]), preprocessor(x))[1]
    model.fit(IMAGES, CLASSES, batch_size=20, epochs=2, verbose=0)
    orders = {tuple(x) for x in seen}
    assert len(orders) >= 2 and all(sorted(o) == sorted(IMAGES[:, 0, 0, 0]) for o in orders)


class Batches(keras.utils.PyDataset):
    """All images and classes, or what takes their place, in batches of 8."""

    def __init__(self, images=IMAGES, classes=CLASSES):
        super().__init__()
        self.arrays = images, classes

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tuple(a[index * 8 : index * 8 + 8] for a in self.arrays)


class Rows:
    """(image, class) pairs, as torch's and grain's loaders take them."""

    def __init__(self, images, classes):
        self.arrays = images, classes

    def __len__(self):
        return len(self.arrays[0])

    def __getitem__(self, index):
        return tuple(a[index] for a in self.arrays)


def of_tf(images, classes):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((images, classes)).batch(8)


def of_torch(images, classes):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(Rows(images, classes), batch_size=8)


def of_torch_stream(images, classes):
    """One without a length."""
    torch = pytest.importorskip("torch")

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(x, y) for x, y in zip(images, classes, strict=True)])

    return torch.utils.data.DataLoader(Stream(), batch_size=8)


def of_grain(images, classes):
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(Rows(images, classes)).batch(8)


def of_grain_stream(images, classes):
    return of_grain(images, classes).to_iter_dataset()


def of_grain_loader(images, classes):
    grain = pytest.importorskip("grain")
    sampler = grain.samplers.SequentialSampler(len(images), grain.sharding.NoSharding())
    return grain.DataLoader(
        data_source=Rows(images, classes),
        sampler=sampler,
        operations=[grain.transforms.Batch(8)],
    )


def of_generator(images, classes):
    return (batch for _ in range(9) for batch in [Batches(images, classes)[i] for i in range(3)])


KINDS = {  # what contains batches
    "tf.data": of_tf,
    "PyDataset": Batches,
    "DataLoader of torch": of_torch,
    "DataLoader of torch without a length": of_torch_stream,
    "MapDataset": of_grain,
    "IterDataset": of_grain_stream,
    "DataLoader of grain": of_grain_loader,
    "generator": of_generator,
}
PAIRS = [(kind, "arrays") for kind in KINDS] + [("arrays", kind) for kind in KINDS]
PAIRS += [("tf.data", "PyDataset"), ("PyDataset", "tf.data"), ("MapDataset", "MapDataset")]
PAIRS += [("list", "list"), ("list", "DataLoader of torch"), ("generator", "generator")]


def given(kind, images=IMAGES, classes=CLASSES):
    """Training or validation data as an argument: (x, y), or what contains both."""
    if kind == "list":  # of images of different sizes
        return [image[: 10 + i % 5] for i, image in enumerate(images)], list(classes)
    return (images, classes) if kind == "arrays" else KINDS[kind](images, classes)


# Keras says so of each dataset whose length it is not told, finite ones, too.
ENDS = pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")


@ENDS
@pytest.mark.parametrize("training, validation", PAIRS)
def test_fit_takes_training_and_validation_data_of_any_kind(training, validation):
    steps = {"steps_per_epoch": 3} if training == "generator" else {}
    steps |= {"validation_steps": 3} if validation == "generator" else {}
    data = given(training)
    x, y = data if isinstance(data, tuple) else (data, None)
    seen = Seen()
    history = classifier().fit(
        x,
        y,
        batch_size=5,  # of arrays
        validation_data=given(validation),
        verbose=0,
        callbacks=seen,
        **steps,
    )
    assert np.isfinite([history.history[name] for name in ("loss", "val_loss")]).all()
    arrays = {"arrays", "list"}
    assert seen.batches == {
        "training": 4 if training in arrays else 3,
        "validation": 4 if validation in arrays else 3,
    }


@ENDS
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data")
@pytest.mark.parametrize("kind", ["arrays", "list", *KINDS])
def test_tf_data_does_not_wait_for_its_autotuning(kind, monkeypatch):
    import tensorflow as tf

    seen = []
    distribute = tf.distribute.Strategy.experimental_distribute_dataset

    def spy(self, dataset, options=None):
        seen.append(dataset.options().autotune.enabled)
        return distribute(self, dataset, options)

    monkeypatch.setattr(tf.distribute.Strategy, "experimental_distribute_dataset", spy)
    model = classifier()
    data, steps = given(kind), {"steps_per_epoch": 2} if kind == "generator" else {}
    fit = data if kind in ("arrays", "list") else (data,)
    model.fit(*fit, validation_data=given("arrays"), verbose=0, **steps)
    steps = {"steps": 2} if steps else {}
    fit = given(kind) if len(fit) == 2 else (given(kind),)
    model.evaluate(*fit, verbose=0, **steps)
    model.predict(fit[0], verbose=0, **steps)
    assert seen == [False] * 4


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data")
def test_autotuning_that_the_user_asked_for_stays():
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = True
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, CLASSES)).batch(4).with_options(options)
    fed = data.feed(data.batches(None, dataset)).get_tf_dataset()
    assert fed.options().autotune.enabled


@ENDS
@pytest.mark.parametrize("kind", [*KINDS, "list"])
def test_evaluate_and_predict_take_data_of_any_kind(kind):
    model = classifier()
    images = [image[: 10 + i % 5] for i, image in enumerate(IMAGES)] if kind == "list" else IMAGES
    steps = {"steps": 3} if kind == "generator" else {}
    wanted = model.predict(images, verbose=0)
    loss = model.evaluate(images, CLASSES, batch_size=8, verbose=0)
    data = given(kind)
    x, y = data if isinstance(data, tuple) else (data, None)
    assert model.evaluate(x, y, batch_size=8, verbose=0, **steps) == pytest.approx(loss, abs=1e-5)
    found = model.predict(given(kind)[0] if kind == "list" else given(kind), verbose=0, **steps)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_validation_batch_size_counts():
    seen = Seen()
    options = {"batch_size": 10, "validation_batch_size": 5, "verbose": 0, "callbacks": seen}
    model = classifier()
    model.fit(IMAGES, CLASSES, validation_data=(IMAGES, CLASSES), **options)
    assert seen.batches == {"training": 2, "validation": 4}
    model.fit(IMAGES, CLASSES, validation_split=0.5, **options)
    assert seen.batches == {"training": 1, "validation": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_validation_split_of_what_contains_batches(kind):
    message = "takes the last part of arrays or lists. Received: a .* pass validation_data"
    with pytest.raises(ValueError, match=message):
        classifier().fit(given(kind), validation_split=0.2, verbose=0)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_beside_what_contains_them(kind):
    for options in ({"y": CLASSES}, {"sample_weight": CLASSES}):
        with pytest.raises(ValueError, match="contains labels and weights: leave out y"):
            classifier().fit(given(kind), verbose=0, **options)


@pytest.mark.parametrize("kind", ["arrays", *KINDS])
def test_normalised_floats_are_no_pictures(kind):
    model = classifier()
    normalised = model.preprocessor(IMAGES)
    steps = {"steps": 3} if kind == "generator" else {}
    with pytest.raises(Exception, match="raw pixels in 0..255.*before any normalisation"):
        x = given(kind, normalised)
        model.predict(x[0] if kind == "arrays" else x, verbose=0, **steps)


@ENDS
@pytest.mark.parametrize("kind", ["arrays", *KINDS])
def test_floats_from_0_to_1_bring_a_warning(kind):
    model = classifier()
    steps = {"steps": 1} if kind == "generator" else {}
    with pytest.warns(UserWarning, match="But 0.9.* is the largest value of these"):
        x = given(kind, IMAGES.astype("float32") / 256)
        model.predict(x[0] if kind == "arrays" else x, verbose=0, **steps)


class Counted:
    """An array-like that counts the rows that are read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        found = self.array[rows]
        self.read += len(found)
        return found

    def __array__(self, *arguments, **options):
        raise AssertionError("read as a whole")


def of_hdf5(array, path):
    import h5py

    file = h5py.File(path / "images.h5", "w")
    return file.create_dataset("images", data=array)


def of_memmap(array, path):
    np.save(path / "images.npy", array)
    return np.load(path / "images.npy", mmap_mode="r")


LIKES = {
    "HDF5": of_hdf5,
    "memmap": of_memmap,
    "torch": lambda array, path: pytest.importorskip("torch").tensor(array),
    "tf": lambda array, path: pytest.importorskip("tensorflow").constant(array),
    "jax": lambda array, path: pytest.importorskip("jax").numpy.asarray(array),
    "counted": lambda array, path: Counted(array),
}


@pytest.mark.parametrize("kind", LIKES)
def test_array_likes_train_as_arrays_do(kind, tmp_path):
    losses = []
    for x in (IMAGES, LIKES[kind](IMAGES, tmp_path)):
        fit = {"epochs": 2, "batch_size": 6, "validation_split": 0.25, "verbose": 0}
        model = classifier()
        history = model.fit(x, CLASSES, **fit).history
        losses.append([*history["loss"], *history["val_loss"], *model.predict(x, verbose=0)[3]])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("shuffle", [True, False])
def test_array_likes_are_read_by_batches(shuffle):
    x, epochs = Counted(IMAGES), 3
    classifier().fit(x, CLASSES, batch_size=4, epochs=epochs, shuffle=shuffle, verbose=0)
    assert x.read <= len(IMAGES) * epochs + 2 * 4  # Keras reads two batches to learn their shapes
    x.read = 0
    classifier().predict(x, batch_size=4, verbose=0)
    assert x.read <= len(IMAGES) + 2 * 4


@pytest.mark.parametrize("rows", [[3, 4, 5], [9, 2, 5], [7], [5, 5, 1], [19, 0]])
@pytest.mark.parametrize("kind", LIKES)
def test_rows_of_array_likes(kind, rows, tmp_path):
    array = LIKES[kind](IMAGES, tmp_path)
    found = arrays.take(arrays.rows_of(array), np.array(rows))
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, IMAGES[rows])
    _, validation = arrays.split_arrays((array,), 0.5)
    inside = np.array(rows) // 2
    np.testing.assert_array_equal(arrays.take(validation[0], inside), IMAGES[10 + inside])


def test_labels_of_any_kind(tmp_path):
    pandas = type("Series", (), {"iloc": None, "to_numpy": lambda self: CLASSES})()
    losses = [
        classifier().fit(IMAGES, y, verbose=0).history["loss"][0]
        for y in (
            CLASSES,
            list(CLASSES),
            [[c] for c in CLASSES],
            of_hdf5(CLASSES, tmp_path),
            pandas,
        )
    ]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_validation_split_takes_the_last_and_validation_data_is_preprocessed():
    train, validation = arrays.split_arrays((IMAGES, CLASSES, None), 0.25)
    assert len(train[0]) == 15 and (validation[1] == CLASSES[15:]).all() and train[2] is None
    history = classifier().fit(IMAGES, CLASSES, validation_split=0.25, verbose=0).history
    assert "val_loss" in history
    history = (
        classifier().fit(IMAGES, CLASSES, validation_data=(IMAGES, CLASSES), verbose=0).history
    )
    assert "val_loss" in history


def test_predict_agrees_between_arrays_lists_and_datasets():
    tf = pytest.importorskip("tensorflow")
    model = classifier()
    wanted = model.predict(IMAGES, verbose=0)
    assert wanted.dtype == "float32"
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(8)
    for x in (list(IMAGES), dataset):
        np.testing.assert_allclose(model.predict(x, verbose=0), wanted, atol=1e-6)
    by_hand = model(model.preprocessor(IMAGES))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(by_hand), wanted, atol=1e-6)


class Killed(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    options = {"drop_path_rate": 0.2, "drop_rate": 0.1}
    fit = {"epochs": 4, "batch_size": 8, "verbose": 0, "seed": 3}
    unbroken = classifier(**options)
    unbroken.fit(IMAGES, CLASSES, **fit)
    broken = classifier(**options)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    interrupted(broken, callbacks=[backup, Killed()], **fit)
    resumed = classifier(seed=7, **options)  # another process: other weights, other random states
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    resumed.fit(IMAGES, CLASSES, callbacks=backup, **fit)
    for one, other in zip(unbroken.trainable_variables, resumed.trainable_variables, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other), atol=1e-6
        )


def interrupted(model, **options):
    """`fit` until KeyboardInterrupt, as if the process ended there: TensorFlow's thread that makes
    batches gets the time to rest, as to delete it while it runs Python would wait for ever."""
    with pytest.raises(KeyboardInterrupt):
        model.fit(IMAGES, CLASSES, **options)
    time.sleep(0.5)
    gc.collect()


class KilledAmid(keras.callbacks.Callback):
    """Dies after a batch of the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch == 1:
            raise KeyboardInterrupt


def test_a_run_killed_amid_an_epoch_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    options = {"drop_path_rate": 0.2, "drop_rate": 0.1}
    fit = {"epochs": 3, "batch_size": 8, "verbose": 0, "seed": 3}
    unbroken = classifier(**options)
    unbroken.fit(IMAGES, CLASSES, **fit)
    broken = classifier(**options)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    interrupted(broken, callbacks=[backup, KilledAmid()], **fit)
    resumed = classifier(seed=7, **options)  # another process
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    history = resumed.fit(IMAGES, CLASSES, callbacks=backup, **fit)
    assert history.epoch == [1, 2]  # the whole of the broken epoch again
    for one, other in zip(unbroken.trainable_variables, resumed.trainable_variables, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
        )


def test_fit_shows_its_progress(capsys):
    classifier().fit(IMAGES, CLASSES, batch_size=8, epochs=2, verbose=1)
    shown = capsys.readouterr().out
    assert "Epoch 1/2" in shown and "Epoch 2/2" in shown
    assert "3/3" in shown and "loss: " in shown  # 20 images are three batches of 8


@pytest.mark.parametrize(
    ("x", "y", "batch_size", "message"),
    [
        (np.zeros((4, 8, 8, 3)), np.zeros(3), None, "same length"),
        (np.zeros((0, 8, 8, 3)), None, None, "0 images"),
        (Batches(), np.zeros(3), None, "leave out y"),
        (7, None, None, "Received: int"),
        ("a.jpg", None, None, r"for a single image pass \[image\]. Received: str"),
        (np.zeros((8, 8, 3)), None, None, r"pass \[image\]. Received: ndarray of shape \(8, 8, 3"),
    ],
)
def test_errors_say_what_came(x, y, batch_size, message):
    with pytest.raises(ValueError, match=message):
        data.batches(prepare, x, y, None, batch_size)


@pytest.mark.parametrize("labels", [[0, 1, 2, 4], [0, -1, 1, 2], np.array([[0], [1], [2], [4]])])
def test_labels_that_are_no_class(labels):
    model, images = classifier(), IMAGES[:4]
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(True), run_eagerly=True)
    good = np.zeros(4, int)
    message = "Labels must be whole numbers from 0 to 3, as the model has 4 classes. Received: "
    with pytest.raises(ValueError, match=message):
        model.fit(images, labels, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.fit(images, good, validation_data=(images, labels), verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(images, labels, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(True, ignore_class=-1)
    model.compile(loss=loss, run_eagerly=True)
    model.fit(images, np.array([0, -1, 1, 2]), verbose=0)
    model.compile(loss="mse", run_eagerly=True)  # whatever these are, they are no classes
    model.fit(images, np.array([0.5, 7, -1, 2.0]), verbose=0)


def test_validation_split_that_leaves_nothing():
    with pytest.raises(ValueError, match="leaves one side empty"):
        arrays.split_arrays((np.zeros(1), None, None), 0.1)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data")
def test_without_a_preprocessor_data_is_taken_as_it_is():
    """As in KerasHub's own tests: `ds.map(preprocessor)` gives normalised pictures."""
    import tensorflow as tf

    model = classifier()
    wanted = model.predict(IMAGES, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, CLASSES)).batch(8)
    dataset = dataset.map(model.preprocessor)
    model.preprocessor = None
    np.testing.assert_allclose(model.predict(dataset, verbose=0), wanted, atol=1e-5)
    assert np.isfinite(model.fit(dataset, verbose=0).history["loss"]).all()
    assert np.isfinite(model.evaluate(dataset, verbose=0)).all()

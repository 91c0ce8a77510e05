"""fit, evaluate and predict: what goes in, in which order, and what a resumed run ends with."""

import keras
import numpy as np
import pytest

from keras_vit import ViT, ViTBackbone, data
from keras_vit.images import ImageConverter, ImagePreprocessor

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 20, 24, 3), dtype="uint8")
CLASSES = RNG.integers(0, 4, 20)


def classifier(seed=0, **options):
    keras.utils.set_random_seed(seed)
    backbone = ViTBackbone(
        image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, **options
    )
    model = ViT(backbone, 4, ImagePreprocessor(ImageConverter(16)), drop_rate=0.1)
    # run_eagerly: seconds of compilation for milliseconds of work
    model.compile(keras.optimizers.AdamW(1e-3), "sparse_categorical_crossentropy", run_eagerly=True)
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
    """Keeps what the preprocessor is given."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)


def test_fit_shuffles_arrays():
    model, seen = classifier(), []
    preprocessor = model.preprocessor
    model.preprocessor = lambda x: (seen.append(np.asarray(x)[:, 0, 0, 0]), preprocessor(x))[1]
    model.fit(IMAGES, CLASSES, batch_size=20, epochs=2, verbose=0)
    orders = {tuple(x) for x in seen}
    assert len(orders) >= 2 and all(sorted(o) == sorted(IMAGES[:, 0, 0, 0]) for o in orders)


@pytest.mark.parametrize("kind", ["arrays", "list", "tf", "pydataset", "generator"])
def test_fit_takes_what_keras_users_pass(kind):
    model = classifier()
    x, y = IMAGES, CLASSES
    if kind == "list":  # of images of different sizes
        x = [image[: 10 + i % 5] for i, image in enumerate(IMAGES)]
    elif kind == "tf":
        tf = pytest.importorskip("tensorflow")
        x, y = tf.data.Dataset.from_tensor_slices((IMAGES, CLASSES)).batch(8), None
    elif kind == "pydataset":
        x, y = Batches(), None
    elif kind == "generator":
        x, y = ((IMAGES[:8], CLASSES[:8]) for _ in range(3)), None
    steps = {"steps_per_epoch": 3} if kind == "generator" else {}
    history = model.fit(x, y, verbose=0, **steps)
    assert np.isfinite(history.history["loss"]).all()


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return IMAGES[index * 8 : index * 8 + 8], CLASSES[index * 8 : index * 8 + 8]


def test_validation_split_takes_the_last_and_validation_data_is_preprocessed():
    train, validation = data.split((IMAGES, CLASSES, None), 0.25)
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
    with pytest.raises(KeyboardInterrupt):
        broken.fit(IMAGES, CLASSES, callbacks=[backup, Killed()], **fit)
    resumed = classifier(seed=7, **options)  # another process: other weights, other random states
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    resumed.fit(IMAGES, CLASSES, callbacks=backup, **fit)
    for one, other in zip(unbroken.trainable_variables, resumed.trainable_variables, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other), atol=1e-6
        )


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
    with pytest.raises(KeyboardInterrupt):
        broken.fit(IMAGES, CLASSES, callbacks=[backup, KilledAmid()], **fit)
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
        (Batches(), np.zeros(3), None, "leave y"),
        (Batches(), None, 8, "leave y"),
        (7, None, None, "Received: int"),
        ("a.jpg", None, None, r"for one image write \[image\]. Received: str"),
        (np.zeros((8, 8, 3)), None, None, r"write \[image\]. Received: ndarray of shape \(8, 8, 3"),
    ],
)
def test_errors_say_what_came(x, y, batch_size, message):
    with pytest.raises(ValueError, match=message):
        data.batches(prepare, x, y, None, batch_size)


@pytest.mark.parametrize("labels", [[0, 1, 2, 4], [0, -1, 1, 2], np.array([[0], [1], [2], [4]])])
def test_labels_that_are_no_class(labels):
    model, images = classifier(), IMAGES[:4]
    model.compile(loss="sparse_categorical_crossentropy")
    good = np.zeros(4, int)
    message = "Labels must be whole numbers from 0 to 3, as the model has 4 classes. Received: "
    with pytest.raises(ValueError, match=message):
        model.fit(images, labels, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.fit(images, good, validation_data=(images, labels), verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(images, labels, verbose=0)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(True, ignore_class=-1))
    model.fit(images, np.array([0, -1, 1, 2]), verbose=0)
    model.compile(loss="mse")  # whatever these are, they are no classes
    model.fit(images, np.array([0.5, 7, -1, 2.0]), verbose=0)


def test_validation_split_that_leaves_nothing():
    with pytest.raises(ValueError, match="leaves one side empty"):
        data.split((np.zeros(1), None, None), 0.1)

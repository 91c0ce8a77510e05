"""keras_vit.train: folders of pictures, batches, the optimizer, and that it learns."""

import os

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_vit import ViT, train
from keras_vit.images import ImageConverter, ImagePreprocessor
from keras_vit.train import pictures

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (220, 30, 30)}


def classifier(num_classes=3, dtype=None, **options):
    keras.utils.set_random_seed(0)
    trunk = {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    backbone = ViT.backbone_cls(**{**trunk, **options}, dtype=dtype)
    return ViT(backbone, num_classes, preprocessor=ImagePreprocessor(ImageConverter(16)))


def coloured(count, seed=0):
    """Noisy pictures of three colours: uint8 (count, 20, 24, 3), labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    means = np.array(list(COLOURS.values()))[labels][:, None, None]
    noise = random.normal(0, 60, (count, 20, 24, 3))
    return np.clip(means + noise, 0, 255).astype("uint8"), labels


@pytest.fixture
def folder(tmp_path):
    """Three classes of four pictures, and what lies in such folders besides."""
    images, labels = coloured(12)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        home = tmp_path / "data" / list(COLOURS)[label]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / f"{i:02}.{('png', 'jpg')[i % 2]}")
    (tmp_path / "data" / ".git").mkdir()
    (tmp_path / "data" / "red" / ".DS_Store").write_bytes(b"hidden")
    (tmp_path / "data" / "about.txt").write_text("beside the classes")
    return tmp_path / "data"


def test_read_folder(folder):
    found = train.read_folder(folder)
    assert found.class_names == ["blue", "green", "red"]
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert [p.parent.name for p in found.paths] == ["blue"] * 4 + ["green"] * 4 + ["red"] * 4
    assert found.paths == sorted(found.paths) and found.broken == []


def test_broken_files_are_listed_and_the_rest_goes_on(folder):
    (folder / "blue" / "notes.jpg").write_text("this is no picture")
    whole = (folder / "green" / "01.jpg").read_bytes()
    (folder / "green" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "red" / "empty.png").write_bytes(b"")
    steps = []

    def progress(items, total):
        steps.append(total)
        return items

    found = train.read_folder(folder, progress)
    assert len(found.paths) == len(found.labels) == 12 and steps == [15]
    assert [path.name for path, _ in found.broken] == ["notes.jpg", "cut.jpg", "empty.png"]
    assert all(path.name in why for path, why in found.broken)
    assert not {path for path, _ in found.broken} & set(found.paths)


def test_read_folder_says_what_is_wrong(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder.*nowhere"):
        train.read_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="two at least.*Received: data"):
        train.read_folder(tmp_path)
    (folder / "white").mkdir()
    with pytest.raises(ValueError, match=r"No picture in '.*white'\. Put pictures"):
        train.read_folder(folder)
    (folder / "white" / "list.txt").write_text("a, b")
    with pytest.raises(ValueError, match=r"white'\. 1 files there are not .*list.txt"):
        train.read_folder(folder)


def test_a_folder_of_parts_points_to_the_part(folder, tmp_path):
    for part in ("train", "val"):
        (tmp_path / "both" / part).mkdir(parents=True)
        for name in COLOURS:
            os.rename(folder / name, tmp_path / "both" / part / name)
            (folder / name).mkdir()
    with pytest.raises(ValueError, match="both/train' holds folders"):
        train.read_folder(tmp_path / "both")


def test_pictures_in_subfolders_belong_to_the_class(folder):
    for name in COLOURS:  # as breeds of an animal, or days of a camera; red keeps some beside them
        for i, path in enumerate(sorted((folder / name).glob("[0-9]*"))[name == "red" :]):
            home = folder / name / "2026" / f"{i % 2}"
            home.mkdir(parents=True, exist_ok=True)
            path.rename(home / path.name)
    (folder / "red" / "2026" / "1" / "cut.jpg").write_bytes(b"\xff\xd8")
    (folder / "red" / "2026" / ".cache").mkdir()
    (folder / "red" / "2026" / ".cache" / "x.jpg").write_bytes(b"hidden")
    found = train.read_folder(folder)
    assert np.bincount(found.labels).tolist() == [4, 4, 4]
    assert [path.name for path, _ in found.broken] == ["cut.jpg"]


def test_a_class_may_be_called_train(folder):
    (folder / "red").rename(folder / "train")
    assert train.read_folder(folder).class_names == ["blue", "green", "train"]


def test_a_damaged_picture_of_any_kind_is_counted_and_left_out(folder, shared):
    damaged = (shared / "cases" / "damaged.avif").read_bytes()
    (folder / "blue" / "damaged.avif").write_bytes(damaged)
    Image.fromarray(np.zeros((4, 4), "int32")).save(folder / "green" / "unknown.tif")
    (folder / "red" / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    found = train.read_folder(folder)
    assert len(found.paths) == 12
    names = ["damaged.avif", "unknown.tif", "weights.h5"]
    assert [path.name for path, _ in found.broken] == names
    assert all(repr(str(path)) in why for path, why in found.broken)


def test_split_takes_the_same_part_of_each_class():
    labels = np.array([0] * 10 + [1] * 50 + [2] * 3)
    training, validation = train.split_labels(labels, 0.2, seed=1)
    assert np.bincount(labels[validation]).tolist() == [2, 10, 1]
    assert sorted([*training, *validation]) == list(range(63))
    assert np.array_equal(train.split_labels(labels, 0.2, seed=1)[1], validation)
    assert not np.array_equal(train.split_labels(labels, 0.2, seed=2)[1], validation)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_split_by_no_part(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        train.split_labels(np.array([0, 0, 1, 1]), fraction)


def test_split_of_a_single_picture():
    with pytest.raises(ValueError, match="Class 1 .* single picture"):
        train.split_labels(np.array([0, 0, 1]), 0.5)
    with pytest.raises(ValueError, match="Class 'rose' has a single picture"):
        train.split_labels(np.array([0, 0, 1]), 0.5, class_names=["tulip", "rose"])


def test_pictures_are_decoded_once(folder):
    paths = train.read_folder(folder).paths
    converter = ImageConverter(16, crop_pct=0.8)
    expected = converter.pixels(paths).astype("uint8")
    kept = pictures.Pictures(paths, converter)
    again = pictures.Pictures(paths, converter, memory=1000)
    rows = np.array([7, 0, 3])
    for found in (kept, again):
        assert found[rows].dtype == np.uint8 and len(found) == 12
        np.testing.assert_array_equal(found[rows], expected[rows])
    for path in paths:
        path.unlink()
    np.testing.assert_array_equal(kept[rows], expected[rows])
    with pytest.raises(FileNotFoundError):
        again[rows]


def test_arrays_and_lists_of_arrays_are_pictures():
    images, _ = coloured(40)
    converter = ImageConverter((16, 24))
    from_array, from_list = (pictures.Pictures(x, converter) for x in (images, list(images)))
    np.testing.assert_array_equal(from_array[np.arange(40)], from_list[np.arange(40)])


def batches(augment=True, flip=True, seed=0, size=(16, 20)):
    """Batches of pictures whose left half is dark; and the larger pictures themselves."""
    images = np.full((30, 18, 24, 3), 40, "uint8")
    images[:, :, 12:] = 200
    images[..., 0] = np.arange(18)[:, None]  # each row says its number
    images[..., 1] = np.arange(30)[:, None, None]  # each picture says its number
    converter = ImageConverter(size, mean=[0] * 3, std=[1 / 255] * 3)
    source = pictures.Pictures(images, ImageConverter((18, 24)))
    return pictures.Batches(source, np.arange(30), 8, converter, augment, flip, seed)


def test_batches_follow_from_seed_epoch_and_number():
    one, other = batches(), batches()
    np.testing.assert_array_equal(one[2][0], other[2][0])
    other.epoch = 1
    assert not np.array_equal(one[2][1], other[2][1])
    assert not np.array_equal(batches(seed=5)[2][1], one[2][1])
    for epoch in range(2):
        one.epoch = epoch
        labels = np.concatenate([one[i][1] for i in range(len(one))])
        assert sorted(labels) == list(range(30))


@pytest.mark.parametrize("flip", [True, False])
def test_crops_keep_picture_and_label_together(flip):
    found = [batches(flip=flip)[i] for i in range(4)]
    x, y = (np.concatenate(part) for part in zip(*found, strict=True))
    assert x.shape == (30, 16, 20, 3) and x.dtype == np.float32
    np.testing.assert_allclose(x[..., 1], np.broadcast_to(y[:, None, None], x.shape[:3]), atol=1e-3)
    tops = np.round(x[:, 0, 0, 0])
    assert set(tops) == {0, 1, 2}  # every place from which 16 of 18 rows can be cut
    np.testing.assert_allclose(x[:, :, 3, 0], tops[:, None] + np.arange(16), atol=1e-3)
    mirrored = x[:, 0, 0, 2] > x[:, 0, -1, 2]
    assert 5 < mirrored.sum() < 25 if flip else not mirrored.any()


def test_validation_is_in_order_and_as_the_model_sees_it():
    images, labels = coloured(10)
    converter = ImageConverter(16, crop_pct=0.8)
    found = pictures.Batches(pictures.Pictures(images, converter), labels, 4, converter)
    x, y = (np.concatenate(part) for part in zip(*(found[i] for i in range(3)), strict=True))
    np.testing.assert_allclose(x, converter(images), atol=1e-5)
    np.testing.assert_array_equal(y, labels)


@pytest.mark.parametrize("size, crop_pct", [(224, 0.875), (56, 0.9), (32, 1.0), ((56, 112), 0.5)])
def test_training_crops_from_a_wider_view(size, crop_pct):
    converter = ImageConverter(size, crop_pct=crop_pct)
    wide = pictures.wider(converter)
    assert all(w > s for w, s in zip(wide.image_size, converter.image_size, strict=True))
    assert min(wide.resized(300, 400)) >= max(min(converter.resized(300, 400)), 1)
    if crop_pct <= 0.875:  # there is room: the middle of the wider view is the model's own view
        picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), "uint8")
        (rows, columns), (high, broad) = converter.image_size, wide.image_size
        top, left = (high - rows) // 2, (broad - columns) // 2
        middle = wide.pixels(picture)[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(middle, converter.pixels(picture))


def test_only_kernels_decay():
    model = classifier()
    before = {v.path: ops.convert_to_numpy(v) + 0.0 for v in model.trainable_variables}
    optimizer = train.adamw(model, 10, learning_rate=0.1, weight_decay=0.5, warmup=0)
    optimizer.build(model.trainable_variables)
    optimizer.apply([ops.zeros(v.shape) for v in model.trainable_variables])
    decayed = set()
    for variable in model.trainable_variables:
        after = ops.convert_to_numpy(variable)
        if variable.path.endswith("kernel"):
            np.testing.assert_allclose(after, before[variable.path] * 0.95, rtol=1e-5)
            decayed.add(variable.path)
        else:
            np.testing.assert_array_equal(after, before[variable.path])
    assert {"head/kernel", "blocks_0/attn/qkv/kernel"} <= decayed
    assert not any("pos_embed" == path.split("/")[-1] for path in decayed)


@pytest.mark.parametrize("width, warmup", [(16, 0.1), (16, 0.0), (32, 0.25)])
def test_learning_rate_rises_and_falls(width, warmup):
    schedule = train.adamw(classifier(embed_dim=width), 100, warmup=warmup)._learning_rate
    rates = [float(schedule(step)) for step in range(101)]
    highest = round(100 * warmup)
    assert np.argmax(rates) == highest
    assert rates[highest] == pytest.approx(0.06 / width)
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert warmup == 0 or rates[highest // 2] == pytest.approx(0.06 / width / 2, rel=0.05)


def test_finetune_learns(folder):
    found = train.read_folder(folder)
    model = classifier()
    validation = coloured(30, seed=9)
    history = train.finetune(
        model,
        (found.paths, found.labels),
        validation,
        12,
        batch_size=4,
        learning_rate=5e-3,
        verbose=0,
    ).history
    assert len(history["loss"]) == len(history["val_accuracy"]) == 12
    assert history["val_accuracy"][-1] > 0.9
    right = model.predict(validation[0], verbose=0).argmax(-1) == validation[1]
    assert right.mean() == pytest.approx(history["val_accuracy"][-1])


def test_finetune_repeats_itself():
    weights = []
    for seed in (3, 3, 4):
        model = classifier(drop_rate=0.1, drop_path_rate=0.1)
        train.finetune(model, coloured(16), epochs=2, batch_size=4, seed=seed, verbose=0)
        weights.append(np.concatenate([np.ravel(w) for w in model.get_weights()]))
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.allclose(weights[0], weights[2])


def test_finetune_in_half_precision():
    model = classifier(dtype="mixed_bfloat16")
    history = train.finetune(model, coloured(12), epochs=2, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize(
    "labels", [[0, 1, 3], [-1, 0, 1], [0.0, 1.0, 2.0], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]]
)
def test_labels_that_are_no_class(labels):
    with pytest.raises(ValueError, match="from 0 to 2.*Received"):
        train.finetune(classifier(), (coloured(3)[0], labels), verbose=0)


def test_a_model_without_preprocessor():
    model = classifier()
    model.preprocessor = None
    with pytest.raises(ValueError, match="no preprocessor"):
        train.finetune(model, coloured(3))


@pytest.mark.parametrize("when", ["loss", "val_loss"])
def test_a_training_that_diverges_stops(when):
    class Poison(keras.callbacks.Callback):
        epochs = 0

        def poison(self):
            for variable in self.model.trainable_variables:
                variable.assign(variable * np.nan)

        def on_epoch_begin(self, epoch, logs=None):
            if when == "loss" and epoch == 1:
                self.poison()

        def on_test_begin(self, logs=None):
            if when == "val_loss" and self.epochs:
                self.poison()

        def on_epoch_end(self, epoch, logs=None):
            self.epochs += 1

    poison, data = Poison(), coloured(12)
    with pytest.raises(FloatingPointError, match=f"^{when} is nan in epoch 2.*lower learning rate"):
        train.finetune(classifier(), data, data, 4, batch_size=6, callbacks=[poison], verbose=0)
    assert poison.epochs == 1


def test_fit_stops_before_a_callback_replaces_a_good_file(tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.set_weights([w * np.nan for w in self.model.get_weights()])

    model, path = classifier(), tmp_path / "a.weights.h5"
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    save = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    images, labels = coloured(4)
    with pytest.raises(FloatingPointError, match="^loss is nan in epoch 2"):
        model.fit(images, labels, epochs=3, callbacks=[Poison(), save], verbose=0)
    good = classifier()
    good.load_weights(path)
    assert all(np.isfinite(w).all() for w in good.get_weights())


def test_a_long_epoch_that_diverges_ends_early(monkeypatch):
    monkeypatch.setattr("keras_vit.data.Diverged.often", 3)
    steps = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(batch)

    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1"):
        train.finetune(
            classifier(),
            coloured(40),
            batch_size=2,
            learning_rate=1e30,
            callbacks=[Count()],
            verbose=0,
        )
    assert 3 <= len(steps) < 20

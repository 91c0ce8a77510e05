"""keras_vit.train's augmentation: each operation against timm's on fixed parameters."""

import random as python_random

import keras
import numpy as np
import pytest
from PIL import Image
from test_train import classifier, coloured

from keras_vit import train
from keras_vit.images import ImageConverter
from keras_vit.train import augment, batches, operations, recipes
from keras_vit.train.operations import RandAugment

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 52, 3), "uint8")
PICTURE[8:30, 10:40] //= 4  # so that contrast, equalisation and thresholds have work
FILL = (124, 116, 104)
EXACT = [("Posterize", True), ("Solarize", True), ("Color", True), ("Contrast", True)]
EXACT += [("Brightness", True), ("Sharpness", True)]


@pytest.mark.parametrize("level", [0, 1.3, 5, 9, 10])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", list(operations.PLAIN))
@pytest.mark.parametrize("increasing", [False, True])
def test_operations_are_timms(name, increasing, sign, level, timm, monkeypatch):
    from timm.data import auto_augment

    table = operations.INCREASING if increasing else operations.PLAIN
    theirs = name + "Increasing" * (increasing and (name, True) in EXACT)
    monkeypatch.setattr(auto_augment.random, "random", lambda: 1.0 if sign < 0 else 0.0)
    image = Image.fromarray(PICTURE)
    argument = auto_augment.LEVEL_TO_ARG[theirs]
    arguments = argument(level, {}) if argument else ()
    options = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
    if name == "Posterize" and arguments[0] == 0:  # which PIL 13 refuses
        expected = np.zeros_like(PICTURE)
    else:
        expected = auto_augment.NAME_TO_OP[theirs](image, *arguments, **options)
    found = table[name](image, level, sign, FILL)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_the_operations_are_all_of_timms(timm):
    from timm.data import auto_augment

    assert list(operations.PLAIN) == auto_augment._RAND_TRANSFORMS
    names = [name.removesuffix("Increasing") for name in auto_augment._RAND_INCREASING_TRANSFORMS]
    assert list(operations.INCREASING) == names


def test_timms_notation():
    found = RandAugment.parse("rand-m9-mstd0.5-inc1")
    assert found == RandAugment(9, 0.5, 2, 0.5, 10, True)
    assert RandAugment.parse("rand-m15-n3-p0.7-mmax30-mstd101") == RandAugment(
        15, float("inf"), 3, 0.7, 30, False
    )
    for wrong in ("rand-x3", "auto-m9", "rand-m"):
        with pytest.raises(ValueError, match="Received: 'auto|is none of m"):
            RandAugment.parse(wrong)


def test_levels_are_drawn_as_in_timm(monkeypatch):
    """9 +- 0.5 clipped to 10, half of the operations applied."""
    levels, image = [], Image.fromarray(PICTURE)
    spy = operations.Operation(lambda image, level: levels.append(level) or image, lambda a, _: a)
    monkeypatch.setattr(operations, "INCREASING", {"one": spy, "two": spy})
    random = np.random.default_rng(0)
    for _ in range(1000):
        RandAugment.parse("rand-m9-mstd0.5-inc1")(image, random, FILL)
    assert len(levels) == pytest.approx(1000, abs=80)
    assert np.mean(levels) == pytest.approx(9, abs=0.05) and max(levels) <= 10
    assert np.std(levels) == pytest.approx(0.5, abs=0.05)


def test_random_resized_crop_is_timms(timm):
    """The same distribution of boxes, and the same picture for a box."""
    from timm.data.transforms import RandomResizedCropAndInterpolation as Theirs

    random, scale, ratio = np.random.default_rng(0), (0.08, 1.0), (3 / 4, 4 / 3)
    python_random.seed(0)
    image = Image.fromarray(PICTURE)
    ours = np.array([augment.cut((40, 52), scale, ratio, random) for _ in range(4000)])
    theirs = np.array([Theirs.get_params(image, scale, ratio) for _ in range(4000)])
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=0.6)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=0.6)
    for shape in ((10, 400), (400, 10)):  # no box fits
        expected = Theirs.get_params(Image.new("RGB", shape[::-1]), (1, 1), ratio)
        assert augment.cut(shape, (1, 1), ratio, random) == expected


def test_a_view_is_cut_resized_and_flipped(monkeypatch):
    monkeypatch.setattr(augment, "cut", lambda *_: (3, 5, 20, 30))
    for flip in (0.0, 1.0):
        view = train.Augmentation((16, 24), flip=flip)(PICTURE, np.random.default_rng(0))
        part = Image.fromarray(PICTURE[3:23, 5:35]).resize((24, 16), Image.Resampling.BICUBIC)
        expected = np.asarray(part)[:, ::-1] if flip else np.asarray(part)
        np.testing.assert_array_equal(view, expected)


def test_simple_crop_of_deit3():
    """Resized by the short side, reflected, cut: every place of the crop occurs."""
    image, random = Image.fromarray(PICTURE), np.random.default_rng(0)
    new = np.asarray(image.resize((26, 20), Image.Resampling.BICUBIC))
    padded = np.pad(new, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    places = {padded[i : i + 20, j : j + 20].tobytes() for i in range(9) for j in range(15)}
    found = {
        np.asarray(augment.simple_crop(image, (20, 20), random, "bicubic")).tobytes()
        for _ in range(400)
    }
    assert found <= places and len(found) > 100


def test_three_augment_is_one_of_three():
    image, random = Image.fromarray(PICTURE), np.random.default_rng(0)
    grey = np.asarray(image.convert("L").convert("RGB"))
    solar = np.where(PICTURE < 128, PICTURE, 255 - PICTURE)
    kinds = {"grey": 0, "solarised": 0, "blurred": 0}
    for _ in range(300):
        x = np.asarray(augment.one_of_three(image, random))
        if np.array_equal(x, grey):
            kinds["grey"] += 1
        elif np.array_equal(x, solar):
            kinds["solarised"] += 1
        else:
            assert x.std() < PICTURE.std()
            kinds["blurred"] += 1
    assert all(70 < count < 130 for count in kinds.values())


def test_colour_jitter_changes_each_by_a_factor():
    random = np.random.default_rng(0)
    flat = Image.new("RGB", (4, 4), (100, 100, 100))  # only its brightness can change
    values = [np.asarray(augment.jitter(flat, 0.3, random))[0, 0, 0] for _ in range(300)]
    assert 68 <= min(values) < 76 and 124 < max(values) <= 131
    assert np.array_equal(augment.jitter(Image.fromarray(PICTURE), 0.0, random), PICTURE)


def test_erasing_has_timms_boxes_and_noise(timm):
    from timm.data.random_erasing import RandomErasing

    torch = pytest.importorskip("torch")
    python_random.seed(0), torch.manual_seed(0)
    ours = augment.erase(np.full((1500, 32, 40, 3), 9.0, "float32"), np.random.default_rng(0), 0.5)
    theirs = RandomErasing(0.5, mode="pixel", device="cpu")(torch.full((1500, 3, 32, 40), 9.0))
    found = []
    for x in (ours, np.moveaxis(theirs.numpy(), 1, -1)):
        erased = (x != 9).all(-1)
        area, rows = erased.mean((1, 2)), erased.any(2).sum(1)
        hit = area > 0
        noise = x[erased]
        found.append([hit.mean(), area[hit].mean(), rows[hit].mean(), noise.mean(), noise.std()])
    difference = np.abs(np.subtract(*found))
    assert (difference < [0.06, 0.02, 1.0, 0.01, 0.01]).all(), found
    assert found[0][4] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_mixtures_are_timms(how, timm, monkeypatch):
    from timm.data import mixup

    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).normal(0, 1, (6, 16, 20, 3)).astype("float32")
    labels = np.array([0, 1, 2, 3, 3, 0])
    options = {"mixup": (0.8, 0.0), "cutmix": (0.0, 1.0)}[how]
    seen = {}
    for seed in range(8):
        random = np.random.default_rng(seed)
        weight = np.random.default_rng(seed).beta(*2 * (max(options),))
        shadow = np.random.default_rng(seed)
        shadow.beta(*2 * (max(options),))
        centres = iter(shadow.integers(0, (16, 20)))
        monkeypatch.setattr(mixup.np.random, "beta", lambda *_, w=weight: w)
        monkeypatch.setattr(mixup.np.random, "randint", lambda *_, c=centres, **__: next(c))
        monkeypatch.setattr(mixup.np.random, "rand", lambda *_: 0.0)
        theirs = mixup.Mixup(*options, label_smoothing=0.1, num_classes=4)
        tensor = torch.tensor(np.moveaxis(x, -1, 1).copy())
        expected = theirs(tensor, torch.tensor(labels))
        found = train.mix(x, train.one_hot(labels, 4, 0.1), random, *options)
        np.testing.assert_allclose(found[0], np.moveaxis(expected[0].numpy(), 1, -1), atol=1e-6)
        np.testing.assert_allclose(found[1], expected[1].numpy(), atol=1e-6)
        seen[found[1].tobytes()] = True
    assert len(seen) > 4
    untouched = train.mix(x, train.one_hot(labels, 4), random)
    assert untouched[0] is x


def test_either_mixup_or_cutmix():
    x = np.arange(2 * 8 * 8, dtype="float32").reshape(2, 8, 8, 1)
    y = train.one_hot(np.array([0, 1]), 2)
    kinds = [
        np.isin(train.mix(x, y, np.random.default_rng(seed), 0.8, 1.0)[0], x).all()
        for seed in range(200)
    ]
    assert 70 < sum(kinds) < 130


def test_views_follow_from_the_seed_in_tf_data():
    tf = pytest.importorskip("tensorflow")
    augmentation = train.Augmentation(16, rand_augment="rand-m9-mstd0.5-inc1")
    pictures = np.stack([PICTURE] * 5)

    def epochs(seed):
        pairs = tf.data.Dataset.from_tensor_slices((pictures, np.arange(5)))
        dataset = augmentation.map(pairs, seed).batch(5)
        assert dataset.element_spec[0].shape.as_list() == [None, 16, 16, 3]
        return [next(iter(dataset))[0].numpy() for _ in range(1)] + [
            x.numpy() for _ in range(2) for x, y in dataset
        ]

    one, other = epochs(3), epochs(3)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one[1], one[2])  # epochs differ
    assert not np.array_equal(one[1], epochs(4)[1])
    assert len({x.tobytes() for x in one[1]}) == 5  # pictures, too


# --- Recipes ---


def made(name, count=12, batch=6, **options):
    images, labels = coloured(count)
    converter = ImageConverter(16, mean=[0.5] * 3, std=[0.25] * 3)
    row = recipes.recipe(name)
    return train.TrainingBatches(images, labels, 3, batch, converter, row, **options)


@pytest.mark.parametrize("name", train.RECIPES)
def test_batches_of_each_recipe(name):
    row = train.RECIPES[name]
    assert "http" in row.source or row.source.startswith("ours")
    one, other = made(name), made(name)
    x, y = one[1]
    assert x.shape == (6, 16, 16, 3) and x.dtype == np.float32 and np.isfinite(x).all()
    assert y.shape == ((6, 3) if row.soft else (6,))
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)
    other.epoch = 1
    assert not np.array_equal(x, other[1][0])
    if row.soft and not row.binary:
        np.testing.assert_allclose(y.sum(-1), 1, atol=1e-6)
    if row.binary:
        assert set(np.unique(y)) <= {0.0, 1.0}
    order = one.order()
    assert len(order) == 12 and (np.bincount(np.unique(order, return_counts=True)[1]) > 0)[-1]
    assert set(np.unique(order, return_counts=True)[1]) == {row.repeats}


def test_an_unknown_recipe_and_the_default_of_a_large_folder():
    with pytest.raises(ValueError, match="deit3.*Received: 'sota'"):
        recipes.recipe("sota")
    assert recipes.recipe("finetune", 9_999, 100) is train.RECIPES["finetune"]
    assert recipes.recipe("finetune", 10_000, 20) is train.RECIPES["finetune_long"]


def test_channels_without_colours():
    picture = np.random.default_rng(0).integers(0, 256, (20, 24, 5), "uint8")
    view = train.Augmentation(16)(picture, np.random.default_rng(0))
    whole = train.Augmentation(16)(picture[..., :3], np.random.default_rng(0))
    np.testing.assert_array_equal(view[..., :3], whole)
    with pytest.raises(ValueError, match="1 or 3 channels. Received: 5"):
        train.Augmentation(16, three=True)(picture, np.random.default_rng(0))
    grey = train.Augmentation(16, three=True, rand_augment="rand-m9", jitter=0.3)
    assert grey(picture[..., :1], np.random.default_rng(0)).shape == (16, 16, 1)


def test_balanced_epochs_and_class_weights():
    labels = np.array([0] * 8 + [1] * 2 + [2] * 2)
    images = coloured(12)[0]
    found = train.TrainingBatches(
        images, labels, 3, 12, ImageConverter(16), train.RECIPES["finetune"], balanced=True
    )
    assert np.bincount(labels[found.order()]).tolist() == [4, 4, 4]
    assert set(found.order()[labels[found.order()] > 0]) == {8, 9, 10, 11}
    weights = batches.class_weights("auto", labels, 3)
    np.testing.assert_allclose(weights, [0.5, 2, 2])
    assert (weights * [8, 2, 2]).sum() == pytest.approx(12)
    np.testing.assert_allclose(batches.class_weights({1: 3}, labels, 3), [1, 3, 1])
    assert batches.class_weights(None, labels, 3) is None
    for wrong, text in (({3: 1}, "do not exist"), ("most", "Received: 'most'")):
        with pytest.raises(ValueError, match=text):
            batches.class_weights(wrong, labels, 3)


def test_the_weighted_loss_is_pytorchs():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (5, 4)).astype("float32")
    soft = random.dirichlet([1] * 4, 5).astype("float32")
    weights = np.array([1, 0.5, 3, 2], "float32")
    theirs = torch.nn.CrossEntropyLoss(torch.tensor(weights))(
        torch.tensor(logits), torch.tensor(soft)
    )
    found = train.SoftCrossEntropy()(soft * weights, logits)
    assert float(found) == pytest.approx(float(theirs), rel=1e-5)
    loss = keras.losses.deserialize(keras.losses.serialize(train.SoftCrossEntropy()))
    assert float(loss(soft * weights, logits)) == pytest.approx(float(theirs), rel=1e-5)


def test_finetune_by_a_recipe(monkeypatch):
    compiled = {}

    def spy(self, optimizer, loss, **options):
        compiled.update(optimizer=optimizer, loss=loss)
        options["run_eagerly"] = keras.backend.backend() == "tensorflow"
        options.pop("jit_compile")
        original(self, optimizer, loss, **options)

    model = classifier()
    original = type(model).compile
    monkeypatch.setattr(type(model), "compile", spy)
    history = train.finetune(
        model, coloured(12), coloured(6), 2, recipe="mae_finetune", batch_size=6,
        class_weights="auto", balanced=True, ema=0.5, verbose=0,
    ).history  # fmt: skip
    assert np.isfinite(history["loss"]).all() and len(history["val_accuracy"]) == 2
    scales = {scale for _, scale, _ in compiled["optimizer"].variable_rates}
    assert min(scales) == pytest.approx(0.65**2) and model.activation == "softmax"
    assert isinstance(compiled["loss"], train.SoftCrossEntropy)
    rate = compiled["optimizer"]._learning_rate
    assert float(rate.warmup_target or rate.initial_learning_rate) == pytest.approx(5e-4 * 6 / 256)
    train.finetune(model, coloured(6), epochs=1, recipe="deit3", batch_size=6, verbose=0)
    assert model.activation == "softmax"


def test_show_batch(tmp_path):
    pytest.importorskip("matplotlib")
    model = classifier()
    model.labels = ["blue", "green", "red"]
    figure = train.show_batch(model, *coloured(9), recipe="deit", count=9)
    figure.savefig(tmp_path / "batch.png")
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 9 and all("%" in title for title in titles)
    plain = train.show_batch(model, *coloured(4), count=4)
    assert {axes.get_title() for axes in plain.axes} <= {"blue", "green", "red"}

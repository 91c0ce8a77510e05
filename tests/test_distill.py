"""keras_vit.train.Distiller: DeiT's losses, teachers of all kinds, the student that comes out."""

import keras
import numpy as np
import pytest
from keras import ops
from test_train import coloured
from tiny_models import classifier

from keras_vit import DeiT, ViT, train
from keras_vit.train.distill import TermOfTeacher

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = (RANDOM.normal(0, 2, (5, 4)).astype("float32") for _ in range(2))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_the_terms_are_deits(tau):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    soft = functional.kl_div(
        functional.log_softmax(student / tau, 1),
        functional.log_softmax(teacher / tau, 1),
        reduction="sum",
        log_target=True,
    ) * (tau * tau / student.numel())
    found = TermOfTeacher(False, tau)(TEACHER, STUDENT)
    assert float(found) == pytest.approx(4 * float(soft), rel=1e-5)  # DeiT divides by B * classes
    hard = functional.cross_entropy(student, teacher.argmax(1))
    assert float(TermOfTeacher(True)(TEACHER, STUDENT)) == pytest.approx(float(hard), rel=1e-5)


def student(cls=DeiT, **options):
    token = {"distillation_token": True} if cls is DeiT else {}
    return classifier(cls, num_classes=3, depth=1, **token, **options)


def teacher():
    """A CNN for pixels in 0..255 of another size, which counts its calls by a variable."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((20, 24, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 5, strides=3)(x)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


def compiled(distiller, loss=None):
    eager = keras.backend.backend() == "tensorflow"
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.05), loss, metrics=["accuracy"], run_eagerly=eager)
    return distiller


def one_hot_loss():
    return keras.losses.CategoricalCrossentropy(from_logits=True)


IMAGES, LABELS = coloured(8)


def expected_loss(distiller, x, y, weight=None):
    """Equations 2 and 3, in numpy."""
    logits = [ops.convert_to_numpy(v) for v in distiller.heads(x, training=False)]
    taught = ops.convert_to_numpy(distiller.teacher_logits(x))
    rows = np.arange(len(y))
    own = -np.log(softmax(logits[0])[rows, y])
    if distiller.term.hard:
        term = -np.log(softmax(logits[-1])[rows, taught.argmax(-1)])
    else:
        tau = distiller.term.temperature
        p, q = softmax(taught / tau), softmax(logits[-1] / tau)
        term = (p * np.log(p / q)).sum(-1) * tau**2
    total = (1 - distiller.alpha) * own + distiller.alpha * term
    return (total * (1 if weight is None else weight)).mean()


@pytest.mark.parametrize("hard, weighted", [(True, False), (False, False), (False, True)])
def test_training_by_the_papers_loss(hard, weighted):
    distiller = compiled(train.Distiller(student(), teacher(), hard, 0.3, teacher_size=(20, 24)))
    x = distiller.preprocessor(IMAGES)
    weight = np.linspace(0, 2, 8).astype("float32") if weighted else None
    expected = expected_loss(distiller, x, LABELS, weight)
    frozen = [np.array(w) for w in distiller.teacher.get_weights()]
    before = [np.array(w) for w in distiller.student.get_weights()]
    history = distiller.fit(IMAGES, LABELS, sample_weight=weight, batch_size=8, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected, rel=1e-4)
    assert 0 <= history["accuracy"][0] <= 1
    for old, new in zip(frozen, distiller.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    changed = {
        v.path: not np.array_equal(old, new)
        for v, old, new in zip(
            distiller.student.weights, before, distiller.student.get_weights(), strict=True
        )
    }
    assert changed["head/kernel"] and changed["head_dist/kernel"]
    assert changed["patch_embed/dist_token"]


def test_the_student_is_an_ordinary_deit(tmp_path):
    distiller = compiled(train.Distiller(student(), teacher(), teacher_size=(20, 24)))
    distiller.fit(IMAGES, LABELS, batch_size=8, validation_data=(IMAGES, LABELS), verbose=0)
    expected = distiller.predict(IMAGES, verbose=0)
    assert expected.shape == (8, 3)
    assert len(distiller.classify(IMAGES, top=2)[0]) == 2
    distiller.student.save_to_preset(tmp_path / "student")
    loaded = DeiT.from_preset(tmp_path / "student")
    np.testing.assert_allclose(loaded.predict(IMAGES, verbose=0), expected, atol=1e-6)
    loss, accuracy = distiller.evaluate(IMAGES, LABELS, verbose=0)
    assert accuracy == pytest.approx((expected.argmax(-1) == LABELS).mean())
    own = -np.log(softmax(expected)[np.arange(8), LABELS]).mean()
    assert loss == pytest.approx(own, rel=1e-4)  # of the labels alone


def test_a_student_without_token_and_one_of_ours_as_teacher():
    large = classifier(num_classes=3, image_size=48)
    distiller = compiled(train.Distiller(student(ViT), large, hard=False, alpha=1.0))
    x = distiller.preprocessor(IMAGES)
    seen = ops.image.resize(
        distiller.preprocessor.image_converter.pixels(IMAGES).astype("float32"),
        (48, 48),
        interpolation="bicubic",
        antialias=True,
    )
    expected = large(large.preprocessor.image_converter.normalize(seen))
    np.testing.assert_allclose(distiller.teacher_logits(x), expected, atol=2e-3)
    history = distiller.fit(IMAGES, LABELS, batch_size=8, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0] and large.trainable is False


def test_mixed_pictures_reach_the_teacher_mixed():
    seen = []

    def spy(x):
        seen.append(ops.convert_to_numpy(x))
        return ops.zeros((ops.shape(x)[0], 3))

    distiller = compiled(train.Distiller(student(), spy, hard=False), one_hot_loss())
    converter = distiller.preprocessor.image_converter
    row = train.Recipe("test", mixup=1.0, scale=(1.0, 1.0))
    batches = train.TrainingBatches(IMAGES, LABELS, 3, 8, converter, row)
    if keras.backend.backend() == "jax":
        pytest.skip("the function of numpy arrays is traced: TaughtBatches is for it")
    distiller.fit(batches, verbose=0)
    scale, offset = converter.scale_and_offset()
    np.testing.assert_allclose(seen[-1], (batches[0][0] - offset) / scale, atol=1e-2)
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["function", "stored"])
def test_logits_that_come_with_the_batches(kind):
    distiller = compiled(train.Distiller(student(), None, hard=True), one_hot_loss())
    row = train.Recipe("test", mixup=0.5)
    batches = train.TrainingBatches(
        IMAGES, LABELS, 3, 4, distiller.preprocessor.image_converter, row
    )
    stored = RANDOM.normal(0, 1, (8, 3)).astype("float32")
    function = (lambda x: x.mean((1, 2))) if kind == "function" else stored
    taught = train.TaughtBatches(batches, function)
    x, (y, logits) = taught[1]
    expected = x.mean((1, 2)) if kind == "function" else stored[batches.order()[4:]]
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    np.testing.assert_array_equal(y, batches[1][1])
    history = distiller.fit(
        taught, epochs=2, verbose=0, validation_data=(IMAGES, np.eye(3)[LABELS])
    )
    assert np.isfinite(history.history["loss"]).all()
    assert "val_accuracy" in history.history


def test_finetune_takes_a_distiller():
    distiller = train.Distiller(student(), teacher(), teacher_size=(20, 24))
    history = train.finetune(
        distiller, (IMAGES, LABELS), (IMAGES, LABELS), 1, recipe="deit", batch_size=8, verbose=0
    ).history
    assert np.isfinite(history["loss"]).all() and "val_accuracy" in history
    assert {path for path, *_ in distiller.optimizer.variable_rates} == {
        v.path for v in distiller.student.weights
    }


def test_what_cannot_be_a_student():
    with pytest.raises(ValueError, match="needs a preprocessor and a head"):
        train.Distiller(classifier(preprocessed=False), None)

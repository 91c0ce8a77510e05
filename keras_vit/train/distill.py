"""Distillation from a teacher (https://arxiv.org/abs/2012.12877, section 3)."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.arrays import ModelInput
from keras_vit.layers.patches import pair
from keras_vit.models.classifier import ImageClassifier
from keras_vit.models.trainer import ImageTrainer
from keras_vit.types import Size, Tensor


class TermOfTeacher(keras.losses.Loss):
    """What the student's logits have to learn from the teacher's: of each picture, one number.

    Args:
        hard: cross-entropy with the teacher's decision (equation 3); else the Kullback-Leibler
            divergence of both softmax outputs at the temperature, times its square (equation 2).
        temperature: tau.
    """

    def __init__(self, hard: bool, temperature: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.hard, self.temperature = hard, temperature

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        teacher, student = (ops.cast(x, "float32") for x in (y_true, y_pred))
        if self.hard:
            log = ops.log_softmax(student, axis=-1)
            right = ops.one_hot(ops.argmax(teacher, axis=-1), student.shape[-1], dtype="float32")
            return -ops.sum(right * log, axis=-1)
        log_student, log_teacher = (
            ops.log_softmax(x / self.temperature, axis=-1) for x in (student, teacher)
        )
        divergence = ops.sum(ops.exp(log_teacher) * (log_teacher - log_student), axis=-1)
        return divergence * self.temperature**2


class Distiller(ImageTrainer, keras.Model):
    """A student in training: `compile` and `fit` it, then use `student`.

    A student with a distillation token (DeiT) learns the labels with one head and the teacher with
    the other; any other classifier learns both with its logits. The loss is

        (1 - alpha) loss(class head, y) + alpha term(distillation head, teacher)

    The term's mean is over the batch, in both kinds. DeiT's own code divides the soft term by the
    number of all logits, B x classes: its weight there is that of alpha / classes here
    (deit/losses.py; deit #61).

    The teacher sees the pictures of the batch as the student does, after Mixup, as in DeiT; it is
    called once for a batch, without gradients. Validation is the student's alone.

    Args:
        student: a classifier of this package; it is trained in place.
        teacher: a Keras model or a function of pictures `(B, H, W, C)` that gives logits `(B,
            classes)`; None: the batches have them: y is (labels, logits), see `TaughtBatches`.
        hard: whether the teacher's decision counts, or its probabilities.
        alpha: the teacher's weight; DeiT: 0.5 with hard, 0.1 (equation 2's lambda) with soft.
        temperature: for soft; the paper has 3.
        teacher_size: int or (height, width) that the teacher takes; by default that of one of this
            package's classifiers, else the student's.
        teacher_preprocess: a function from pixels in 0..255, a float tensor, to the teacher's
            input. By default that of one of this package's classifiers, else none:
            `keras.applications.efficientnet` takes pixels. A function must work in a graph.
        kwargs: of `keras.Model`.

    Raises:
        ValueError: the student has no preprocessor, or no head.
    """

    def __init__(
        self,
        student: ImageClassifier,
        teacher: Callable[..., Any] | None,
        hard: bool = True,
        alpha: float = 0.5,
        temperature: float = 3.0,
        teacher_size: Size | None = None,
        teacher_preprocess: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if student.preprocessor is None or not student.num_classes:
            raise ValueError("The student needs a preprocessor and a head, num_classes > 0.")
        self.student = student
        self.num_classes = student.num_classes
        named = {layer.name: layer.output for layer in student.heads}
        heads = [named[name] for name in student.head_names if name in named]
        self.heads = keras.Model(student.input, heads, name="heads")
        self.teacher = teacher
        if isinstance(teacher, keras.Model):
            teacher.trainable = False
        self.term = TermOfTeacher(hard, temperature)
        self.alpha = alpha
        if isinstance(teacher, ImageClassifier):
            teacher_size = teacher_size or teacher.image_size
            if teacher_preprocess is None and teacher.preprocessor is not None:
                teacher_preprocess = _normalising(teacher.preprocessor)
        self.teacher_size = pair(teacher_size) if teacher_size else None
        self.teacher_preprocess = teacher_preprocess
        self.built = True

    @property
    def activation(self) -> str | None:
        """The student's."""
        return self.student.activation

    @activation.setter
    def activation(self, value: str | None) -> None:
        self.student.activation = value

    @property
    def class_names(self) -> Any:
        """The student's."""
        return self.student.class_names

    @property
    def backbone(self) -> Any:
        """The student's."""
        return self.student.backbone

    @property
    def preprocessor(self) -> Any:
        """The student's."""
        return self.student.preprocessor

    def preprocess_samples(self, *args: Any) -> Any:
        """The student's."""
        return self.student.preprocess_samples(*args)

    def teacher_logits(self, x: Tensor) -> Tensor:
        """The teacher's logits of the student's normalised input, `(B, classes)`."""
        scale, offset = constants(self.preprocessor)
        pixels = (ops.cast(x, "float32") - offset) / scale
        size = self.teacher_size
        if size is not None and tuple(pixels.shape[1:3]) != size:
            pixels = ops.image.resize(
                pixels, size, interpolation="bicubic", antialias=True, data_format="channels_last"
            )
        x = self.teacher_preprocess(pixels) if self.teacher_preprocess else pixels
        teacher: Any = self.teacher
        logits = teacher(x, training=False) if isinstance(teacher, keras.Model) else teacher(x)
        return ops.stop_gradient(logits)

    def call(self, x: Tensor, training: bool | None = None) -> Any:
        """The student's logits; in training (a list of each head's, the teacher's or None)."""
        if not training:
            return self.student(x, training=False)
        logits = self.heads(x, training=True)
        logits = logits if isinstance(logits, (list, tuple)) else [logits]
        return list(logits), None if self.teacher is None else self.teacher_logits(x)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        if not isinstance(y_pred, (list, tuple)):
            y = y[0] if isinstance(y, (list, tuple)) else y
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        logits, teacher = y_pred
        if teacher is None:
            y, teacher = y
        own = super().compute_loss(x, y, logits[0], sample_weight, training)
        term = self.term(teacher, logits[-1], sample_weight)
        return (1 - self.alpha) * own + self.alpha * term

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if isinstance(y_pred, (list, tuple)):
            y_pred = sum(y_pred[0]) / len(y_pred[0])  # as DeiT's two heads in inference
        y = y[0] if isinstance(y, (list, tuple)) else y
        return super().compute_metrics(x, y, y_pred, sample_weight)


def _normalising(preprocessor):
    def normalised(pixels):
        scale, offset = constants(preprocessor)
        return pixels * scale + offset

    return normalised


def constants(preprocessor: Any) -> tuple[Tensor, Tensor]:
    """Scale and offset of the normalisation, as tensors of the backend."""
    scale, offset = preprocessor.image_converter.scale_and_offset()
    return ops.convert_to_tensor(scale), ops.convert_to_tensor(offset)


class TaughtBatches(ModelInput):
    """Training batches with a teacher's logits, (x, (y, logits)), for a `Distiller` without one.

    The teacher is any function of numpy arrays, a model of PyTorch or ONNX for instance; it is
    called in the input pipeline, on the augmented pictures.

    Args:
        batches: `TrainingBatches`, or other batches of (x, y).
        teacher: a function of the student's normalised input `(B, H, W, C)` that gives logits `(B,
            classes)`; or stored logits `(pictures, classes)` for batches in a fixed order.
    """

    def __init__(self, batches: Any, teacher: Callable[[np.ndarray], Any] | np.ndarray):
        super().__init__()
        self.batches, self.teacher = batches, teacher

    @property
    def epoch(self) -> int:
        """Of the batches beneath."""
        return self.batches.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.batches.epoch = value

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        x, y, *weight = self.batches[index]
        if isinstance(self.teacher, np.ndarray):
            start = index * self.batches.batch_size
            logits: Any = self.teacher[self.batches.order()[start : start + len(x)]]
        else:
            logits = ops.convert_to_numpy(self.teacher(x))
        return x, (y, np.asarray(logits, "float32")), *weight

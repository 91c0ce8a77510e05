"""What the logits of a head mean: which function makes predictions of them."""

from typing import Any

import keras
import numpy as np

NAMES = ("softmax", "sigmoid", None)

# The losses of Keras that say it: classes that exclude each other, classes that do not, numbers.
LOSSES: dict[str, str | None] = {
    **dict.fromkeys(
        (
            "SparseCategoricalCrossentropy",
            "CategoricalCrossentropy",
            "CategoricalFocalCrossentropy",
            "CategoricalGeneralizedCrossEntropy",
            "KLDivergence",
        ),
        "softmax",
    ),
    **dict.fromkeys(("BinaryCrossentropy", "BinaryFocalCrossentropy"), "sigmoid"),
    **dict.fromkeys(
        (
            "MeanSquaredError",
            "MeanAbsoluteError",
            "MeanAbsolutePercentageError",
            "MeanSquaredLogarithmicError",
            "Huber",
            "LogCosh",
            "Poisson",
        )
    ),
}


def resolve(activation: str | None, num_classes: int) -> str | None:
    """The name of an activation, one of `NAMES`.

    Args:
        activation: the name; `"linear"` is None; `"auto"` is `"softmax"`, or `"sigmoid"` for a
            single logit, of which softmax makes 1 for any image.
        num_classes: number of logits; 0: there are none, and the activation is None.

    Raises:
        ValueError: another name; softmax of a single logit.
    """
    if not num_classes:
        return None
    if activation == "auto":
        return "sigmoid" if num_classes == 1 else "softmax"
    activation = None if activation == "linear" else activation
    if activation not in NAMES:
        raise ValueError(
            f'activation must be "softmax", "sigmoid", None or "auto". Received: {activation!r}'
        )
    if activation == "softmax" and num_classes == 1:
        raise ValueError('The softmax of a single logit is 1 for any image; use "sigmoid" or None.')
    return activation


def of_loss(loss: Any, default: str | None) -> str | None:
    """The activation that a loss goes with, or the default where it does not tell."""
    cls = _loss_class(loss)
    return LOSSES.get(cls.__name__, default) if cls else default


def expects_probabilities(loss: Any) -> bool:
    """Whether a loss would take logits for probabilities."""
    if isinstance(loss, keras.losses.Loss):
        known = LOSSES.get(type(loss).__name__) is not None
        return known and not loss.get_config().get("from_logits", False)
    cls = _loss_class(loss)
    return cls is not None and LOSSES.get(cls.__name__) is not None


def default_loss(activation: str | None) -> keras.losses.Loss:
    """A loss of logits that goes with an activation."""
    if activation == "softmax":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if activation == "sigmoid":
        return keras.losses.BinaryCrossentropy(from_logits=True)
    return keras.losses.MeanSquaredError()


def default_metric(activation: str | None) -> keras.metrics.Metric:
    """A metric of logits that goes with an activation."""
    if activation == "softmax":
        return keras.metrics.SparseCategoricalAccuracy()
    if activation == "sigmoid":
        return keras.metrics.BinaryAccuracy(threshold=0.0)
    return keras.metrics.MeanAbsoluteError()


def _loss_class(loss):
    """The class of a loss given as an object, a name or a function of `keras.losses`."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return None
    if isinstance(loss, keras.losses.Loss):
        return type(loss)
    name = getattr(loss, "__name__", "")
    classes = (getattr(keras.losses, known, None) for known in LOSSES)
    by_function = {_snake(cls.__name__): cls for cls in classes if cls is not None}
    return by_function.get(name)


def _snake(name):
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).strip("_")


def apply(logits: np.ndarray, activation: str | None) -> np.ndarray:
    """Predictions of logits `(..., num_classes)`: probabilities, or the numbers themselves."""
    if activation == "softmax":
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        return exponents / exponents.sum(-1, keepdims=True)
    if activation == "sigmoid":
        return 0.5 * (1 + np.tanh(0.5 * logits))  # no overflow
    return logits

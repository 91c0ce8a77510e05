"""Changes to a file's tensors that renaming cannot express: splits, reshapes, additions.

The rows of `[<model_type>.convert]` in transformers.toml have a key (`*` stands for an index) and
one operation of `VERBS`.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_vit import weights
from keras_vit.keys import translate
from keras_vit.weights import Tensor


def tensors(found: dict[str, Tensor], rows: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """A file's tensors after the operations of the rows; tensors that do not fit stay unchanged.

    Args:
        found: the tensors, by key.
        rows: `{key: {operation: value}}`.

    Returns:
        A new dict.
    """
    found = dict(found)
    for pattern, step in rows.items():
        ((verb, value),) = step.items()
        for key in list(found):
            if translate(key, {pattern: ""}) != key:
                VERBS[verb](found, key, pattern, value)
    return found


def mapped(tensor: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """A function of a tensor, applied when it is read."""
    shape = function(np.broadcast_to(np.empty((), "b"), tensor.shape)).shape
    return Tensor(shape, lambda: function(tensor.read()))


def axes(found: dict[str, Tensor], key: str, pattern: str, count: int) -> None:
    """Prepend that many axes of length 1: `(D,) -> (1, 1, D)`."""
    found[key] = mapped(found[key], lambda x: x.reshape((1,) * count + x.shape))


def flat(found: dict[str, Tensor], key: str, pattern: str, value: bool) -> None:
    """Remove axes of length 1: `(1, 1, 1, D)` or `(D, 1, 1) -> (D,)`."""
    if max(found[key].shape, default=1) == math.prod(found[key].shape):
        found[key] = mapped(found[key], np.ravel)


def cut(found: dict[str, Tensor], key: str, pattern: str, names: list[str]) -> None:
    """Split the first axis into equal parts, each under its own key: `(n * R, ...) -> (R, ...)`."""
    keys = translate(key, {pattern: names})
    if isinstance(keys, list) and found[key].shape and found[key].shape[0] % len(keys) == 0:
        found |= weights.parts(found.pop(key), keys)


def zero_bias(found: dict[str, Tensor], key: str, pattern: str, bias: str) -> None:
    """Add the bias that the file's layer does not have: zeros `(D,)` for `(D, C)`."""
    shape = found[key].shape[:1]
    found.setdefault(bias, Tensor(shape, functools.partial(np.zeros, shape, "float32")))


def first_row_to(found: dict[str, Tensor], key: str, pattern: str, token: str) -> None:
    """Move the first row of a position embedding into its token: `(1, 1 + N, D) -> (1, N, D)`."""
    table, old = found[key], found.get(token)
    if old is None or len(table.shape) != 3 or old.shape != (1, 1, table.shape[2]):
        return
    found[token] = Tensor(old.shape, lambda: old.read() + table.read()[:, :1])
    found[key] = mapped(table, lambda x: x[:, 1:])


def renumber(found: dict[str, Tensor], key: str, pattern: str, name: str) -> None:
    """Move to another key, whose first number is one more."""
    new = str(translate(key, {pattern: name}))
    found[re.sub(r"\d+", lambda match: str(int(match[0]) + 1), new, count=1)] = found.pop(key)


VERBS: dict[str, Callable] = {
    "axes": axes,
    "flat": flat,
    "split": cut,
    "zero_bias": zero_bias,
    "first_row_to": first_row_to,
    "renumber": renumber,
}

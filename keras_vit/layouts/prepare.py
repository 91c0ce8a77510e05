"""What a renaming cannot say: tensors of a file that are cut, shaped or added to before they fit.

The rows of `[<model_type>.prepare]` in transformers.toml name a key (`*` stands for an index) and
one verb of `VERBS`.
"""

import functools

import numpy as np

from keras_vit import weights
from keras_vit.keys import translate
from keras_vit.weights import Tensor


def tensors(found, rows):
    """A file's tensors after the rows' verbs; what does not fit a verb stays as it is.

    Args:
        found: dict of `Tensor`.
        rows: `{key: {verb: value}}`.

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


def mapped(tensor, function):
    """The tensor that a function makes of one, read when it is asked for."""
    shape = function(np.broadcast_to(np.empty((), "b"), tensor.shape)).shape
    return Tensor(shape, lambda: function(tensor.read()))


def axes(found, key, pattern, count):
    """Put that many axes of length 1 before: `(D,) -> (1, 1, D)`."""
    found[key] = mapped(found[key], lambda x: x.reshape((1,) * count + x.shape))


def split(found, key, pattern, names):
    """Cut the first axis into equal parts, under keys of their own: `(n * R, ...) -> (R, ...)`."""
    keys = translate(key, {pattern: names})
    if found[key].shape and found[key].shape[0] % len(keys) == 0:
        found |= weights.parts(found.pop(key), keys)


def zero_bias(found, key, pattern, bias):
    """Add the bias that the file's layer does without: for `(D, C)`, zeros of `(D,)`."""
    shape = found[key].shape[:1]
    found.setdefault(bias, Tensor(shape, functools.partial(np.zeros, shape, "float32")))


def first_row_to(found, key, pattern, token):
    """Move the first row of a position table into its token: `(1, 1 + N, D) -> (1, N, D)`."""
    table, old = found[key], found.get(token)
    if old is None or len(table.shape) != 3 or old.shape != (1, 1, table.shape[2]):
        return
    found[token] = Tensor(old.shape, lambda: old.read() + table.read()[:, :1])
    found[key] = mapped(table, lambda x: x[:, 1:])


VERBS = {"axes": axes, "split": split, "zero_bias": zero_bias, "first_row_to": first_row_to}

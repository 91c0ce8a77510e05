"""What layers may leave out of a graph whose weights are constants (export/fold.py)."""

import contextlib
import contextvars
import dataclasses

_current = contextvars.ContextVar("frozen", default=None)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What is known while the graph of a file is traced; the values of weights are known apart.

    Attributes:
        folded: layers whose work a neighbour's weights do by now: gain and bias
            of a norm, the factors of a LayerScale, the scale of an attention's queries.
        centred: of norms whose input has mean 0.
        recentred: of norms whose output must have mean 0.
    """

    folded: frozenset = frozenset()
    centred: frozenset = frozenset()
    recentred: frozenset = frozenset()


def current():
    """The `Frozen` of the graph that is traced now, None at all other times."""
    return _current.get()


def is_folded(layer):
    return current() is not None and layer in current().folded


@contextlib.contextmanager
def freeze(frozen):
    """In this context layers are traced with that knowledge."""
    token = _current.set(frozen)
    try:
        yield
    finally:
        _current.reset(token)

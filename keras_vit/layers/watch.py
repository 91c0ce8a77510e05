"""A place where explanations see, and differentiate by, values that stay inside a layer."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import TypeAlias

from keras_vit.types import Tensor

Watcher: TypeAlias = Callable[[str, Tensor], Tensor]  # of what a value is, and the value

_watcher: contextvars.ContextVar[Watcher | None] = contextvars.ContextVar("watcher", default=None)


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call a function with the values that layers compute meanwhile, in this thread.

    Args:
        watcher: a function of (what it is, value) that returns the value to go on with:
            `"attention"`, the probabilities `(B, heads, Q, N)` float32 in the order of the layers;
            `"norm1"`, what a transformer block's attention reads, `(B, N, D)`.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def watched(kind: str, value: Tensor) -> Tensor:
    """The value, or what the watcher makes of it."""
    watcher = _watcher.get()
    return value if watcher is None else watcher(kind, value)


def is_watched() -> bool:
    """Whether there is a watcher; a fused kernel would hide the values from it."""
    return _watcher.get() is not None

"""A place where explanations see, and differentiate by, values that stay inside a layer."""

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import TypeAlias

from keras_vit.types import Tensor

Watcher: TypeAlias = Callable[[str, Tensor], Tensor]  # of what a value is, and the value

_watcher: contextvars.ContextVar[Watcher | None] = contextvars.ContextVar("watcher", default=None)
# How many there are in all threads. It is asked first: torch.compile cannot trace a ContextVar, and
# would break the graph in each block.
_count = 0
_counting = threading.Lock()


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call a function with the values that layers compute meanwhile, in this thread.

    Args:
        watcher: a function of (what it is, value) that returns the value to go on with:
            `"attention"`, the probabilities `(B, heads, Q, N)` float32 in the order of the layers;
            `"norm1"`, what a transformer block's attention reads, `(B, N, D)`.
    """
    token = _watcher.set(watcher)
    _add(1)
    try:
        yield
    finally:
        _add(-1)
        _watcher.reset(token)


def _add(number: int) -> None:
    global _count
    with _counting:
        _count += number


def watched(kind: str, value: Tensor) -> Tensor:
    """The value, or what the watcher makes of it."""
    watcher = _watcher.get() if _count else None
    return value if watcher is None else watcher(kind, value)


def is_watched() -> bool:
    """Whether there is a watcher; a fused kernel would hide the values from it."""
    return _count > 0 and _watcher.get() is not None

"""Signals that end a command: they all do what Ctrl-C does."""

import contextlib
import signal
import threading
from collections.abc import Iterator

NAMES = ("SIGTERM", "SIGHUP")  # `kill`, `docker stop`, SLURM's time limit; a closed terminal


class Stopped(KeyboardInterrupt):
    """One of these signals has arrived; its argument is the number."""


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Raise `Stopped` where a signal would kill the process, unless it is ignored, as by nohup."""
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()
    ours = [n for n in numbers if here and signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stop(number, frame):
    raise Stopped(number)


def exit_status(stop: KeyboardInterrupt) -> int:
    """The exit status by a shell's convention: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (stop.args[0] if isinstance(stop, Stopped) else signal.SIGINT)

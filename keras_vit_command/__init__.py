"""The console script `keras-vit`: list | show | predict | finetune | pretrain | evaluate | probe |
embed | search | export | compare | benchmark | explain | demo.

It is a package of its own because importing keras_vit imports TensorFlow. That takes seconds, which
`--help`, `list` and `show` do not need, and prints to stderr from C before any setting is read.
"""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from keras_vit_command.parser import MODULES, parser
from keras_vit_command.signals import exit_status, stopping

__all__ = ["main"]

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what C libraries write to stderr and keep Python's own messages.

    With TF_CPP_MIN_LOG_LEVEL set to 0 or 1, nothing is dropped.
    """
    if os.environ.setdefault(LEVEL, "3") in ("0", "1"):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing, os.fdopen(os.dup(kept), "w", buffering=1) as python:
            own = sys.stderr if sys.stderr is not sys.__stderr__ else python
            os.dup2(nothing.fileno(), 2)
            with contextlib.redirect_stderr(own):
                yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def main() -> int:
    """The console script: run the command and return the exit status."""
    with quiet():
        from absl import logging

        logging.set_verbosity(logging.ERROR)  # from grain, which looks for JAX, and TensorFlow
        return run()


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, 2 after an error message, 130 after Ctrl-C,
    143 after SIGTERM."""
    args = parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # our messages say the same
    try:
        with stopping(), short_warnings():
            module = importlib.import_module(f"keras_vit_command.{MODULES[args.command]}")
            return getattr(module, f"run_{args.command}")(args)
    except KeyboardInterrupt as stop:
        print(with_notes("\nkeras-vit: stopped.", stop), file=sys.stderr)
        return exit_status(stop)
    except BrokenPipeError:  # `keras-vit list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError, RuntimeError, ArithmeticError) as error:
        if args.traceback:
            raise
        print(with_notes(f"keras-vit: {error}", error), file=sys.stderr)
        return 2


def with_notes(text: str, error: BaseException) -> str:
    """The text and what else is known about an error, in one line."""
    return " ".join([text, *getattr(error, "__notes__", ())])


@contextlib.contextmanager
def short_warnings() -> Iterator[None]:
    """Print warnings as messages of the command, without the line of code."""
    kept = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"keras-vit: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = kept

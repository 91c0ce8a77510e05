"""The console script `keras-vit`: `keras_vit.cli` without TensorFlow's greeting.

TensorFlow greets on stderr, from C, as it is imported, before any of its settings is read; and
keras_vit imports it. So this module stands beside the package.
"""

import contextlib
import os
import sys

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@contextlib.contextmanager
def quiet():
    """Drops what C libraries write to stderr; Python's own messages stay.

    Who sets TF_CPP_MIN_LOG_LEVEL to 0 or 1 wants to read it, and does.
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


def main():
    """Run the command; the exit status."""
    with quiet():
        from absl import logging

        logging.set_verbosity(logging.ERROR)  # of grain, which misses JAX, and of TensorFlow
        from keras_vit import cli

        return cli.main()

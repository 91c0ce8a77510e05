"""Processes that start in a moment: forked from one that has imported the package once."""

import multiprocessing
from multiprocessing import forkserver


def fresh_server(*modules):
    """A multiprocessing context whose server starts anew, with these modules and today's
    environment.

    There is one server for each test process: without a stop, a second test file would get the
    first one's modules and environment variables.
    """
    forkserver._forkserver._stop()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context

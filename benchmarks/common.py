"""Shared by these programs: import timm, read photographs, measure processes."""

import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys

import numpy as np


@functools.cache
def _operators():
    """Define two operators; without them a torchvision without compiled ones breaks timm's import.

    They exist as long as the returned object."""
    import torch

    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return operators


def import_timm():
    """The module."""
    _operators()
    import timm

    return timm


def photographs(folder):
    """(paths, classes) of a folder with labels.json, {file: class}."""
    labels = json.loads((folder / "labels.json").read_text("utf-8"))
    return [folder / name for name in labels], np.array(list(labels.values()))


def medians(programs, runs):
    """Medians of what programs measure, in alternation, each run in its own process.

    Args:
        programs: {name: Python code that prints RESULT and numbers on a line}.
        runs: how many runs count, after one to warm up.

    Returns:
        {name: [number, ...]}
    """
    results = {name: [] for name in programs}
    for i in range(runs + 1):
        for name, code in programs.items():
            numbers = _result(code)
            if i:
                results[name].append(numbers)
    return {n: [statistics.median(c) for c in zip(*r, strict=True)] for n, r in results.items()}


def _result(code):
    paths = [str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT"))
    return [float(word) for word in line.split()[1:]]

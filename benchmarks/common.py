"""What several of these programs do: import timm, read photographs, measure in processes."""

import functools
import json
import statistics
import subprocess
import sys

import numpy as np


@functools.cache
def _operators():
    """Two operators without which a torchvision that has no compiled ones stops timm's import.

    They live as long as what is returned."""
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
    """What programs measure, each run in a process of its own, in alternation.

    Args:
        programs: {name: Python code that prints RESULT and numbers on a line}.
        runs: how many count; one more of each goes first.

    Returns:
        {name: [number, ...]}
    """
    results = {name: [] for name in programs}
    for i in range(runs + 1):
        for name, code in programs.items():
            found = _result(code)
            if i:
                results[name].append(found)
    return {n: [statistics.median(c) for c in zip(*r, strict=True)] for n, r in results.items()}


def _result(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT"))
    return [float(word) for word in line.split()[1:]]

"""The checkpoint's key for a variable.

One rule turns a variable's path into its key, `blocks_0/attn/qkv/kernel` <->
`blocks.0.attn.qkv.weight`; exceptions are rows of the presets.
"""

import os.path
import re
from collections.abc import Iterable
from typing import Any

LEAVES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "scale": "weight",  # RMSNorm
    "beta": "bias",
    "layer_scale": "gamma",
    "bias_table": "relative_position_bias_table",  # heads first in the file
    "shift": "beta",  # ResMLP's Affine
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def key_of(path: str, rename: dict | None = None) -> str:
    """The key of a variable's path: `blocks_0/norm1/gamma` -> `blocks.0.norm1.weight`."""
    *layers, leaf = path.split("/")
    layers = [re.sub(r"_(\d+)(_|$)", r".\1.", layer).strip(".") for layer in layers]
    key = translate(".".join([*layers, LEAVES.get(leaf, leaf)]), rename or {})
    return key if isinstance(key, str) else key[0]


def translate(key: str, rename: dict) -> str | list[str]:
    """The key after the longest row of `rename` that equals it or is a prefix of it; `*` in a row
    stands for any index, and a row with the index itself goes before it."""
    numbers = re.findall(r"(?<=\.)\d+(?=\.|$)", key)
    template = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", key)
    parts = template.split(".")
    for length in range(len(parts), 0, -1):
        for form in (key.split("."), parts):
            row = rename.get(".".join(form[:length]))
            if row is not None:
                rows = [
                    ".".join([r, *form[length:]]) for r in ([row] if isinstance(row, str) else row)
                ]
                filled = [_fill(r, numbers) for r in rows]
                return filled[0] if isinstance(row, str) else filled
    return key


def _fill(template, numbers):
    numbers = iter(numbers)
    return re.sub(r"(?<=\.)\*(?=\.|$)", lambda _: next(numbers), template)


def spellings(key: str, rename: dict) -> list[list[str]]:
    """All spellings of a key in a file: a list of lists of keys to be joined."""
    versions: list[dict[str, Any]] = [{}]
    for row, value in rename.items():
        parts = value if isinstance(value, list) else [value]
        options = [[p.strip() for p in part.split("|")] for part in parts]
        count = max(map(len, options))
        versions += [{} for _ in range(count - len(versions))]
        for i in range(count):
            chosen = [o[min(i, len(o) - 1)] for o in options]
            versions[i][row] = chosen if isinstance(value, list) else chosen[0]
    found = []
    for version in versions:
        keys = translate(key, {**versions[0], **version})
        keys = keys if isinstance(keys, list) else [keys]
        if keys not in found:
            found.append(keys)
    return found


def wrapper(keys: Iterable[str], anchors: Iterable[str] = ()) -> str:
    """What a wrapper put before a model's keys: `module.` (DataParallel), `_orig_mod.`
    (torch.compile), `base_model.model.` (PEFT); before all of them, or else before the trunk's.

    Args:
        keys: the keys of a file.
        anchors: spellings of a key that each trunk has once.
    """
    layers = [key.split(".")[:-1] for key in keys]
    common = os.path.commonprefix(layers)
    if common and len(layers) > 1:
        return ".".join([*common, ""])
    found = {k.removesuffix(a) for k in keys for a in anchors if k.endswith(f".{a}")}
    return found.pop() if len(found) == 1 else ""


def matched(key: str, patterns: dict[str, str], leaves: dict[str, str]) -> str | None:
    """The key after the first pattern that matches; None: none matches.

    Args:
        patterns: {regular expression: key, with `\\1` for what its first group matched}.
        leaves: {last part of the key: what it becomes}.
    """
    for pattern, template in patterns.items():
        match = re.fullmatch(pattern, key)
        if match:
            *layers, leaf = match.expand(template).split(".")
            return ".".join([*layers, leaves.get(leaf, leaf)])
    return None

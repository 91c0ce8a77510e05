"""The key under which a checkpoint holds a variable.

It is the variable's path by one rule, `blocks_0/attn/qkv/kernel` <-> `blocks.0.attn.qkv.weight`;
the exceptions are rows of the presets.
"""

import re

LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "scale": "weight",  # RMSNorm
    "beta": "bias",
    "layer_scale": "gamma",
    "shift": "beta",  # ResMLP's Affine
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def key_of(path, rename=None):
    """The key of a variable's path: `blocks_0/norm1/gamma` -> `blocks.0.norm1.weight`."""
    *layers, leaf = path.split("/")
    layers = [re.sub(r"_(\d+)(_|$)", r".\1.", layer).strip(".") for layer in layers]
    return translate(".".join([*layers, LEAVES.get(leaf, leaf)]), rename or {})


def translate(key, rename):
    """The key after the longest row of `rename` that is the key or leads it; `*` in a row stands
    for an index."""
    numbers = re.findall(r"(?<=\.)\d+(?=\.|$)", key)
    template = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", key)
    parts = template.split(".")
    for length in range(len(parts), 0, -1):
        row = rename.get(".".join(parts[:length]))
        if row is not None:
            rest = parts[length:]
            if isinstance(row, str):
                return _fill(".".join([row, *rest]), numbers)
            return [_fill(".".join([part, *rest]), numbers) for part in row]
    return key


def _fill(template, numbers):
    numbers = iter(numbers)
    return re.sub(r"(?<=\.)\*(?=\.|$)", lambda _: next(numbers), template)


def spellings(key, rename):
    """All ways in which a file may hold a key: a list of lists of keys to be joined."""
    versions = [{}]
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

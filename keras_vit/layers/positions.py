"""Position embeddings of a grid of patches."""

import numpy as np

POSITIONS = ("learned", "sincos2d", "conditional", "none")


def sincos(grid: tuple[int, int], width: int, prefix: int = 0) -> np.ndarray:
    """Fixed positions `(prefix + rows * columns, width)` float32: half of the channels for the
    column and half for the row, each sines and then cosines of frequencies 10000^(-4 k / width).

    MAE's (section 3 of https://arxiv.org/abs/2111.06377; mae/util/pos_embed.py).

    Args:
        grid: (rows, columns).
        width: number of channels.
        prefix: number of tokens before the patches; their positions are 0.

    Raises:
        ValueError: 4 does not divide the width.
    """
    if width % 4:
        raise ValueError(f"Sines and cosines need a width divisible by 4. Received: {width}")
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    rows, columns = np.meshgrid(*map(np.arange, grid), indexing="ij")
    angles = [np.outer(axis.reshape(-1), frequencies) for axis in (columns, rows)]
    parts = [f(angle) for angle in angles for f in (np.sin, np.cos)]
    table = np.concatenate(parts, axis=1).astype("float32")
    return np.pad(table, ((prefix, 0), (0, 0)))

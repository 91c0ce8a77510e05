"""Adapts pretrained position embeddings and patch kernels to another image size, patch size or
number of channels."""

from typing import Any

import numpy as np

from keras_vit.layers.resample import RESAMPLE, resize_matrix
from keras_vit.weights import WeightsError

Shape = tuple[int, ...]


def resize_positions(
    table: np.ndarray,
    old_grid: Shape,
    new_grid: Shape,
    prefix: int = 0,
    resample: str = "bicubic",
) -> np.ndarray:
    """Resample a position embedding to another grid: `(1, prefix + h*w, D) -> (1, prefix + h'*w',
    D)`.

    Matches timm's `resample_abs_pos_embed`: `"bicubic"` is antialiased, the other methods are not.

    Args:
        table: the position embedding.
        old_grid, new_grid: (h, w) and (h', w'), in patches.
        prefix: number of leading rows that belong to prefix tokens and are not resampled.
        resample: a key of `RESAMPLE`.

    Raises:
        WeightsError: if the table does not have `prefix + h*w` rows.
    """
    rows = old_grid[0] * old_grid[1]
    if table.shape[1] != prefix + rows:
        raise WeightsError(
            f"The position embedding has {table.shape[1]} rows, but a grid of {old_grid[0]} x "
            f"{old_grid[1]} patches with {prefix} prefix tokens needs {prefix + rows}."
        )
    if tuple(old_grid) == tuple(new_grid):
        return table
    vertical, horizontal = matrices(old_grid, new_grid, resample)
    grid = table[0, prefix:].astype("float64").reshape(*old_grid, -1)
    grid = np.einsum("hy,yxd->hxd", vertical, grid)
    grid = np.einsum("wx,hxd->hwd", horizontal, grid).reshape(1, -1, table.shape[-1])
    return np.concatenate([table[:, :prefix], grid.astype(table.dtype)], axis=1)


def resize_patches(
    kernel: np.ndarray, shape: Shape, old_size: Shape, resample: str = "bicubic"
) -> np.ndarray:
    """Adapt a patch embedding kernel to another patch size and number of channels: `(h, w, C, D)
    -> shape`.

    Args:
        kernel: the kernel in the checkpoint.
        shape: `(h', w', C', D)`.
        old_size: (h, w), the patch size in the checkpoint's config, in pixels.
        resample: a key of `RESAMPLE`.

    Raises:
        WeightsError: if the kernel is not of `old_size`, or has a number of channels that cannot be
            adapted.
    """
    if kernel.shape[:2] != tuple(old_size):
        raise WeightsError(
            f"The patch kernel in the file is {kernel.shape[0]} x {kernel.shape[1]} pixels, "
            f"but the config says patch_size={old_size[0]}."
        )
    return resize_kernel(adapt_channels(kernel, shape[-2]), shape[:2], resample)


def resize_kernel(kernel: np.ndarray, new_size: Shape, resample: str = "bicubic") -> np.ndarray:
    """Resize a patch embedding kernel: `(h, w, C, D) -> (h', w', C, D)`.

    The pseudo-inverse resize of FlexiViT (https://arxiv.org/abs/2212.08013, section 3.4): applied
    to a resized patch, the new kernel gives the least-squares approximation of what the old kernel
    gives on the original patch. Matches timm's `resample_patch_embed`.
    """
    old_size = kernel.shape[:2]
    if tuple(new_size) == tuple(old_size):
        return kernel
    # timm aligns the corners of position embeddings only.
    matrix = np.kron(*matrices(old_size, new_size, resample.removesuffix("_corners")))
    inverse = np.linalg.pinv(matrix.T)  # (h'*w', h*w)
    flat = kernel.astype("float64").reshape(old_size[0] * old_size[1], -1)
    return (inverse @ flat).reshape(*new_size, *kernel.shape[2:]).astype(kernel.dtype)


def matrices(old_size: Shape, new_size: Shape, resample: str) -> list[np.ndarray]:
    """The resampling matrices of both axes, `(h', h)` and `(w', w)`."""
    options: Any = RESAMPLE[resample]
    return [resize_matrix(o, n, **options) for o, n in zip(old_size, new_size, strict=True)]


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapt an RGB kernel to another number of channels: `(h, w, 3, D) -> (h, w, channels, D)`.

    As timm's `adapt_input_conv`: for one channel the kernel is summed over RGB; otherwise the RGB
    kernels are repeated in turn and scaled by 3 / channels.

    Raises:
        WeightsError: if the kernel has neither 3 nor `channels` channels.
    """
    if kernel.shape[-2] == channels:
        return kernel
    if kernel.shape[-2] != 3:
        raise WeightsError(
            f"in_channels={channels} needs a checkpoint with 3 or {channels} input channels. "
            f"Received: a kernel with {kernel.shape[-2]}."
        )
    if channels == 1:
        return kernel.sum(axis=-2, keepdims=True)
    repeated = np.concatenate([kernel] * -(-channels // 3), axis=-2)[..., :channels, :]
    return repeated * np.asarray(3 / channels, kernel.dtype)


def resize_bias_table(table: np.ndarray, old_window: Shape, new_window: Shape) -> np.ndarray:
    """Resize a table of relative position biases to another window: `((2h - 1) * (2w - 1), heads)
    -> ((2h' - 1) * (2w' - 1), heads)`; a table of rank 3, `(2h - 1, 2w - 1, heads)`, keeps it.

    Matches timm's `resize_rel_pos_bias_table`: the old distances are laid at geometric steps, so
    that they become sparser from the centre outwards and span the new window; the new ones are
    interpolated linearly between them. If one edge of the window changes, so do the values along
    the other.

    Args:
        table: the biases, row by row.
        old_window, new_window: (h, w) and (h', w').
    """
    if tuple(old_window) == tuple(new_window):
        return table
    rows, columns = (
        _geometric(2 * old - 1, 2 * new - 1)
        for old, new in zip(old_window, new_window, strict=True)
    )
    grid = table.astype("float64").reshape(rows.shape[1], columns.shape[1], -1)
    grid = np.einsum("hy,wx,yxd->hwd", rows, columns, grid)
    shape = grid.shape if table.ndim == 3 else (-1, table.shape[-1])
    return grid.reshape(shape).astype(table.dtype)


def resize_biases(
    table: np.ndarray, shape: Shape, old_window: Shape, new_window: Shape
) -> np.ndarray:
    """`resize_bias_table` of a table that may end with rows for prefix tokens, which stay: `((2h -
    1) * (2w - 1) + n, heads) -> shape`."""
    rows = len(table) - (shape[0] - (2 * new_window[0] - 1) * (2 * new_window[1] - 1))
    resized = resize_bias_table(table[:rows], old_window, new_window)
    return np.concatenate([resized, table[rows:]])


def resize_line(table: np.ndarray, length: int, resample: str = "bicubic") -> np.ndarray:
    """Resample the positions of one axis, `(n, D) -> (length, D)`, as `resize_positions` resamples
    those of a grid.

    Args:
        table: the positions.
        length: their new number.
        resample: a key of `RESAMPLE`.
    """
    if len(table) == length:
        return table
    options: Any = RESAMPLE[resample]
    matrix = resize_matrix(len(table), length, **options)
    return (matrix @ table.astype("float64")).astype(table.dtype)


def clip_distances(table: np.ndarray, length: int) -> np.ndarray:
    """Vectors of the distances -k ... k for other largest distances, `(2k + 1, d) -> (length, d)`:
    a longer distance has the vector of the longest there was (section 3.2 of
    https://arxiv.org/abs/1803.02155). Three more rows, for prefix tokens, stay."""
    more = 0 if length % 2 else 3  # distances are odd in number
    old, new = (len(table) - more) // 2, (length - more) // 2
    kept = np.clip(np.arange(-new, new + 1), -old, old) + old
    return np.concatenate([table[kept], table[len(table) - more :]])


def _geometric(old, new):
    """Weights `(new, old)` of linear interpolation from geometric steps."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:  # until the steps reach from the centre to the edge
        ratio = (low + high) / 2
        reach = (1 - ratio ** (old // 2)) / (1 - ratio)
        low, high = (low, ratio) if reach > new // 2 else (ratio, high)
    steps = np.cumsum(ratio ** np.arange(old // 2))
    points = np.concatenate([-steps[::-1], [0], steps]).astype("float32")
    wanted = np.arange(new) - new // 2
    return np.stack([np.interp(wanted, points, line) for line in np.eye(old)], axis=1)

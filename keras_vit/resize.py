"""Position tables and patch kernels for another image size, patch size or number of channels."""

import dataclasses

import numpy as np

from keras_vit.layers.resample import RESAMPLE, resize_matrix
from keras_vit.weights import WeightsError


@dataclasses.dataclass(frozen=True)
class Resize:
    """What `load` may resize: position tables, patch kernels, input channels.

    Args:
        old_grid, new_grid: (rows, columns) of patches, in the file and in the model.
        prefix: rows of the table that belong to prefix tokens.
        old_patch: edge of the patches in the file, in pixels.
        positions, patches, stems: the keys of the table, of a kernel that makes patches, and of the
            first kernel of a convolutional stem.
        resample: a key of `RESAMPLE`.
    """

    old_grid: tuple
    new_grid: tuple
    prefix: int
    old_patch: int
    positions: tuple = ("pos_embed",)
    patches: tuple = ("patch_embed.proj.weight", "stem.proj.weight")
    stems: tuple = ("patch_embed.backbone.stem.conv.weight", "patch_embed.backbone.conv.weight")
    resample: str = "bicubic"

    def handles(self, key):
        return key in self.positions + self.patches + self.stems

    def __call__(self, key, array, shape):
        if key in self.positions:
            return resize_positions(array, self.old_grid, self.new_grid, self.prefix, self.resample)
        if key in self.patches and array.shape[:2] != (self.old_patch, self.old_patch):
            raise WeightsError(
                f"The patch kernel is {array.shape[0]} x {array.shape[1]} pixels in the file, "
                f"but patch_size is {self.old_patch}."
            )
        if array.shape[-2] != shape[-2]:
            array = adapt_channels(array, shape[-2])
        return resize_kernel(array, shape[:2], self.resample)


def resize_positions(table, old_grid, new_grid, prefix=0, resample="bicubic"):
    """A position table for another grid: `(1, prefix + h*w, D) -> (1, prefix + h'*w', D)`.

    As timm's `resample_abs_pos_embed`: "bicubic" is antialiased, the others are not; the prefix
    rows stay.
    """
    rows = old_grid[0] * old_grid[1]
    if table.shape[1] != prefix + rows:
        raise WeightsError(
            f"The position table has {table.shape[1]} rows, but a grid of {old_grid[0]} x "
            f"{old_grid[1]} patches and "
            f"{prefix} prefix tokens make {prefix + rows}."
        )
    if tuple(old_grid) == tuple(new_grid):
        return table
    down, across = matrices(old_grid, new_grid, resample)
    grid = table[0, prefix:].astype("float64").reshape(*old_grid, -1)
    grid = np.einsum("hy,yxd->hxd", down, grid)
    grid = np.einsum("wx,hxd->hwd", across, grid).reshape(1, -1, table.shape[-1])
    return np.concatenate([table[:, :prefix], grid.astype(table.dtype)], axis=1)


def resize_kernel(kernel, new_size, resample="bicubic"):
    """A patch kernel for another patch size: `(h, w, C, D) -> (h', w', C, D)`.

    The pseudo-inverse resize of FlexiViT, section 3.4 of https://arxiv.org/abs/2212.08013: the
    kernel whose product with a resized patch comes nearest to the old kernel's with the patch; the
    same as timm's `resample_patch_embed`.
    """
    old_size = kernel.shape[:2]
    if tuple(new_size) == tuple(old_size):
        return kernel
    # timm aligns the corners of tables only.
    matrix = np.kron(*matrices(old_size, new_size, resample.removesuffix("_corners")))
    inverse = np.linalg.pinv(matrix.T)  # (h'*w', h*w)
    flat = kernel.astype("float64").reshape(old_size[0] * old_size[1], -1)
    return (inverse @ flat).reshape(*new_size, *kernel.shape[2:]).astype(kernel.dtype)


def matrices(old_size, new_size, resample):
    """The matrices of the two axes, `(h', h)` and `(w', w)`."""
    options = RESAMPLE[resample]
    return [resize_matrix(o, n, **options) for o, n in zip(old_size, new_size, strict=True)]


def adapt_channels(kernel, channels):
    """A first kernel for other channels, as timm does: `(h, w, C, D) -> (h, w, channels, D)`.

    One: the sum over the three; more: the three repeated in turn, scaled by 3 / channels.
    """
    if kernel.shape[-2] != 3:
        raise WeightsError(
            f"in_channels={channels} can be adapted from a kernel of 3 channels only. The file's "
            f"has {kernel.shape[-2]}."
        )
    if channels == 1:
        return kernel.sum(axis=-2, keepdims=True)
    repeated = np.concatenate([kernel] * -(-channels // 3), axis=-2)[..., :channels, :]
    return repeated * np.asarray(3 / channels, kernel.dtype)

"""Patches whose size depends on what the image shows."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.layers.base import initial, register
from keras_vit.layers.projections import PatchProjection
from keras_vit.layers.split import check_divides
from keras_vit.layers.windows import windows
from keras_vit.types import Shape, Tensor


@register
class AdaptivePatches(PatchProjection):
    """Small patches where an image has detail, large ones elsewhere: `(B, H, W, C) -> (B, N, D)`.

    A quadtree of two levels: the image is cut into M cells of 2 P x 2 P pixels, and the cells of
    highest variance into four patches of P x P each, so that N = M + 3 * k for every image, k =
    round(split * M). A whole cell is averaged to P x P pixels and projected by the same kernel
    (mixed resolution, https://arxiv.org/abs/2304.00287, section 3, where the number of levels is
    free and a network says what has detail); a learned vector for each scale is added. Among cells
    of equal variance the first ones are split. The tokens are in order: the patches of the split
    cells, four together, then the whole cells, both row by row.

    Args:
        embed_dim, use_bias: as in `PatchEncoder`.
        patch_size: P, in pixels; 2 * P must divide height and width.
        split: the part of the cells that is split, between 0 and 1.

    Raises:
        ValueError: if 2 * P does not divide the image, its size is unknown, it has fewer than two
            cells, or `split` is out of range.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int = 16,
        use_bias: bool = True,
        split: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(embed_dim, patch_size, use_bias, **kwargs)
        if not 0 < split < 1:
            raise ValueError(f"split must lie between 0 and 1. Received: {split}")
        self.split = split

    def build(self, input_shape: Shape) -> None:
        cells = self.cells(*input_shape[1:3])
        self.proj = self.projection(input_shape, self.patch_size, self.patch_size)
        self.scale_embed = self.add_weight(
            shape=(1, 2, self.embed_dim), initializer=initial(), name="scale_embed"
        )
        first = np.arange(cells[0])[:, None] * 4 * cells[1] + np.arange(cells[1]) * 2
        four = np.array([0, 1, 2 * cells[1], 2 * cells[1] + 1])
        self.fours = (first.reshape(-1, 1) + four).astype("int32")  # patches of each cell, (M, 4)

    def cells(self, height: int | None, width: int | None) -> tuple[int, int]:
        """(rows, columns) of the cells of an image."""
        side = 2 * self.patch_size
        if height is None or width is None:
            raise ValueError(
                "Adaptive patches are for images of one size. Received: image_size=None"
            )
        check_divides(side, height, width, "twice the patch size,")
        if height * width < 2 * side**2:
            raise ValueError(
                f"Adaptive patches need at least two cells of {side} x {side} pixels. Received: an "
                f"image of {height} x {width}"
            )
        return height // side, width // side

    def count_split(self, cells: int) -> int:
        """How many cells are split: at least one, and not all."""
        return min(max(round(self.split * cells), 1), cells - 1)

    def count(self, height: int | None, width: int | None) -> int:
        """The number of tokens, N."""
        rows, columns = self.cells(height, width)
        return rows * columns + 3 * self.count_split(rows * columns)

    def compute_output_spec(self, images: Tensor) -> keras.KerasTensor:
        shape = (images.shape[0], self.count(*images.shape[1:3]), self.embed_dim)
        return keras.KerasTensor(shape, self.compute_dtype)

    @property
    def summands(self) -> list[Tensor]:
        return [*super().summands, self.scale_embed]

    def choice(self, images: Tensor) -> Tensor:
        """The patches that become tokens, `(B, H, W, C) -> (B, N)` int32: their number, row by row,
        and for a whole cell its number plus that of all patches."""
        side, (rows, columns) = 2 * self.patch_size, self.cells(*images.shape[1:3])
        pixels = windows(ops.cast(images, "float32"), (side, side))
        pixels = pixels - ops.mean(pixels, axis=1, keepdims=True)
        detail = ops.mean(ops.square(pixels), axis=(1, 2))
        # Sorting is stable on all backends.
        order = ops.argsort(-ops.reshape(detail, (-1, rows * columns)), axis=1)
        first = self.count_split(rows * columns)
        # As floats, which every runtime sorts.
        divided, whole = (
            ops.cast(ops.sort(ops.cast(part, "float32"), axis=1), "int32")
            for part in (order[:, :first], order[:, first:])
        )
        patches = ops.take(ops.convert_to_tensor(self.fours), divided, axis=0)
        patches = ops.reshape(patches, (-1, 4 * first))
        return ops.concatenate([patches, whole + 4 * rows * columns], axis=1)

    def chosen(self, small: Tensor, large: Tensor, images: Tensor) -> Tensor:
        """What belongs to the tokens: `(B, 4 * M, D), (B, M, D) -> (B, N, D)`."""
        total, width = small.shape[1] + large.shape[1], small.shape[2]
        choice = self.choice(images)
        first = ops.arange(ops.shape(choice)[0], dtype="int32")[:, None] * total
        every = ops.reshape(ops.concatenate([small, large], axis=1), (-1, width))
        x = ops.take(every, ops.reshape(choice + first, (-1,)), axis=0)
        return ops.reshape(x, (-1, choice.shape[1], width))

    def positions(self, table: Tensor, images: Tensor) -> Tensor:
        """The positions of the tokens, `(B, N, D)`: a whole cell has the mean of its patches.

        Args:
            table: positions of all small patches, `(1, H / P * W / P, D)`.
            images: as in a call.
        """
        (rows, columns), batch = self.cells(*images.shape[1:3]), ops.shape(images)[0]
        small = ops.convert_to_tensor(table)
        large = halved(ops.reshape(small, (1, 2 * rows, 2 * columns, -1)))
        large = ops.reshape(large, (1, rows * columns, -1))
        small, large = (ops.broadcast_to(x, (batch, *x.shape[1:])) for x in (small, large))
        return self.chosen(small, large, images)

    def call(self, images: Tensor) -> Tensor:
        # Both scales of the whole image: the convolutions cost less than gathering pixels.
        scales = ops.convert_to_tensor(self.scale_embed)
        levels = [self.proj(x) for x in (images, halved(images))]
        small, large = (
            ops.reshape(x, (-1, x.shape[1] * x.shape[2], self.embed_dim)) + scales[:, i : i + 1]
            for i, x in enumerate(levels)
        )
        return self.chosen(small, large, images)


def halved(x: Tensor) -> Tensor:
    """Means of 2 x 2 neighbours: `(B, H, W, C) -> (B, H / 2, W / 2, C)`."""
    return ops.average_pool(x, 2, 2, data_format="channels_last")


def tokens_of_patches(choice: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The token that covers each patch of the grid, `(B, N) -> (B, rows * columns)` int.

    Args:
        choice: of `AdaptivePatches.choice`.
        grid: (rows, columns) of the small patches.
    """
    rows, columns = grid
    numbers = np.arange(rows * columns).reshape(rows, columns)
    cells = np.arange(rows * columns // 4).reshape(rows // 2, columns // 2)
    cells = cells.repeat(2, axis=0).repeat(2, axis=1)
    place = np.full((len(choice), rows * columns * 5 // 4), -1)
    np.put_along_axis(place, choice, np.arange(choice.shape[1])[None], axis=1)
    small, large = place[:, numbers.ravel()], place[:, rows * columns + cells.ravel()]
    return np.where(small >= 0, small, large)

"""Images split into patches: how many there are, and their pixels."""

from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import Layer, register
from keras_vit.types import Size, Tensor


def pair(size: Size) -> tuple[int, int]:
    """Expand an int to (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def patch_count(patch_size: int, height: int | None, width: int | None) -> int | None:
    """The number of patches of an image; None if its size is not known.

    Raises:
        ValueError: if the patch size does not divide the image.
    """
    check_divides(patch_size, height, width)
    if height is None or width is None:
        return None
    return (height // patch_size) * (width // patch_size)


def check_divides(
    patch_size: int, height: int | None, width: int | None, what: str = "the patch size"
) -> None:
    """Check that the patch size divides an image.

    Args:
        patch_size: in pixels.
        height, width: of the image, in pixels; None is not checked.
        what: what to call `patch_size` in the message.

    Raises:
        ValueError: if it does not.
    """
    for name, size in (("height", height), ("width", width)):
        if size is not None and size % patch_size:
            low = size // patch_size * patch_size
            raise ValueError(
                f"The {name} of the input images (image_size) must be a multiple of "
                f"{what} {patch_size}. Received: {size} pixels. The nearest multiples are "
                f"{low or patch_size} and {low + patch_size}."
            )


@register
class Patches(Layer):
    """Split images into flattened patches, row by row: `(B, H, W, C) -> (B, N, P*P*C)`.

    Has no weights. `PatchEncoder` accepts these patches as well as images; the results are equal,
    and images take one operation less.

    Args:
        patch_size: P, in pixels; must divide height and width.

    Raises:
        ValueError: if the patch size does not divide height and width.
    """

    def __init__(self, patch_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.patch_size = patch_size

    def compute_output_spec(self, images: Tensor) -> keras.KerasTensor:
        _, height, width, channels = images.shape
        count = patch_count(self.patch_size, height, width)
        shape = (images.shape[0], count, self.patch_size**2 * channels)
        return keras.KerasTensor(shape, self.compute_dtype)

    def call(self, images: Tensor) -> Tensor:
        p, channels = self.patch_size, images.shape[3]
        check_divides(p, *images.shape[1:3])
        height, width = ops.shape(images)[1:3]
        x = ops.reshape(images, (-1, height // p, p, width // p, p, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, (height // p) * (width // p), p * p * channels))

"""Names of types for signatures."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypedDict

import numpy as np
from PIL import Image as PIL

Tensor: TypeAlias = Any  # of Keras' backend, a numpy array or a `keras.KerasTensor`
Shape: TypeAlias = tuple[Any, ...]  # ints, None where a length is not known
Size: TypeAlias = int | tuple[int, int]  # both edges, or (height, width), in pixels
Path: TypeAlias = str | os.PathLike[str]
Image: TypeAlias = Path | PIL.Image | np.ndarray
Images: TypeAlias = Image | Sequence[Image]  # one, several, or an array `(B, H, W, C)`
ImageSet: TypeAlias = np.ndarray | Sequence[Image]  # an array `(B, H, W, C)`, or one by one
# (items, how many) -> the same items; it shows how far the loop over them is
Progress: TypeAlias = Callable[[Iterable[Any], int], Iterable[Any]]


class PresetOptions(TypedDict, total=False):
    """The arguments of `from_preset`, beside the preset; `ImageClassifier.from_preset` says what
    they mean."""

    num_classes: int | None
    image_size: Size | str | None
    in_channels: int | None
    patch_size: int | None
    pooling: str | None
    drop_rate: float | None
    drop_path_rate: float | None
    patch_drop_rate: float | None
    dtype: Any
    load_weights: bool
    num_heads: int | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    crop_pct: float | None
    crop_mode: str | None
    interpolation: str | None
    labels: Sequence[str] | None
    revision: str | None
    token: str | bool | None
    cache_dir: Path | None
    local_files_only: bool

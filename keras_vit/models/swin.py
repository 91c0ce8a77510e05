"""Swin Transformer (https://arxiv.org/abs/2103.14030): attention in windows that move from block to
block, on maps that shrink from stage to stage.

`SwinBackbone.graph` is figure 3a from left to right; `SwinBlock` is figure 3b.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import keras

from keras_vit import checks
from keras_vit.layers.base import Norm, Scale, register
from keras_vit.layers.block import Block
from keras_vit.layers.drop import DropPath, drop_path_rates
from keras_vit.layers.merging import PatchEmbed, PatchMerging
from keras_vit.layers.mlp import Mlp
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import check_divides, pair
from keras_vit.layers.window_attention import WindowAttention
from keras_vit.models.base import PyramidBackbone, Resizer
from keras_vit.models.classifier import AverageClassifier
from keras_vit.resize import resize_bias_table, resize_patches
from keras_vit.types import Shape, Size, Tensor


@register
class SwinBlock(Block):
    """Attention in windows and an MLP, each after a norm: `(B, H, W, C) -> (B, H, W, C)`.

    Figure 3b and equation 3.

    Args:
        num_heads: number of attention heads; must divide C.
        window, shift, pad_first: as in `WindowAttention`.
        mlp_ratio, activation, drop_rate: as in `Mlp`.
        qkv_bias: whether the query, key and value projection has a bias.
        norm_eps: epsilon of the norms.
        attn_drop_rate: dropout rate of the attention probabilities.
        drop_path: stochastic depth rate of both residual branches.
    """

    def __init__(
        self,
        num_heads: int,
        window: Sequence[int],
        shift: Sequence[int] = (0, 0),
        pad_first: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        activation: str = "gelu",
        norm_eps: float = 1e-5,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.window = tuple(window)
        self.shift = tuple(shift)
        self.pad_first = pad_first
        self.mlp_ratio = mlp_ratio
        self.qkv_bias = qkv_bias
        self.activation = activation
        self.norm_eps = norm_eps
        self.drop_rate = drop_rate
        self.attn_drop_rate = attn_drop_rate
        self.drop_path = drop_path

    def build(self, input_shape: Shape) -> None:
        self.norm1 = self.norm("norm1", input_shape)
        self.attn = self.attention(input_shape)
        self.norm2 = self.norm("norm2", input_shape)
        self.mlp = self.child(
            Mlp,
            input_shape,
            ratio=self.mlp_ratio,
            activation=self.activation,
            drop_rate=self.drop_rate,
            name="mlp",
        )
        self.skip = self.child(DropPath, rate=self.drop_path, name="skip")

    def norm(self, name: str, shape: Shape, **options: Any) -> keras.layers.Layer:
        """Make a norm."""
        return self.child(normalization, shape, epsilon=self.norm_eps, name=name, **options)

    def attention(self, input_shape: Shape) -> WindowAttention:
        """Make the attention layer, `attn`."""
        return self.child(WindowAttention, input_shape, name="attn", **self.windowed())

    def windowed(self) -> dict[str, Any]:
        """The arguments of the attention layer."""
        names = ("num_heads", "window", "shift", "pad_first", "qkv_bias")
        options = {name: getattr(self, name) for name in names}
        return {**options, "drop_rate": self.attn_drop_rate}

    def links(self) -> Iterable[Norm | Scale]:
        if not any(self.attn.windows.padding):  # the zeros are no output of the norm
            yield self.norm1.read_by(*self.attn.readers)
        yield self.norm2.read_by(*self.mlp.readers)

    @property
    def summands(self) -> list[Any]:
        """The weights that write to the residual stream."""
        dense = (self.attn.proj, self.mlp.fc2)
        return [variable for layer in dense for variable in (layer.kernel, layer.bias)]

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def scores(self, x: Tensor) -> Tensor:
        """The attention map for the block's input: `(B, H, W, C) -> (B, heads, H * W, H * W)`,
        float32; 0 outside the windows."""
        return self.attn.scores(self.norm1(x))

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        x = x + self.skip(self.attn(self.norm1(x), training=training), training=training)
        return x + self.skip(self.mlp(self.norm2(x), training=training), training=training)


@register
class SwinBackbone(PyramidBackbone):
    """Swin backbone, images to a feature map: `(B, H, W, C) -> (B, H / (8 * P), W / (8 * P), 8 *
    D)` for four stages.

    Args:
        image_size: int or (height, width), in pixels.
        patch_size: P, in pixels; must divide height and width.
        in_channels: C.
        embed_dim: D, the width of the first stage; it doubles from stage to stage.
        depths: number of blocks in each stage.
        num_heads: number of attention heads in each stage.
        window_size: edge of the windows, in tokens: an int, (h, w), or one of these for each stage.
            A window is no larger than the map. Every other block moves the map by half a window,
            unless the window covers it.
        pad_first: where the windows do not divide the map, zeros are added and take part in the
            attention. False: after the map moved (Microsoft, timm). True: before (transformers,
            torchvision); and where the window covers one axis of the map, the other does not move.
        drop_path_rate: stochastic depth rate of the last block; the rate grows linearly from 0.
        dtype: Keras dtype policy.
        mlp_ratio and the others: as in `SwinBlock`.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, the patch size does not divide the image, or there is
            not one window, depth and number of heads for each stage.
    """

    block_cls: ClassVar[type[SwinBlock]] = SwinBlock
    norm_first: ClassVar[bool] = True  # in `PatchMerging`
    passes_on: ClassVar[tuple[Callable, ...]] = (SwinBlock.__init__,)
    given: ClassVar[tuple[str, ...]] = ("window", "shift", "drop_path")

    @classmethod
    def graph(
        cls,
        *,
        image_size: Size = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Any = 7,
        drop_path_rate: float = 0.0,
        dtype: Any = None,
        **block: Any,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        stages = windowing(image_size, patch_size, depths, window_size, block["pad_first"])
        inputs = keras.Input((*pair(image_size), in_channels), name="images")
        x = PatchEmbed(embed_dim, patch_size, dtype=dtype, name="patch_embed")(inputs)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        levels, first = {}, round(math.log2(patch_size))
        for i, (depth, (window, shift)) in enumerate(zip(depths, stages, strict=True)):
            if i:
                name = f"layers_{i}_downsample"
                x = PatchMerging(cls.norm_first, dtype=dtype, name=name)(x)
            for j in range(depth):
                x = cls.block_cls(
                    num_heads[i],
                    window,
                    shift if j % 2 else (0, 0),
                    drop_path=next(rates),
                    dtype=dtype,
                    name=f"layers_{i}_blocks_{j}",
                    **cls.of_stage(i, block),
                )(x)
            levels[f"P{first + i}"] = x
        x = normalization(epsilon=block["norm_eps"], dtype=dtype, name="norm")(x)
        return inputs, x, levels

    @staticmethod
    def of_stage(index: int, block: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a stage's blocks, of those of all blocks."""
        return block

    @classmethod
    def complete(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """As in `Backbone`; `window_size` becomes a pair for each stage."""
        full = super().complete(options)
        stages = len(full["depths"])
        if len(full["num_heads"]) != stages:
            raise checks.WrongValue(
                f"num_heads must have one number for each of {stages} stages. Received: "
                f"{full['num_heads']}"
            )
        return {**full, "window_size": per_stage(full["window_size"], stages)}

    @classmethod
    def changed(cls, options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """As in `Backbone`; the windows grow and shrink with the grid of patches, each axis by
        itself, as in timm's `set_input_size`."""
        full = cls.complete(options)
        new = {**full, **changes}
        old_grid, grid = (maps(o["image_size"], o["patch_size"], 1)[0] for o in (full, new))
        new["window_size"] = tuple(
            tuple(max(1, w * n // o) for w, n, o in zip(window, grid, old_grid, strict=True))
            for window in full["window_size"]
        )
        return new

    @staticmethod
    def grid(options: Mapping[str, Any]) -> tuple[int, int]:
        return maps(options["image_size"], options["patch_size"], len(options["depths"]))[-1]

    def resizers(self, old: Mapping[str, Any]) -> dict[str, Resizer]:
        """Adapt the bias tables to other windows, and the patch kernel to another patch size or
        number of channels."""
        patch = pair(old["patch_size"])
        found: dict[str, Resizer] = {
            "patch_embed/proj/kernel": lambda x, shape: resize_patches(x, shape, patch)
        }
        names = ("image_size", "patch_size", "depths", "window_size", "pad_first")
        stages = (windowing(*(o[name] for name in names)) for o in (old, self.options))
        for i, ((before, _), (after, _)) in enumerate(zip(*stages, strict=True)):
            found[f"layers_{i}_*/relative_position_bias_table"] = functools.partial(
                lambda x, shape, windows: resize_bias_table(x, *windows), windows=(before, after)
            )
        return found

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        width, channels, patch, _ = checks.shape(shapes, "patch_embed.proj.weight", 4)
        count = checks.repeated(shapes, "layers.*.blocks.")
        first = [f"layers.{i}.blocks.0." for i in range(count)]
        hidden = checks.shape(shapes, "layers.0.blocks.0.mlp.fc1.weight", 2)[0]
        return {
            "patch_size": patch,
            "in_channels": channels,
            "embed_dim": width,
            "depths": tuple(checks.repeated(shapes, f"layers.{i}.blocks.*.") for i in range(count)),
            "mlp_ratio": checks.ratio(hidden, width),
            **cls.of_attention(shapes, first, patch),
        }

    @staticmethod
    def of_attention(
        shapes: Mapping[str, tuple[int, ...]], first: Sequence[str], patch: int
    ) -> dict[str, Any]:
        """Hyper-parameters that the attention of each stage's first block shows."""
        tables = [checks.shape(shapes, f"{p}attn.relative_position_bias_table", 2) for p in first]
        windows = [(checks.square(rows, "Distances") + 1) // 2 for rows, _ in tables]
        return {
            "num_heads": tuple(heads for _, heads in tables),
            "window_size": tuple((w, w) for w in windows),
            "image_size": windows[-1] * patch * 2 ** (len(first) - 1),
        }

    @property
    def blocks(self) -> list[SwinBlock]:
        """The blocks of all stages, in order."""
        count = enumerate(self.options["depths"])
        return [self.get_layer(f"layers_{i}_blocks_{j}") for i, n in count for j in range(n)]

    @property
    def final_norm(self) -> keras.layers.Layer:
        return self.get_layer("norm")

    @property
    def first_projection(self) -> keras.layers.Conv2D:
        return self.get_layer("patch_embed").proj


def maps(image_size: Size | None, patch_size: int, stages: int) -> list[tuple[int, int]]:
    """(rows, columns) of the map in each stage.

    Raises:
        ValueError: if the image size is None, or the patch size does not divide it.
    """
    if image_size is None:
        raise ValueError(
            "The windows of a Swin depend on the image size: it takes images of one size only. "
            "Received: image_size=None"
        )
    height, width = pair(image_size)
    check_divides(patch_size, height, width)
    rows, columns = height // patch_size, width // patch_size
    return [(-(-rows // 2**i), -(-columns // 2**i)) for i in range(stages)]


def per_stage(window_size: Any, stages: int) -> tuple[tuple[int, int], ...]:
    """(h, w) for each stage, of an int, (h, w), or one of these for each stage.

    Raises:
        ValueError: if it is neither.
    """
    whole = isinstance(window_size, (list, tuple))
    if not whole or (len(window_size) == 2 and all(isinstance(w, int) for w in window_size)):
        window_size = [window_size] * stages
    if len(window_size) != stages:
        raise checks.WrongValue(
            f"window_size must be one window, or one for each of {stages} stages. Received: "
            f"{window_size!r:.80}"
        )
    return tuple(checks.pair(window, "window_size") for window in window_size)


Windowing = tuple[tuple[int, int], tuple[int, int]]


def windowing(
    image_size: Size, patch_size: int, depths: Sequence[int], window_size: Any, pad_first: bool
) -> list[Windowing]:
    """Window and shift of each stage's blocks. A window that covers an axis of the map is as large
    as the map there, and does not move."""
    found = []
    sizes = maps(image_size, patch_size, len(depths))
    for size, window in zip(sizes, per_stage(window_size, len(depths)), strict=True):
        shift = [0 if n <= w else w // 2 for n, w in zip(size, window, strict=True)]
        covers = any(n <= w for n, w in zip(size, window, strict=True))
        rows, columns = (min(n, w) for n, w in zip(size, window, strict=True))
        shift = [0, 0] if pad_first and covers else shift
        found.append(((rows, columns), (shift[0], shift[1])))
    return found


@register
class Swin(AverageClassifier):
    """Swin classifier. The arguments are those of `ViT`; `pooling` defaults to `"avg"`."""

    backbone_cls = SwinBackbone

"""Patch embedding: from images to a sequence of tokens."""

from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import Layer, initial, one_of, register
from keras_vit.layers.drop import PatchDropout
from keras_vit.layers.norm import normalization
from keras_vit.layers.positions import POSITIONS, AxialPositions, sincos
from keras_vit.layers.resample import BACKEND, resize_matrix
from keras_vit.types import Shape, Size, Tensor


def pair(size: Size) -> tuple[int, int]:
    """Expand an int to (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


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
class PatchEncoder(Layer):
    """Patch projection, prefix tokens and position embedding: `(B, H, W, C) -> (B, prefix + N,
    D)`.

    Equation 1 of https://arxiv.org/abs/2010.11929. The order of the tokens is: class token,
    distillation token (DeiT, https://arxiv.org/abs/2012.12877), register tokens
    (https://arxiv.org/abs/2309.16588), patches row by row. The input may also be the output of
    `Patches`, `(B, N, P*P*C)`; without `grid_size` it must then come from square images.

    Args:
        embed_dim: D, the width of a token.
        patch_size: P, in pixels.
        class_token: whether to prepend a class token.
        distillation_token: whether to prepend a distillation token.
        register_tokens: number of register tokens.
        no_embed_class: if True, only patches have a position embedding; if False, prefix tokens
            have one as well.
        use_bias: whether the projection has a bias.
        embed_norm: norm after the projection, `"layer"` or `"rms"` (AIMv2); None for no norm.
        norm_eps: epsilon of that norm.
        grid_size: (rows, columns) of the position embedding; None for the grid of the images that
            the layer is built with. For images of another size the position embedding is
            resampled inside the model: bicubic and antialiased, like timm's `dynamic_img_size`,
            also for FlexiViT and C-RADIO.
        drop_rate: dropout rate of the tokens.
        patch_drop_rate: the part of the patches that training leaves out, as in `PatchDropout`.
        positions: `"learned"`; `"learned2d"`: `AxialPositions`, of patches alone; `"sincos2d"`:
            fixed sines and cosines of row and column, 0 for prefix tokens (MAE,
            https://arxiv.org/abs/2111.06377); `"none"`, and `"relative"` or `"rotary"`, which the
            blocks have: nothing is added here.

    Raises:
        ValueError: if `positions` is unknown, the patch size does not divide the image, or neither
            `grid_size` nor the size of the images is known.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_size: int = 16,
        class_token: bool = True,
        distillation_token: bool = False,
        register_tokens: int = 0,
        no_embed_class: bool = False,
        use_bias: bool = True,
        embed_norm: str | None = None,
        norm_eps: float = 1e-6,
        grid_size: Size | None = None,
        drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        positions: str = "learned",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.class_token = class_token
        self.distillation_token = distillation_token
        self.register_tokens = register_tokens
        self.no_embed_class = no_embed_class
        self.use_bias = use_bias
        self.embed_norm = embed_norm
        self.norm_eps = norm_eps
        self.grid_size = None if grid_size is None else pair(grid_size)
        self.drop_rate = drop_rate
        self.patch_drop_rate = patch_drop_rate
        self.positions = one_of(positions, "positions", POSITIONS)

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens before the patches."""
        return int(self.class_token) + int(self.distillation_token) + self.register_tokens

    def build(self, input_shape: Shape) -> None:
        p, width = self.patch_size, self.embed_dim
        self.from_patches = len(input_shape) == 3
        grid: Any = self.grid_size
        if self.from_patches:
            side = round((input_shape[1] or 0) ** 0.5)
            grid = grid or (side, side)
            channels = input_shape[2] // (p * p)
        else:
            check_divides(p, *input_shape[1:3])
            channels = input_shape[3]
            if grid is None and None not in input_shape[1:3]:
                grid = (input_shape[1] // p, input_shape[2] // p)
            elif grid is None and self.positions != "none":
                raise ValueError(
                    "grid_size is required for images of unknown size. Received: grid_size=None"
                )
        self.table_size = grid
        self.proj = self.child(
            keras.layers.Conv2D,
            (None, None, None, channels),
            filters=width,
            kernel_size=p,
            strides=p,
            use_bias=self.use_bias,
            kernel_initializer=initial(),
            data_format="channels_last",
            name="proj",
        )
        self.norm = None
        if self.embed_norm:
            norm = {"norm": self.embed_norm, "epsilon": self.norm_eps, "name": "embed_norm"}
            self.norm = self.child(normalization, (None, None, width), **norm)
        self.cls_token = self.token("cls_token", int(self.class_token))
        self.dist_token = self.token("dist_token", int(self.distillation_token))
        self.reg_token = self.token("reg_token", self.register_tokens)
        self.pos_embed: Any = None
        ahead = 0 if self.no_embed_class else self.num_prefix_tokens
        if self.positions == "learned":
            self.pos_embed = self.token("pos_embed", ahead + grid[0] * grid[1])
        elif self.positions == "sincos2d":
            table = sincos(grid, width, ahead)[None]
            self.pos_embed = self.add_weight(
                shape=table.shape,
                initializer=lambda shape, dtype: ops.convert_to_tensor(table, dtype),
                trainable=False,
                name="pos_embed",
            )
        elif self.positions == "learned2d":
            self.axes = self.child(AxialPositions, (None, None, width), grid=grid, name="axes")
        self.drop = self.child(keras.layers.Dropout, rate=self.drop_rate, name="drop")
        self.patch_drop = self.child(
            PatchDropout,
            rate=self.patch_drop_rate,
            num_prefix_tokens=self.num_prefix_tokens,
            name="patch_drop",
        )

    def token(self, name: str, count: int) -> Tensor | None:
        """Make `count` learned tokens, `(1, count, D)`; None for 0."""
        if not count:
            return None
        return self.add_weight(shape=(1, count, self.embed_dim), initializer=initial(), name=name)

    @property
    def prefix(self) -> list[Tensor]:
        """The class, distillation and register tokens that exist, `(1, n, D)` each, in order."""
        tokens = (self.cls_token, self.dist_token, self.reg_token)
        return [token for token in tokens if token is not None]

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        patches = len(x.shape) == 3
        count = x.shape[1] if patches else patch_count(self.patch_size, *x.shape[1:3])
        count = None if count is None else count + self.num_prefix_tokens
        return keras.KerasTensor((x.shape[0], count, self.embed_dim), self.compute_dtype)

    def tokens(self, x: Tensor) -> Tensor:
        """Project the patches, without positions: `(B, H, W, C)` or `(B, N, P*P*C) -> (B, N,
        D)`."""
        if self.from_patches:
            x = ops.matmul(x, ops.reshape(self.proj.kernel, (-1, self.embed_dim)))
            x = x + self.proj.bias if self.use_bias else x
        else:
            rows, columns = self.grid(x)
            x = ops.reshape(self.proj(x), (-1, rows * columns, self.embed_dim))
        return x if self.norm is None else self.norm(x)

    def assemble(self, tokens: Tensor, grid: tuple[Any, Any] | None = None) -> Tensor:
        """Prepend the prefix tokens and add the positions: `(B, N, D) -> (B, prefix + N, D)`.

        Args:
            tokens: output of `tokens`.
            grid: (rows, columns) of the patches; None for the grid of the position embedding.
        """
        batch = ops.shape(tokens)[0]
        prefix = [ops.broadcast_to(t, (batch, *t.shape[1:])) for t in self.prefix]
        if self.positions == "learned2d":
            tokens = self.axes(tokens, grid=grid)
        if self.pos_embed is None:
            return ops.concatenate([*prefix, tokens], axis=1) if prefix else tokens
        positions = self.position_table(grid or self.table_size)
        if self.no_embed_class:
            return ops.concatenate([*prefix, tokens + positions], axis=1)
        return ops.concatenate([*prefix, tokens], axis=1) + positions

    def grid(self, x: Tensor) -> tuple[Any, Any]:
        """(rows, columns) of the patches of an input: ints if static, else tensors."""
        if self.from_patches:
            return self.table_size
        sizes = zip(x.shape[1:3], ops.shape(x)[1:3], strict=True)
        rows, columns = (
            (dynamic if static is None else static) // self.patch_size for static, dynamic in sizes
        )
        return rows, columns

    def position_table(self, grid: tuple[Any, Any]) -> Tensor:
        """The position embedding for a grid, `(1, N, D)`, or `(1, prefix + N, D)` if prefix tokens
        have positions; those are not resampled."""
        if all(isinstance(size, int) for size in grid) and grid == self.table_size:
            return self.pos_embed
        count = 0 if self.no_embed_class else self.num_prefix_tokens
        # For a static grid the matrices are constants; for a dynamic one the graph computes them.
        static = all(isinstance(size, int) for size in grid)
        xp: Any = {} if static else {"xp": BACKEND, "dtype": "float32"}
        vertical, horizontal = (
            ops.convert_to_tensor(resize_matrix(old, new, **xp), "float32")
            for old, new in zip(self.table_size, grid, strict=True)
        )
        table = ops.reshape(
            ops.cast(self.pos_embed[:, count:], "float32"), (*self.table_size, self.embed_dim)
        )
        table = ops.einsum("hy,yxd->hxd", vertical, table)
        table = ops.reshape(ops.einsum("wx,hxd->hwd", horizontal, table), (1, -1, self.embed_dim))
        table = ops.cast(table, self.compute_dtype)
        return ops.concatenate([self.pos_embed[:, :count], table], axis=1) if count else table

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        x = self.drop(self.assemble(self.tokens(x), self.grid(x)), training=training)
        return self.patch_drop(x, training=training)

"""Patch embedding: from images to a sequence of tokens."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_vit.layers.base import Layer, initial, one_of, register
from keras_vit.layers.conv import Conv
from keras_vit.layers.drop import PatchDropout
from keras_vit.layers.norm import normalization
from keras_vit.layers.patch_kinds import PATCHES, kind_of
from keras_vit.layers.positions import POSITIONS, AxialPositions, sincos
from keras_vit.layers.projections import ConditionalPositions
from keras_vit.layers.resample import BACKEND, resize_matrix
from keras_vit.layers.split import check_divides, pair, patch_count
from keras_vit.types import Shape, Size, Tensor


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
            https://arxiv.org/abs/2111.06377); `"conditional"`: `ConditionalPositions`
            (CPVT); `"none"`, and `"relative"` or `"rotary"`, which the blocks have: nothing is
            added here.
        patches: `"plain"`, `"overlapping"` (`OverlappingPatches`), `"hybrid"` (`HybridPatches`),
            `"positional"` (`PositionalPatches`) or `"adaptive"` (`AdaptivePatches`); for arguments
            of these layers a mapping: `{"kind": "overlapping", "kernel_size": 7}`. All but the
            first take images only.

    Raises:
        ValueError: if `positions` or `patches` is unknown or does not fit the other arguments, the
            patch size does not divide the image, or neither `grid_size` nor the size of the images
            is known.
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
        patches: str | Mapping[str, Any] = "plain",
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
        self.patches = patches
        self.kind, self.patch_options = kind_of(patches)
        if self.kind == "adaptive" and positions in ("conditional", "learned2d"):
            raise ValueError(
                f'positions="{positions}" needs a grid of patches. Received: patches="adaptive"'
            )

    @property
    def num_prefix_tokens(self) -> int:
        """The number of tokens before the patches."""
        return int(self.class_token) + int(self.distillation_token) + self.register_tokens

    def build(self, input_shape: Shape) -> None:
        p, width = self.patch_size, self.embed_dim
        self.from_patches = len(input_shape) == 3
        if self.from_patches and (self.kind != "plain" or self.positions == "conditional"):
            raise ValueError(
                f'patches="{self.kind}" and positions="{self.positions}" need images (B, H, W, C), '
                f"not patches. Received: shape {tuple(input_shape)}"
            )
        grid = self.grid_of_table(input_shape)
        channels = input_shape[2] // (p * p) if self.from_patches else input_shape[3]
        self.table_size = grid
        options = {"use_bias": self.use_bias, "name": "proj", **self.patch_options}
        if cls := PATCHES[self.kind]:
            options |= {"embed_dim": width, "patch_size": p}
            self.proj = self.child(cls, input_shape, **options)
        else:
            shape = (None, None, None, channels)
            self.proj = self.child(Conv, shape, filters=width, kernel_size=p, strides=p, **options)
        self.norm = None
        if self.embed_norm:
            norm = {"norm": self.embed_norm, "epsilon": self.norm_eps, "name": "embed_norm"}
            self.norm = self.child(normalization, (None, None, width), **norm)
        self.peg = None
        if self.positions == "conditional":
            self.peg = self.child(ConditionalPositions, (None, None, None, width), name="peg")
        self.cls_token = self.token("cls_token", int(self.class_token))
        self.dist_token = self.token("dist_token", int(self.distillation_token))
        self.reg_token = self.token("reg_token", self.register_tokens)
        self.add_positions(grid)
        self.drop = self.child(keras.layers.Dropout, rate=self.drop_rate, name="drop")
        self.patch_drop = self.child(
            PatchDropout,
            rate=self.patch_drop_rate,
            num_prefix_tokens=self.num_prefix_tokens,
            name="patch_drop",
        )

    def grid_of_table(self, input_shape: Shape) -> Any:
        """(rows, columns) of the position embedding; None: unknown, and there is none."""
        if self.from_patches:
            side = round((input_shape[1] or 0) ** 0.5)
            return self.grid_size or (side, side)
        check_divides(self.patch_size, *input_shape[1:3])
        if self.grid_size is None and None not in input_shape[1:3]:
            return input_shape[1] // self.patch_size, input_shape[2] // self.patch_size
        if self.grid_size is None and self.positions not in ("conditional", "none"):
            raise ValueError(
                "grid_size is required for images of unknown size. Received: grid_size=None"
            )
        return self.grid_size

    def add_positions(self, grid: Any) -> None:
        """Make the position embedding for a grid of patches."""
        self.pos_embed: Any = None
        ahead = 0 if self.no_embed_class else self.num_prefix_tokens
        if self.positions == "learned":
            self.pos_embed = self.token("pos_embed", ahead + grid[0] * grid[1])
        elif self.positions == "sincos2d":
            table = sincos(grid, self.embed_dim, ahead)[None]
            self.pos_embed = self.add_weight(
                shape=table.shape,
                initializer=lambda shape, dtype: ops.convert_to_tensor(table, dtype),
                trainable=False,
                name="pos_embed",
            )
        elif self.positions == "learned2d":
            self.axes = self.child(
                AxialPositions, (None, None, self.embed_dim), grid=grid, name="axes"
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

    @property
    def separate(self) -> bool:
        """Whether each token is a sum over its own patch alone."""
        return self.kind == "plain" and self.norm is None and self.peg is None

    @property
    def summands(self) -> list[Tensor]:
        """The variables that add up to a token, channels last; none if it is no such sum."""
        halves = self.positions == "learned2d"  # neither has mean 0 with the other
        if halves or self.norm is not None or self.peg is not None:
            return []
        proj = self.proj
        own = [proj.kernel, proj.bias] if self.kind == "plain" else proj.summands
        return [v for v in (*own, *self.prefix, self.pos_embed) if own and v is not None]

    def static_grid(self, shape: Shape) -> list[int | None]:
        """(rows, columns) of the patches of images `shape`, None where it is not known; adaptive
        patches have no grid."""
        adaptive = self.kind == "adaptive"
        return [None if adaptive or not n else n // self.patch_size for n in shape[1:3]]

    def compute_output_spec(self, x: Tensor, training: bool | None = None) -> keras.KerasTensor:
        patches = len(x.shape) == 3
        if self.kind == "adaptive":
            count = self.proj.count(*x.shape[1:3])
        else:
            count = x.shape[1] if patches else patch_count(self.patch_size, *x.shape[1:3])
        count = None if count is None else count + self.num_prefix_tokens
        return keras.KerasTensor((x.shape[0], count, self.embed_dim), self.compute_dtype)

    def tokens(self, x: Tensor) -> Tensor:
        """Project the patches, without positions: `(B, H, W, C)` or `(B, N, P*P*C) -> (B, N,
        D)`."""
        if self.from_patches:
            x = ops.matmul(x, ops.reshape(self.proj.kernel, (-1, self.embed_dim)))
            x = x + self.proj.bias if self.use_bias else x
            return x if self.norm is None else self.norm(x)
        grid, x = self.grid(x), self.proj(x)
        x = x if self.norm is None else self.norm(x)
        x = x if self.peg is None else self.peg(x)
        if self.kind == "adaptive":
            return x
        return ops.reshape(x, (-1, grid[0] * grid[1], self.embed_dim))

    def assemble(
        self, tokens: Tensor, grid: tuple[Any, Any] | None = None, images: Tensor = None
    ) -> Tensor:
        """Prepend the prefix tokens and add the positions: `(B, N, D) -> (B, prefix + N, D)`.

        Args:
            tokens: output of `tokens`.
            grid: (rows, columns) of the patches; None for the grid of the position embedding.
            images: input of `tokens`, on which the places of adaptive patches depend.
        """
        batch = ops.shape(tokens)[0]
        prefix = [ops.broadcast_to(t, (batch, *t.shape[1:])) for t in self.prefix]
        if self.positions == "learned2d":
            tokens = self.axes(tokens, grid=grid)
        if self.pos_embed is None:
            return ops.concatenate([*prefix, tokens], axis=1) if prefix else tokens
        positions = self.position_table(grid or self.table_size)
        if self.kind == "adaptive":
            ahead = 0 if self.no_embed_class else self.num_prefix_tokens
            first = ops.broadcast_to(positions[:, :ahead], (batch, ahead, self.embed_dim))
            own = self.proj.positions(positions[:, ahead:], images)
            positions = ops.concatenate([first, own], axis=1) if ahead else own
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
        x = self.assemble(self.tokens(x), self.grid(x), x)
        return self.patch_drop(self.drop(x, training=training), training=training)

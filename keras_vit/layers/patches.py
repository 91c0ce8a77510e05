"""From a picture to a sequence of tokens."""

import keras
from keras import ops

from keras_vit.layers.base import Layer, initial, register
from keras_vit.layers.norm import normalization
from keras_vit.layers.resample import BACKEND, resize_matrix


def pair(size):
    """An int or (height, width) as a pair of ints."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


@register
class Patches(Layer):
    """Cuts pictures into flat patches: `(B, H, W, C) -> (B, N, P*P*C)`, row by row; no weights.

    `PatchEncoder` takes its output, or the picture itself (the same numbers, one operation less).

    Args:
        patch_size: P, in pixels; must divide height and width.
    """

    def __init__(self, patch_size, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size

    def compute_output_spec(self, images):
        _, height, width, channels = images.shape
        count = patch_count(self.patch_size, height, width)
        shape = (images.shape[0], count, self.patch_size**2 * channels)
        return keras.KerasTensor(shape, self.compute_dtype)

    def call(self, images):
        p, channels = self.patch_size, images.shape[3]
        check_divides(p, *images.shape[1:3])
        height, width = ops.shape(images)[1:3]
        x = ops.reshape(images, (-1, height // p, p, width // p, p, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, (height // p) * (width // p), p * p * channels))


def patch_count(patch_size, height, width):
    """How many patches a picture has; None where its size is not known."""
    check_divides(patch_size, height, width)
    if None in (height, width):
        return None
    return (height // patch_size) * (width // patch_size)


def check_divides(patch_size, height, width, what="the patch size"):
    for name, size in (("height", height), ("width", width)):
        if size is not None and size % patch_size:
            low = size // patch_size * patch_size
            raise ValueError(
                f"The {name} of the images that the model takes (image_size) must be a multiple "
                f"of {what} {patch_size}. Received: {size} pixels; "
                f"the nearest multiples are {low or patch_size} and {low + patch_size}."
            )


@register
class PatchEncoder(Layer):
    """Projects patches, prepends learned tokens, adds learned positions: `(B, H, W, C) -> (B,
    prefix + N, D)`.

    Equation 1 of https://arxiv.org/abs/2010.11929. The order of tokens is class, distillation
    (DeiT, https://arxiv.org/abs/2012.12877), registers (https://arxiv.org/abs/2309.16588), patches
    row by row. The input may also be the output of `Patches`, `(B, N, P*P*C)`, of a square picture.

    Args:
        embed_dim: D, the width of a token.
        patch_size: P, in pixels.
        class_token, distillation_token: whether there is one.
        register_tokens: how many.
        no_embed_class: True: positions for patches only; False: prefix tokens have a row in the
            table, too.
        use_bias: bias of the projection.
        embed_norm: a norm of the projected patches, `"layer"` or `"rms"` (AIMv2), or None.
        norm_eps: epsilon of that norm.
        grid_size: (rows, columns) of the position table. None: those of the picture that the layer
            is built with. For pictures of another size the table is resampled in the graph
            (bicubic, antialiased: as timm's `dynamic_img_size`, for a FlexiViT and a C-RADIO, too).
        drop_rate: dropout on the tokens, in training only.

    Raises:
        ValueError: if the patch size does not divide the picture.
    """

    def __init__(
        self,
        embed_dim,
        patch_size=16,
        class_token=True,
        distillation_token=False,
        register_tokens=0,
        no_embed_class=False,
        use_bias=True,
        embed_norm=None,
        norm_eps=1e-6,
        grid_size=None,
        drop_rate=0.0,
        **kwargs,
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

    @property
    def num_prefix_tokens(self):
        return int(self.class_token) + int(self.distillation_token) + self.register_tokens

    def build(self, input_shape):
        p, width = self.patch_size, self.embed_dim
        self.from_patches = len(input_shape) == 3
        if self.from_patches:
            side = round((input_shape[1] or 0) ** 0.5)
            grid = self.grid_size or (side, side)
            channels = input_shape[2] // (p * p)
        else:
            check_divides(p, *input_shape[1:3])
            channels = input_shape[3]
            if self.grid_size is None and None in input_shape[1:3]:
                raise ValueError(
                    "grid_size must be given for pictures of unknown size. Received: None"
                )
            grid = self.grid_size or (input_shape[1] // p, input_shape[2] // p)
        self.table_size = grid
        self.proj = self.child(
            keras.layers.Conv2D,
            filters=width,
            kernel_size=p,
            strides=p,
            use_bias=self.use_bias,
            kernel_initializer=initial(),
            data_format="channels_last",
            name="proj",
        )
        self.proj.build((None, None, None, channels))
        self.norm = None
        if self.embed_norm:
            norm = {"norm": self.embed_norm, "epsilon": self.norm_eps, "name": "embed_norm"}
            self.norm = self.child(normalization, **norm)
            self.norm.build((None, None, width))
        self.cls_token = self.token("cls_token", int(self.class_token))
        self.dist_token = self.token("dist_token", int(self.distillation_token))
        self.reg_token = self.token("reg_token", self.register_tokens)
        rows = grid[0] * grid[1] + (0 if self.no_embed_class else self.num_prefix_tokens)
        self.pos_embed = self.add_weight(
            shape=(1, rows, width), initializer=initial(), name="pos_embed"
        )
        self.drop = self.child(keras.layers.Dropout, rate=self.drop_rate, name="drop")

    def token(self, name, count):
        if not count:
            return None
        return self.add_weight(shape=(1, count, self.embed_dim), initializer=initial(), name=name)

    def compute_output_spec(self, x, training=None):
        patches = len(x.shape) == 3
        count = x.shape[1] if patches else patch_count(self.patch_size, *x.shape[1:3])
        count = None if count is None else count + self.num_prefix_tokens
        return keras.KerasTensor((x.shape[0], count, self.embed_dim), self.compute_dtype)

    def project(self, x):
        """Pictures or patches to `(B, N, D)`, and the grid (rows, columns) that they form."""
        if self.from_patches:
            kernel = ops.reshape(self.proj.kernel, (-1, self.embed_dim))
            x = ops.matmul(x, kernel)
            return (x + self.proj.bias if self.use_bias else x), self.table_size
        x = self.proj(x)
        sizes = zip(x.shape[1:3], ops.shape(x)[1:3], strict=True)
        rows, columns = (known if known is not None else asked for known, asked in sizes)
        return ops.reshape(x, (-1, rows * columns, self.embed_dim)), (rows, columns)

    def positions(self, grid):
        """The position table for that grid, `(1, rows, D)`; prefix rows are never resampled."""
        if all(isinstance(size, int) for size in grid) and grid == self.table_size:
            return self.pos_embed
        count = 0 if self.no_embed_class else self.num_prefix_tokens
        # A static grid makes constants of the matrices; a dynamic one has them in the graph.
        known = all(isinstance(size, int) for size in grid)
        xp = {} if known else {"xp": BACKEND, "dtype": "float32"}
        down, across = (
            ops.convert_to_tensor(resize_matrix(old, new, **xp), "float32")
            for old, new in zip(self.table_size, grid, strict=True)
        )
        table = ops.reshape(
            ops.cast(self.pos_embed[:, count:], "float32"), (*self.table_size, self.embed_dim)
        )
        table = ops.einsum("hy,yxd->hxd", down, table)
        table = ops.reshape(ops.einsum("wx,hxd->hwd", across, table), (1, -1, self.embed_dim))
        table = ops.cast(table, self.compute_dtype)
        return ops.concatenate([self.pos_embed[:, :count], table], axis=1) if count else table

    def call(self, x, training=None):
        x, grid = self.project(x)
        x = x if self.norm is None else self.norm(x)
        tokens = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        prefix = [ops.broadcast_to(t, (ops.shape(x)[0], *t.shape[1:])) for t in tokens]
        if self.no_embed_class:
            x = ops.concatenate([*prefix, x + self.positions(grid)], axis=1)
        else:
            x = ops.concatenate([*prefix, x], axis=1) + self.positions(grid)
        return self.drop(x, training=training)

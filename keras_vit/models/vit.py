"""ViT: "An Image is Worth 16x16 Words" (https://arxiv.org/abs/2010.11929), figure 1 from left to
right."""

import keras

from keras_vit import checks
from keras_vit.layers.base import register
from keras_vit.layers.block import TransformerBlock
from keras_vit.layers.norm import normalization
from keras_vit.layers.patches import PatchEncoder, pair
from keras_vit.layers.resample import RESAMPLE
from keras_vit.models.base import Backbone
from keras_vit.models.classifier import ImageClassifier


def drop_path_rates(last, depth):
    """Stochastic depth that grows linearly from 0 to `last` over the blocks (DeiT, section 5)."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


@register
class ViTBackbone(Backbone):
    """Images to tokens: `(B, H, W, C) -> (B, prefix + N, D)`, N = (H / P) * (W / P).

    Args:
        image_size: int or (height, width), in pixels; None: any size that the patch divides, the
            positions are resampled in the graph (give `grid_size`).
        patch_size: P, in pixels; must divide both.
        in_channels: C.
        embed_dim: D.
        depth: number of blocks.
        class_token, distillation_token: whether there is one.
        reg_tokens: number of register tokens.
        no_embed_class: positions for patch tokens only.
        embed_norm: a norm right after the patch projection (AIMv2).
        pre_norm: a norm before the blocks, and no bias in the patch projection (CLIP).
        final_norm: a norm after the blocks.
        grid_size: (rows, columns) of the position table; by default those of the image.
        pos_drop_rate: dropout on the tokens.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        resample: how `from_preset` makes the position table and the patch kernel fit another size:
            `"bicubic"`, antialiased; `"bilinear"`, not antialiased (FlexiViT, C-RADIO);
            `"bilinear_corners"`, the table with aligned corners (C-RADIOv3-B and H). As timm does
            it.
        dtype: a Keras dtype policy.
        **block: the arguments of `TransformerBlock`: num_heads, mlp_ratio ...

    Raises:
        ValueError: an argument that neither has; a patch size that does not divide the image.
    """

    block = TransformerBlock

    @staticmethod
    def graph(image_size=224, in_channels=3, resample="bicubic", dtype=None, **trunk):
        checks.word(resample, "resample", RESAMPLE)  # `from_preset` asks for it
        size = pair(image_size) if image_size else (None, None)
        inputs = keras.Input((*size, in_channels), name="images")
        return inputs, ViTBackbone.trunk(inputs, dtype=dtype, **trunk)

    @staticmethod
    def trunk(
        x,
        patch_size=16,
        embed_dim=768,
        depth=12,
        class_token=True,
        distillation_token=False,
        reg_tokens=0,
        no_embed_class=False,
        embed_norm=False,
        pre_norm=False,
        final_norm=True,
        grid_size=None,
        pos_drop_rate=0.0,
        drop_path_rate=0.0,
        dtype=None,
        **block,
    ):
        """An image, or a map of features, to tokens: `(B, H, W, C) -> (B, prefix + N, D)`."""
        norm = {"norm": block.get("norm", "layer"), "epsilon": block.get("norm_eps", 1e-6)}
        x = PatchEncoder(
            embed_dim,
            patch_size,
            class_token,
            distillation_token,
            reg_tokens,
            no_embed_class,
            use_bias=not pre_norm,
            embed_norm=norm["norm"] if embed_norm else None,
            norm_eps=norm["epsilon"],
            grid_size=grid_size,
            drop_rate=pos_drop_rate,
            dtype=dtype,
            name="patch_embed",
        )(x)
        if pre_norm:
            x = normalization(**norm, dtype=dtype, name="norm_pre")(x)
        for i, rate in enumerate(drop_path_rates(drop_path_rate, depth)):
            x = TransformerBlock(**block, drop_path=rate, dtype=dtype, name=f"blocks_{i}")(x)
        return normalization(**norm, dtype=dtype, name="norm")(x) if final_norm else x

    @property
    def num_prefix_tokens(self):
        """How many tokens precede the patches."""
        return self.get_layer("patch_embed").num_prefix_tokens

    @property
    def grid_size(self):
        """(rows, columns) of patches."""
        return self.get_layer("patch_embed").table_size

    @property
    def blocks(self):
        """The transformer blocks, in order."""
        return [self.get_layer(f"blocks_{i}") for i in range(self.options["depth"])]

    def leading_tokens(self, count):
        """The first `count` output tokens, `(B, count, D)`.

        From the last block only these leave, so there the queries, the projection and the MLP of
        the others are not computed: about 7 % of a 12-block model, with equal results.
        """
        last = self.blocks[-1]
        x = last(last.input, queries=count)
        return self.get_layer("norm")(x) if self.options["final_norm"] else x


@register
class ViT(ImageClassifier):
    __doc__ = ImageClassifier.__doc__
    backbone_cls = ViTBackbone

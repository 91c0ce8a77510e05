"""BEiT: "BEiT: BERT Pre-Training of Image Transformers" (https://arxiv.org/abs/2106.08254), and
BEiT v2 (https://arxiv.org/abs/2208.06366).

A ViT with relative position biases and LayerScale (section 2.2 and appendix D of BEiT), whose keys
have no bias.
"""

from typing import Any

from keras_vit.layers.base import register
from keras_vit.models.classifier import ImageClassifier
from keras_vit.models.relpos import RelPosViTBackbone, images
from keras_vit.types import Size, Tensor


@register
class BEiTBackbone(RelPosViTBackbone):
    """BEiT backbone, images to tokens: `(B, H, W, C) -> (B, 1 + N, D)`, N = (H / P) * (W / P).

    Args:
        image_size: int or (height, width), in pixels.
        in_channels: C.
        use_abs_pos_emb: whether to add a learned position embedding.
        use_rel_pos_bias: whether each block has a relative position bias.
        use_shared_rel_pos_bias: whether there is one for all blocks.
        patch_size: P, in pixels; must divide height and width.
        embed_dim: D.
        depth: number of blocks.
        init_values: initial value of LayerScale; None for no LayerScale.
        final_norm: whether to add a norm after the blocks.
        pos_drop_rate, drop_path_rate, resample, dtype: as in `ViTBackbone`.
        num_heads, mlp_ratio and the others: as in `TransformerBlock`; keys have no bias.

    Raises:
        TypeError: if an argument is positional.
        ValueError: if an argument is unknown, or the patch size does not divide the image.
    """

    @staticmethod
    def graph(
        *,
        image_size: Size | None = 224,
        in_channels: int = 3,
        use_abs_pos_emb: bool = False,
        use_rel_pos_bias: bool = True,
        use_shared_rel_pos_bias: bool = False,
        init_values: float | None = 1e-5,
        resample: str = "bicubic",
        dtype: Any = None,
        **trunk: Any,
    ) -> tuple[Tensor, Tensor]:
        inputs = images(image_size, in_channels, resample, "BEiT")
        kinds = ("bias" if use_rel_pos_bias else None, "bias" if use_shared_rel_pos_bias else None)
        options = {"use_abs_pos_emb": use_abs_pos_emb, "init_values": init_values, "dtype": dtype}
        options |= {"class_token": True, "key_bias": False}
        return inputs, RelPosViTBackbone.trunk(inputs, kinds, **options, **trunk)

    given = ("x", "kinds", "class_token", "rel_pos_dim", "drop_path", "attention_options")


@register
class BEiT(ImageClassifier):
    __doc__ = ImageClassifier.__doc__
    backbone_cls = BEiTBackbone

"""DeiT: "Training data-efficient image transformers" (https://arxiv.org/abs/2012.12877), what
differs from ViT."""

from keras import ops

from keras_vit.layers.base import register
from keras_vit.models.vit import ViT, ViTBackbone


@register
class DeiTBackbone(ViTBackbone):
    __doc__ = ViTBackbone.__doc__


@register
class DeiT(ViT):
    """A ViT; with a distillation token, a second head reads it.

    The prediction is the mean of both heads' logits (section 5.2 of the paper), the features of
    `num_classes=0` the mean of both tokens. Arguments as in `ViT`, and:

    Args:
        distilled_head: False: the head reads the class token alone, though there is a
            distillation token (transformers' DeiTForImageClassification).
    """

    backbone_cls = DeiTBackbone

    def __init__(
        self,
        backbone,
        num_classes,
        preprocessor=None,
        pooling="token",
        distilled_head=True,
        **kwargs,
    ):
        token = backbone.options["distillation_token"] and pooling == "token"
        self.distilled_head = bool(distilled_head and token)
        super().__init__(backbone, num_classes, preprocessor, pooling, **kwargs)

    def get_config(self):
        return {**super().get_config(), "distilled_head": self.distilled_head}

    def pool(self):
        if not self.distilled_head:
            return super().pool()
        x = self.backbone.leading_tokens(2)
        cls, dist = ops.split(x, 2, axis=1)
        width = x.shape[-1]
        return ops.reshape(cls, (-1, width)), ops.reshape(dist, (-1, width))

    def head(self, x):
        if not isinstance(x, tuple):
            return super().head(x)
        cls, dist = self.features(x[0]), self.float32(x[1])
        if self.num_classes:
            cls, dist = self.dense("head")(cls), self.dense("head_dist")(dist)
        return (self.float32(cls) + dist) * 0.5

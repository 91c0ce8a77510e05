"""DeiT: "Training data-efficient image transformers & distillation through attention"
(https://arxiv.org/abs/2012.12877). A ViT with an optional distillation token and a head for it."""

from typing import Any

from keras_vit.layers.base import register
from keras_vit.models import head
from keras_vit.models.vit import ViT, ViTBackbone
from keras_vit.types import Tensor


@register
class DeiTBackbone(ViTBackbone):
    __doc__ = ViTBackbone.__doc__


class BothTokens(head.Token):
    """Pooling that returns the class token and the distillation token, one for each head."""

    reads = "the class and the distillation token"


@register
class DeiT(ViT):
    """DeiT classifier: a ViT that has a second head if there is a distillation token.

    The output is the mean of the logits of both heads, as in the authors' code and in timm
    (section 4 of the paper adds the softmax outputs instead). With `num_classes=0` it is the mean
    of both tokens. The arguments are those of `ViT`, and:

    Args:
        distilled_head: if False, there is no second head, even with a distillation token
            (`DeiTForImageClassification` in transformers).
    """

    backbone_cls = DeiTBackbone
    head_names = ("head", "head_dist")

    def __init__(
        self,
        backbone: ViTBackbone,
        num_classes: int,
        preprocessor: Any = None,
        pooling: str = "token",
        distilled_head: bool = True,
        **kwargs: Any,
    ):
        token = backbone.options["distillation_token"] and pooling == head.Token.name
        self.distilled_head = bool(distilled_head and token)
        super().__init__(backbone, num_classes, preprocessor, pooling, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "distilled_head": self.distilled_head}

    def make_pool(self) -> head.Pooling:
        return BothTokens(self.backbone, count=2) if self.distilled_head else super().make_pool()

    def logits(self, x: Tensor) -> Tensor:
        if not self.distilled_head:
            return super().logits(x)
        cls, dist = self.features(x[0]), head.float32(x[1])
        if self.num_classes:
            cls = head.dense(self.num_classes, "head")(cls)
            dist = head.dense(self.num_classes, "head_dist")(dist)
        return (head.float32(cls) + dist) * 0.5

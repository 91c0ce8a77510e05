"""Models of a few kilobytes with random weights, and pictures for them."""

import contextlib
import resource

import keras
import numpy as np

from keras_vit import (
    EVA,
    PVT,
    BEiT,
    CoAtNet,
    ConvNeXt,
    DeiT,
    HybridViT,
    MaxViT,
    MLPMixer,
    PVTv1,
    Swin,
    SwinV2,
    ViT,
)
from keras_vit.images import ImageConverter, ImagePreprocessor

TINY = {"image_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2}
HEADS = {"num_heads": 3}
FAMILIES = {  # the arguments of `classifier`
    "ViT": {},
    "ViT, averaged": {"pooling": "avg", "class_token": False},
    "ViT, pooled by attention": {"pooling": "map"},
    "DeiT": {"cls": DeiT, "distillation_token": True},
    "HybridViT": {"cls": HybridViT, "stages": (1, 1), "patch_size": 1},
    "MLPMixer": {"cls": MLPMixer, "pooling": "avg"},
    "ConvNeXt": {"cls": ConvNeXt, "pooling": "avg"},
    "ConvNeXt V2": {"cls": ConvNeXt, "use_grn": True, "stem_type": "overlap"},
    "EVA": {"cls": EVA, "key_bias": False, "reg_tokens": 1},
    "PVT": {"cls": PVT, "pooling": "avg"},
    "PVT, linear": {"cls": PVT, "pooling": "avg", "linear": True},
    "CoAtNet": {"cls": CoAtNet, "pooling": "avg"},
    "MaxViT": {"cls": MaxViT, "pooling": "avg", "rel_pos": "mlp"},
    "Swin": {"cls": Swin, "pooling": "avg"},
    "SwinV2": {"cls": SwinV2, "pooling": "avg"},
    "BEiT": {
        "cls": BEiT,
        "pooling": "avg",
        "final_norm": False,
        "fc_norm": True,
        "use_shared_rel_pos_bias": True,
    },
}
STAGES = {
    "embed_dim": (8, 8, 16, 32),
    "depths": (1, 1, 1, 1),
    "stem_width": (8, 8),
    "dim_head": 8,
}
SWIN = {
    "image_size": 32,
    "embed_dim": 24,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 3,  # which does not divide the maps
}
STAGES_OF_PVT = {
    "image_size": 32,
    "embed_dims": (24, 32, 48, 48),
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 3, 3),
    "sr_ratios": (4, 2, 1, 1),
    "mlp_ratios": (2, 2, 2, 2),
}
OPTIONS = {  # of backbones that do not take TINY and HEADS
    MLPMixer: TINY,
    ConvNeXt: {"image_size": 32, "depths": (1, 1, 2, 1), "dims": (24, 32, 48, 48)},
    CoAtNet: {"image_size": 32, **STAGES},
    MaxViT: {"image_size": 64, **STAGES},
    PVT: STAGES_OF_PVT,
    PVTv1: STAGES_OF_PVT,
    Swin: SWIN,
    SwinV2: SWIN,
}


HEAD = ("pooling", "fc_norm", "representation_size", "labels")


def classifier(cls=ViT, num_classes=7, preprocessed=True, dtype=None, **backbone):
    """A model whose outputs differ from image to image; arguments of its class and its backbone."""
    keras.utils.set_random_seed(1)
    head = {name: backbone.pop(name) for name in HEAD if name in backbone}
    head["activation"] = backbone.pop("head_activation", "auto")
    own = (OPTIONS[parent] for parent in cls.__mro__ if parent in OPTIONS)
    options = {**next(own, {**TINY, **HEADS}), **backbone}
    backbone = cls.backbone_cls(**options, dtype=dtype)
    converter = ImageConverter(
        options["image_size"] or 32,
        mean=[0.4, 0.5, 0.6][: backbone.option("in_channels")],
        std=[0.2, 0.3, 0.4][: backbone.option("in_channels")],
        crop_pct=0.8,
    )
    preprocessor = ImagePreprocessor(converter) if preprocessed else None
    model = cls(backbone, num_classes, preprocessor=preprocessor, **head)
    random = np.random.default_rng(0)
    model.set_weights(
        [w + random.normal(0, 0.15, w.shape).astype(w.dtype) for w in model.get_weights()]
    )
    return model


def pictures(channels=3):
    """Three of them, of three sizes."""
    random = np.random.default_rng(3)
    sizes = ((32, 32), (50, 41), (40, 90))
    return [random.integers(0, 256, (*size, channels), "uint8") for size in sizes]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def pixels(model, count=3):
    shape = (count, *model.inputs[0].shape[1:])
    return np.random.default_rng(2).integers(0, 256, shape, "uint8")


def outputs(model, images):
    """What a file with preprocessing must give for pixels."""
    x = model.preprocessor.image_converter.normalize(images)
    found = keras.ops.convert_to_numpy(model(x, training=False))
    if not model.num_classes:
        return found
    return softmax(found) if model.num_classes > 1 else 1 / (1 + np.exp(-found))


@contextlib.contextmanager
def full_disk(size):
    """No file of this process can grow beyond that size, in bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

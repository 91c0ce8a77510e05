"""Models of a few kilobytes with random weights, and pictures for them."""

import contextlib
import resource

import keras
import numpy as np

from keras_vit import DeiT, HybridViT, MLPMixer, ViT
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
}


HEAD = ("pooling", "fc_norm", "representation_size", "labels")


def classifier(cls=ViT, num_classes=7, preprocessed=True, dtype=None, **backbone):
    """A model whose outputs differ from image to image; arguments of its class and its backbone."""
    keras.utils.set_random_seed(1)
    head = {name: backbone.pop(name) for name in HEAD if name in backbone}
    options = {**TINY, **({} if cls is MLPMixer else HEADS), **backbone}
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


@contextlib.contextmanager
def full_disk(size):
    """No file of this process can grow beyond that size, in bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

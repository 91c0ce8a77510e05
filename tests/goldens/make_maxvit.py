"""Goldens of MaxViT, whose source is CoAtNet's."""

from make_coatnet import make, others

__all__ = ["make", "others"]

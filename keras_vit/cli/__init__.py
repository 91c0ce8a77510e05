"""keras-vit: list | show | predict | finetune | export | explain | demo."""

from keras_vit.cli.main import main

__all__ = ["main"]

"""keras-vit: list | show | predict | finetune | export | compare | benchmark | explain | demo."""

from keras_vit.cli.main import main

__all__ = ["main"]

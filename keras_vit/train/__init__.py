"""Training: a folder of class folders, and a recipe for fine-tuning vision transformers."""

from keras_vit.train.folder import Folder, fault, read_folder, split
from keras_vit.train.recipe import adamw, fast, finetune, jit_compile

__all__ = ["Folder", "adamw", "fast", "fault", "finetune", "jit_compile", "read_folder", "split"]

"""Training: reading a folder of class folders, and a recipe for fine-tuning."""

from keras_vit.train.folder import Folder, fault, read_folder, split_labels
from keras_vit.train.recipe import adamw, fast, finetune, jit_compile
from keras_vit.train.resume import Resume, load_state, read_state, save_state

__all__ = [
    "Folder",
    "Resume",
    "adamw",
    "fast",
    "fault",
    "finetune",
    "jit_compile",
    "load_state",
    "read_folder",
    "read_state",
    "save_state",
    "split_labels",
]

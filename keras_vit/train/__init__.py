"""Training: folders of pictures, recipes, distillation, pre-training without labels, evaluation."""

from keras_vit.train.augment import Augmentation, erase, mix, one_hot
from keras_vit.train.batches import SoftCrossEntropy, TrainingBatches
from keras_vit.train.checkpointing import checkpoint_gradients
from keras_vit.train.distill import Distiller, TaughtBatches
from keras_vit.train.distribution import layout_map
from keras_vit.train.evaluation import (
    Evaluation,
    calibration_error,
    evaluate,
    learning_curves,
)
from keras_vit.train.folder import Folder, fault, read_folder, read_parts, split_labels
from keras_vit.train.freezing import freeze
from keras_vit.train.mae import MAE
from keras_vit.train.masked_patches import MaskedPatches
from keras_vit.train.optimizers import Average, LayerwiseAdamW, LayerwiseSGD, optimizer
from keras_vit.train.pretraining import pretrain
from keras_vit.train.probing import Probe, probe, probe_figure
from keras_vit.train.recipe import adamw, fast, finetune, jit_compile
from keras_vit.train.recipes import RECIPES, Recipe
from keras_vit.train.resume import Resume, load_state, read_state, save_state
from keras_vit.train.show import show_batch, show_reconstruction
from keras_vit.train.simmim import SimMIM

__all__ = [
    "Augmentation",
    "Average",
    "Distiller",
    "Evaluation",
    "Folder",
    "LayerwiseAdamW",
    "LayerwiseSGD",
    "MAE",
    "MaskedPatches",
    "Probe",
    "RECIPES",
    "Recipe",
    "Resume",
    "SimMIM",
    "SoftCrossEntropy",
    "TaughtBatches",
    "TrainingBatches",
    "adamw",
    "calibration_error",
    "checkpoint_gradients",
    "erase",
    "evaluate",
    "fast",
    "fault",
    "finetune",
    "freeze",
    "jit_compile",
    "layout_map",
    "learning_curves",
    "load_state",
    "mix",
    "one_hot",
    "optimizer",
    "pretrain",
    "probe",
    "probe_figure",
    "read_folder",
    "read_parts",
    "read_state",
    "save_state",
    "show_batch",
    "show_reconstruction",
    "split_labels",
]

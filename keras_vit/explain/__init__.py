"""Explanation: attention maps, rollout, maps for a class, analyses, and figures of them."""

from keras_vit.explain.analysis import (
    attention_distance,
    attention_entropy,
    head_diversity,
    patch_filters,
    position_similarity,
    token_norms,
)
from keras_vit.explain.canvas import matplotlib_figure
from keras_vit.explain.class_maps import (
    class_relevance,
    grad_cam,
    gradient_rollout,
    input_x_gradient,
    integrated_gradients,
)
from keras_vit.explain.classes import top_classes
from keras_vit.explain.deletion import Faithfulness, faithfulness
from keras_vit.explain.draw import (
    gallery,
    overlay,
    overlay_classes,
    overlay_heads,
)
from keras_vit.explain.flow import attention_flow
from keras_vit.explain.maps import attention_maps, chosen_blocks, features, scorer
from keras_vit.explain.pages import Page, page
from keras_vit.explain.patch_figure import visualize_patches
from keras_vit.explain.rollouts import relevance, rollout, shown
from keras_vit.explain.sheet import analyse

__all__ = [
    "Faithfulness",
    "Page",
    "analyse",
    "attention_distance",
    "attention_entropy",
    "attention_flow",
    "attention_maps",
    "chosen_blocks",
    "class_relevance",
    "faithfulness",
    "features",
    "gallery",
    "grad_cam",
    "gradient_rollout",
    "head_diversity",
    "input_x_gradient",
    "integrated_gradients",
    "matplotlib_figure",
    "overlay",
    "overlay_classes",
    "overlay_heads",
    "page",
    "patch_filters",
    "position_similarity",
    "relevance",
    "rollout",
    "scorer",
    "shown",
    "token_norms",
    "top_classes",
    "visualize_patches",
]

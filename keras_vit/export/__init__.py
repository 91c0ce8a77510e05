"""A model as a file that runs without Keras, checked before it is kept: SavedModel and TFLite."""

from keras_vit.export.compare import Comparison, compare
from keras_vit.export.saved_model import to_saved_model
from keras_vit.export.tflite import to_tflite

__all__ = ["Comparison", "compare", "to_saved_model", "to_tflite"]

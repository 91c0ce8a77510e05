"""Models as files that run without Keras; each file is checked before it is kept."""

from keras_vit.export.benchmark import Benchmark, benchmark
from keras_vit.export.classify import FileClassifier
from keras_vit.export.compare import Comparison, compare
from keras_vit.export.onnx import to_onnx
from keras_vit.export.openvino import to_openvino
from keras_vit.export.saved_model import to_saved_model
from keras_vit.export.tflite import to_tflite

__all__ = [
    "Benchmark",
    "Comparison",
    "FileClassifier",
    "benchmark",
    "compare",
    "to_onnx",
    "to_openvino",
    "to_saved_model",
    "to_tflite",
]

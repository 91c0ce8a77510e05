"""Files of any origin in the four formats, with their inputs and outputs."""

import abc
import collections
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from keras_vit.checks import count
from keras_vit.export import metadata, model_file, onnx, openvino, runtime, saved_model
from keras_vit.types import Path


class Tensor(NamedTuple):
    """An input or output; None in its shape stands for a dynamic axis."""

    dtype: str
    shape: tuple[int | None, ...]


def open_file(path: Path, threads: int | None = None, precision: str = "float32") -> "File":
    """The file at that path, ready to run.

    Args:
        path: a TFLite or ONNX file, the .xml file of OpenVINO, or a SavedModel directory.
        threads: to run it with; None: one per processor.
        precision: `"bfloat16"`, for OpenVINO alone, computes in it what is not int8.

    Raises:
        FileNotFoundError: there is nothing at that path.
        ValueError: the file is of another kind or does not run here; an unknown precision; less
            than one thread.
        ImportError: an ONNX file without onnxruntime, or an OpenVINO file without openvino.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if not (path.is_dir() or path.is_file()):
        raise ValueError(f"{str(path)!r} is neither a file nor a directory.")
    used = count(os.cpu_count() or 1 if threads is None else threads, "threads", 1)
    if path.suffix.lower() == ".xml" and path.is_file():
        return OpenVINO(path, used, precision)
    if precision != "float32":
        raise ValueError(
            f"precision={precision!r} is for OpenVINO files, which end in .xml. "
            f"Received: {str(path)!r}"
        )
    if path.is_dir():
        return SavedModel(path)
    kind = TFLite if path.suffix == ".tflite" or model_file.is_tflite(path) else ONNX
    return kind(path, used)


class File(abc.ABC):
    """The interface of the four kinds.

    Attributes:
        kind: `"TFLite"`, `"SavedModel"`, `"ONNX"` or `"OpenVINO"`.
        inputs, outputs: dicts from names to `Tensor`.
        size: bytes.
        threads: how many it runs with.
        operations: dict from names to counts, the most frequent first; None: not known.
        partitions: XNNPACK partitions of the graph; TFLite only.
        labels: class names; None: the file has none.
        preset: a dict as from `keras_vit.export.metadata.about`; None: the file has none.
        precision: in which it computes; OpenVINO only.
    """

    kind: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    operations: dict[str, int] | None = None
    partitions: int | None = None
    labels: list[str] | None = None
    preset: dict[str, Any] | None = None
    precision: str | None = None

    def __init__(self, path: pathlib.Path, threads: int) -> None:
        self.path = path
        self.threads = threads
        parts = path.rglob("*") if path.is_dir() else [path]
        self.size = sum(part.stat().st_size for part in parts if part.is_file())

    def broken(self, what: str, error: Exception) -> ValueError:
        """The error for a file that cannot be loaded, in one line."""
        return ValueError(f"{str(self.path)!r} {what}: {' '.join(str(error).split())}")

    @abc.abstractmethod
    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays by the names of the inputs -> arrays by the names of the outputs."""


def counted(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, the most frequent first."""
    return dict(collections.Counter(names).most_common())


class TFLite(File):
    """A TFLite file in TensorFlow's interpreter."""

    kind = "TFLite"

    def __init__(self, path: pathlib.Path, threads: int) -> None:
        super().__init__(path, threads)
        try:
            self.loaded = runtime.interpreter(path, threads)
            about = metadata.read_metadata(path)
        except (ValueError, RuntimeError) as error:
            raise self.broken("is not a valid TFLite file", error) from error
        self.labels, self.preset = about.get("labels"), about.get("preset")
        self.operations = counted(runtime.operations(self.loaded))
        self.partitions = runtime.partitions(self.loaded)
        self.runner = None
        if len(self.loaded.get_signature_list()) == 1:
            self.runner = self.loaded.get_signature_runner()
            inputs, outputs = self.runner.get_input_details(), self.runner.get_output_details()
        else:  # without a signature: by the tensors' names
            inputs, outputs = (
                {details["name"]: details for details in found}
                for found in (self.loaded.get_input_details(), self.loaded.get_output_details())
            )
        self.inputs, self.outputs = (
            {name: _tflite_tensor(details) for name, details in found.items()}
            for found in (inputs, outputs)
        )

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        if self.runner:
            return self.runner(**inputs)
        for details in self.loaded.get_input_details():
            self.loaded.set_tensor(details["index"], inputs[details["name"]])
        self.loaded.invoke()
        outputs = self.loaded.get_output_details()
        return {details["name"]: self.loaded.get_tensor(details["index"]) for details in outputs}


def _tflite_tensor(details):
    # The interpreter runs with static shapes; a dynamic axis is 1 there.
    return Tensor(np.dtype(details["dtype"]).name, tuple(int(n) for n in details["shape"]))


class SavedModel(File):
    """A SavedModel directory and its default signature."""

    kind = "SavedModel"

    def __init__(self, path: pathlib.Path) -> None:
        import tensorflow as tf

        threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1
        super().__init__(path, threads)
        try:
            self.loaded = tf.saved_model.load(str(path))
            self.function = self.loaded.signatures["serving_default"]
        except (OSError, KeyError) as error:
            raise self.broken(
                "is not a SavedModel with the signature serving_default", error
            ) from error
        described = self.function.structured_input_signature[1], self.function.structured_outputs
        self.inputs, self.outputs = (
            {name: _tensorflow_tensor(spec) for name, spec in specs.items()} for specs in described
        )
        preset, labels = (
            path / saved_model.EXTRA / name for name in (metadata.PRESET, metadata.LABELS)
        )
        self.preset = json.loads(preset.read_text("utf-8")) if preset.is_file() else None
        self.labels = labels.read_text("utf-8").splitlines() if labels.is_file() else None

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        import tensorflow as tf

        outputs = self.function(**{name: tf.constant(x) for name, x in inputs.items()})
        return {name: x.numpy() for name, x in outputs.items()}


def _tensorflow_tensor(spec):
    return Tensor(spec.dtype.name, _known(() if spec.shape.rank is None else spec.shape.as_list()))


class ONNX(File):
    """An ONNX file in onnxruntime."""

    kind = "ONNX"

    def __init__(self, path: pathlib.Path, threads: int) -> None:
        super().__init__(path, threads)
        try:
            self.session = onnx.session(path, threads)
        except ImportError:
            raise
        except Exception as error:  # onnxruntime raises many classes of its own
            raise self.broken("is not a valid ONNX file", error) from error
        self.inputs, self.outputs = (
            {x.name: Tensor(_onnx_dtype(x.type), _known(x.shape)) for x in found}
            for found in (self.session.get_inputs(), self.session.get_outputs())
        )
        names = onnx.operations(path)
        self.operations = None if names is None else counted(names)
        about = self.session.get_modelmeta().custom_metadata_map
        self.preset, self.labels = (
            json.loads(about[key]) if key in about else None for key in ("preset", "labels")
        )

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self.session.run(None, inputs)
        return dict(zip(self.outputs, outputs, strict=True))


def _onnx_dtype(name):
    """`tensor(float)` -> `float32`"""
    name = name.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


class OpenVINO(File):
    """A graph in OpenVINO's CPU plugin, with its weights in the file beside it."""

    kind = "OpenVINO"

    def __init__(self, path: pathlib.Path, threads: int, precision: str) -> None:
        super().__init__(path, threads)
        self.precision = precision
        weights = openvino.weights_of(path)
        self.size += weights.stat().st_size if weights.is_file() else 0
        try:
            graph = openvino.read(path)
            loaded = openvino.compiled(graph, threads, precision)
        except RuntimeError as error:
            raise self.broken("is not a valid OpenVINO file", error) from error
        self.request = loaded.create_infer_request()
        self.inputs, self.outputs = (
            {_openvino_name(x): _openvino_tensor(x) for x in found}
            for found in (loaded.inputs, loaded.outputs)
        )
        names = (node.get_type_name() for node in graph.get_ops())
        ends = ("Parameter", "Constant", "Result")
        self.operations = counted(name for name in names if name not in ends)
        self.preset, self.labels = (
            json.loads(graph.get_rt_info(place).value) if graph.has_rt_info(place) else None
            for place in ([openvino.SECTION, key] for key in ("preset", "labels"))
        )

    def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self.request.infer([inputs[name] for name in self.inputs])
        return dict(zip(self.outputs, outputs.to_tuple(), strict=True))


def _openvino_name(tensor):
    return tensor.any_name if tensor.names else tensor.node.get_friendly_name()


def _openvino_tensor(tensor):
    sizes = (None if n.is_dynamic else n.get_length() for n in tensor.partial_shape)
    return Tensor(tensor.element_type.to_dtype().name, tuple(sizes))


def _known(shape):
    """A shape with None for each dynamic axis."""
    return tuple(size if isinstance(size, int) else None for size in shape)

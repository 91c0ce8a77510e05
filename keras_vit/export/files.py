"""Files that run without Keras, of this package or of others: what goes in, what comes out."""

import abc
import collections
import json
import os
import pathlib

import numpy as np

from keras_vit.export import metadata, onnx, saved_model, tflite

Tensor = collections.namedtuple("Tensor", "dtype shape")
Tensor.__doc__ = """An input or output: dtype as a name, shape with None for what is free."""


def load(path, threads=None):
    """The file at that path, ready to run.

    Args:
        path: a file that ends in .onnx, a SavedModel directory, or else a TFLite file.
        threads: to run it with; None: one for each processor.

    Raises:
        FileNotFoundError: there is nothing at that path.
        ValueError: it is no such file, or one that does not run here.
        ImportError: an ONNX file without onnxruntime.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if path.is_dir():
        return SavedModel(path)
    return (ONNX if path.suffix == ".onnx" else TFLite)(path, threads or os.cpu_count())


class File(abc.ABC):
    """What the three kinds share.

    Attributes:
        kind: `"TFLite"`, `"SavedModel"` or `"ONNX"`.
        inputs, outputs: dicts from names to `Tensor`.
        size: bytes.
        threads: how many it runs with.
        operations: dict from names to how many of each, the most frequent first; None: not known.
        partitions: pieces of the graph that XNNPACK runs; TFLite only.
        labels: names of the classes; None: the file has none.
        preset: a dict, as `keras_vit.export.metadata.about` makes it; None: the file has none.
    """

    operations = partitions = labels = preset = None

    def __init__(self, path, threads):
        self.path = path
        self.threads = threads
        parts = path.rglob("*") if path.is_dir() else [path]
        self.size = sum(part.stat().st_size for part in parts if part.is_file())

    def broken(self, what, error):
        """The error of a file that cannot be loaded, in one line."""
        return ValueError(f"{str(self.path)!r} {what}: {' '.join(str(error).split())}")

    @abc.abstractmethod
    def run(self, **inputs):
        """Arrays by the names of the inputs -> arrays by the names of the outputs."""


def counted(names):
    return names and dict(collections.Counter(names).most_common())


class TFLite(File):
    kind = "TFLite"

    def __init__(self, path, threads):
        super().__init__(path, threads)
        try:
            self.loaded = tflite.interpreter(path, threads)
            about = metadata.read(path)
        except (ValueError, RuntimeError) as error:
            raise self.broken("is not a TFLite file that runs", error) from error
        self.labels, self.preset = about.get("labels"), about.get("preset")
        self.operations = counted(tflite.operations(self.loaded))
        self.partitions = tflite.partitions(self.loaded)
        self.runner = None
        if len(self.loaded.get_signature_list()) == 1:
            self.runner = self.loaded.get_signature_runner()
            inputs, outputs = self.runner.get_input_details(), self.runner.get_output_details()
        else:  # the names of tensors will do
            inputs, outputs = (
                {details["name"]: details for details in found}
                for found in (self.loaded.get_input_details(), self.loaded.get_output_details())
            )
        self.inputs, self.outputs = (
            {name: _tflite_tensor(details) for name, details in found.items()}
            for found in (inputs, outputs)
        )

    def run(self, **inputs):
        if self.runner:
            return self.runner(**inputs)
        for details in self.loaded.get_input_details():
            self.loaded.set_tensor(details["index"], inputs[details["name"]])
        self.loaded.invoke()
        outputs = self.loaded.get_output_details()
        return {details["name"]: self.loaded.get_tensor(details["index"]) for details in outputs}


def _tflite_tensor(details):
    # The interpreter runs with its static shape; a free axis has 1 there.
    return Tensor(np.dtype(details["dtype"]).name, tuple(int(n) for n in details["shape"]))


class SavedModel(File):
    kind = "SavedModel"

    def __init__(self, path):
        import tensorflow as tf

        threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()
        super().__init__(path, threads)
        try:
            self.loaded = tf.saved_model.load(str(path))
            self.function = self.loaded.signatures["serving_default"]
        except (OSError, KeyError) as error:
            raise self.broken("is no SavedModel that serves", error) from error
        described = self.function.structured_input_signature[1], self.function.structured_outputs
        self.inputs, self.outputs = (
            {name: _tensorflow_tensor(spec) for name, spec in specs.items()} for specs in described
        )
        preset, labels = (
            path / saved_model.EXTRA / name for name in (metadata.PRESET, metadata.LABELS)
        )
        self.preset = json.loads(preset.read_text("utf-8")) if preset.is_file() else None
        self.labels = labels.read_text("utf-8").splitlines() if labels.is_file() else None

    def run(self, **inputs):
        import tensorflow as tf

        outputs = self.function(**{name: tf.constant(x) for name, x in inputs.items()})
        return {name: x.numpy() for name, x in outputs.items()}


def _tensorflow_tensor(spec):
    return Tensor(spec.dtype.name, _known(() if spec.shape.rank is None else spec.shape.as_list()))


class ONNX(File):
    kind = "ONNX"

    def __init__(self, path, threads):
        super().__init__(path, threads)
        try:
            self.session = onnx.session(path, threads)
        except ImportError:
            raise
        except Exception as error:  # of pybind11, and of many kinds
            raise self.broken("is not an ONNX file that runs", error) from error
        self.inputs, self.outputs = (
            {x.name: Tensor(_onnx_dtype(x.type), _known(x.shape)) for x in found}
            for found in (self.session.get_inputs(), self.session.get_outputs())
        )
        self.operations = counted(onnx.operations(path))
        about = self.session.get_modelmeta().custom_metadata_map
        self.preset, self.labels = (
            json.loads(about[key]) if key in about else None for key in ("preset", "labels")
        )

    def run(self, **inputs):
        outputs = self.session.run(None, inputs)
        return dict(zip(self.outputs, outputs, strict=True))


def _onnx_dtype(name):
    """`tensor(float)` -> `float32`"""
    name = name.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _known(shape):
    """A shape with None where no number stands."""
    return tuple(size if isinstance(size, int) else None for size in shape)

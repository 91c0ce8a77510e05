"""What to_onnx and to_openvino share: a model as an ONNX graph, and the check of a file."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vit.export import common, metadata, onnx_converters, variants
from keras_vit.types import Size

TOLERANCE = 1e-3  # relative error of the outputs (root mean square)
LARGEST = 2**31  # bytes of a protocol buffer


def check_options(input: str, batch_size: int | None) -> None:
    """Raise an error if an option is unknown."""
    if input not in ("uint8", "float32"):
        raise ValueError(f'input must be "uint8" or "float32". Received: {input!r}')
    common.check_batch_size(batch_size)


def check_packages() -> None:
    """Raise an error if a package that writes ONNX graphs on this backend is missing."""
    backend, known = keras.backend.backend(), onnx_converters.PACKAGES
    if backend not in known:
        raise RuntimeError(
            f"ONNX export needs one of the backends {', '.join(known)}. Received: {backend!r}"
        )
    needed = ("onnx", known[backend])
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX export on the {backend} backend needs {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """A model and what its file takes and gives.

    Attributes:
        model: in float32, of the file's image size.
        whole: the model with normalisation and activation; its input and the model itself have the
            names of the file's input and output.
        preprocessing: whether the file takes raw pixels.
        batch_size: a fixed number of images; None: any number.
    """

    model: keras.Model
    whole: keras.Model
    preprocessing: bool
    batch_size: int | None

    def proto(self) -> Any:
        """The `onnx.ModelProto`.

        Raises:
            ValueError: the model contains an operation that ONNX lacks.
        """
        proto = onnx_converters.convert(self.whole, self.model, self.batch_size)
        _name(proto, self.whole)
        for key, value in self.about().items():
            proto.metadata_props.add(key=key, value=value)
        return proto

    def about(self, **options: Any) -> dict[str, str]:
        """The metadata as JSON: `preset`, with these options added, and `labels`, if it has any."""
        preset = {**metadata.about(self.model), "preprocessing": self.preprocessing, **options}
        found = {"preset": preset, "labels": metadata.class_names(self.model)}
        return {key: json.dumps(value) for key, value in found.items() if value}

    def verify(
        self,
        load: Callable[[], Callable[[np.ndarray], np.ndarray]],
        what: str,
        images: np.ndarray | None = None,
        tolerance: float = TOLERANCE,
        advice: str = "",
    ) -> None:
        """Raise an error if a file's outputs are not the model's.

        Args:
            load: loads the file: a function from a batch of images to its output.
            what: the file, for the message.
            images: as the file takes them, in whole batches; None: generated ones.
            tolerance, advice: as of `common.check_outputs`.
        """
        kind = "generated test images" if images is None else "calibration images"
        images = self._generated() if images is None else images
        count = len(images)
        try:
            run = load()
            batches = np.split(images, count // (self.batch_size or count))
            found = np.concatenate([run(batch) for batch in batches])
        except Exception as error:  # onnxruntime and OpenVINO raise many classes of their own
            raise RuntimeError(f"The exported file does not run: {error}") from error
        expected = ops.convert_to_numpy(self.whole(images, training=False))
        tolerance = common.tolerance(self.model, tolerance)
        checked, act, name = f"{count} {kind}", common.activation(self.model), self.whole.name
        difference = common.check_outputs(
            expected, found, name, act, tolerance, what, checked, advice
        )
        common.log_check(what, checked, common.scale_of(name), difference, tolerance)

    def _generated(self) -> np.ndarray:
        inputs = self.whole.inputs[0]
        images = common.samples(common.sample_count(self.batch_size), *inputs.shape[1:])
        if inputs.name == common.NORMALIZED:
            images = images.astype("float32") / 127.5 - 1
        return images.astype(inputs.dtype)


def source(
    model: keras.Model,
    preprocessing: bool,
    input: str,
    batch_size: int | None,
    image_size: Size | None,
) -> Source:
    """The model prepared for a file; the arguments are those of `to_onnx`."""
    model = variants.in_float32(variants.at_size(model, image_size))
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            "An ONNX file is made for one image size: pass image_size=. "
            f"Received: a model with an input of shape {model.inputs[0].shape}"
        )
    if model.count_params() * 4 >= LARGEST:
        raise ValueError(
            f"An ONNX file holds at most 2 GB. Received: {model.count_params():,} parameters of 4 "
            "bytes. Use to_saved_model."
        )
    dtype = input if preprocessing else "float32"
    return Source(model, _whole(model, preprocessing, dtype), preprocessing, batch_size)


def _whole(model, preprocessing, dtype):
    argument = common.PIXELS if preprocessing else common.NORMALIZED
    images = keras.Input(model.inputs[0].shape[1:], dtype=dtype, name=argument)
    x = images
    if preprocessing:
        scale, offset = common.converter(model).scale_and_offset()
        x = ops.cast(images, "float32") * scale + offset
    name = common.output_name(model, preprocessing)
    x = ops.cast(model(x, training=False), "float32")
    if name == "probabilities":
        x = ops.softmax(x) if common.activation(model) == "softmax" else ops.sigmoid(x)
    return keras.Model(images, x, name=name)


def _name(proto, whole):
    """Name the input, the output and the batch axis as in the other formats."""
    graph, images = proto.graph, whole.inputs[0]
    names = {graph.input[0].name: images.name, graph.output[0].name: whole.name}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
        if not value.type.tensor_type.shape.dim[0].HasField("dim_value"):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"

"""Matrix products of a TFLite graph, and their activations on calibration images."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from keras_vit.export import graph, model_file, runtime

ROWS = 512  # that are kept of the inputs of a dense layer, over all images
IMAGES = 4  # that are kept of the inputs of a convolution

Range: TypeAlias = tuple[np.ndarray, np.ndarray]  # the smallest and the largest values


@dataclasses.dataclass
class Product:
    """A dense layer or convolution with constant weights.

    Of the calibration images every other one is measured for `low` and `high`; the others give
    `inputs`, so that errors include values out of range.

    Attributes:
        name: of its output tensor; no other tensor has it.
        source: the name of its input tensor.
        weights: `(O, I)`, or `(O, height, width, I)` of a convolution.
        bias: `(O,)`.
        options: of a convolution, for `tf.nn.conv2d`.
        clip: bounds of its output, by a ReLU that is fused into it.
        inputs: some of its inputs: `(N, I)`, or `(N, H, W, I)` of a convolution.
        measured: the range of each channel of its input, `(I,)` each, and of its output.
        whole: the same over all images.
    """

    name: str
    source: str
    weights: np.ndarray
    bias: np.ndarray
    options: dict[str, Any] | None
    clip: tuple[float, float]
    inputs: np.ndarray
    measured: tuple[Range, Range]
    whole: tuple[Range, Range]

    def run(self, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The output, `(..., O)`, for these inputs and weights."""
        if self.options is None:
            outputs = inputs @ weights.T
        else:
            import tensorflow as tf

            kernel = weights.transpose(1, 2, 3, 0)
            outputs = tf.nn.conv2d(inputs, kernel, **self.options).numpy()
        return np.clip(outputs + self.bias, *self.clip)


def collect(content: bytes, name: str, batches: list[np.ndarray]) -> list[Product]:
    """Run a float32 file on images, and keep what its products read and give.

    Args:
        content: the bytes of a file with one signature, whose tensors have different names.
        name: of its input.
        batches: what it takes, one after the other.
    """
    # XNNPACK then takes each operation alone, so that all tensors are filled.
    loaded = runtime.interpreter_of(content, experimental_preserve_all_tensors=True)
    run = loaded.get_signature_runner()
    records = list(_records(content))
    for number, batch in enumerate(batches):
        run(**{name: batch})
        for record in records:
            record.see(loaded, number, len(batches))
    return [record.finished() for record in records]


def _records(content: bytes) -> Iterator["_Record"]:
    """One for each product with constant weights."""
    model = model_file.unpacked(content)
    for operator in model.subgraphs[0].operators:
        if graph.name_of(model, operator) in graph.PRODUCTS:
            if graph.constant(model, operator.inputs[1]) is not None:
                yield _Record(model, operator)


class _Record:
    """A product while images are run."""

    def __init__(self, model: Any, operator: Any) -> None:
        tensors = model.subgraphs[0].tensors
        self.source, self.output = operator.inputs[0], operator.outputs[0]
        self.names = [tensors[i].name.decode() for i in (self.output, self.source)]
        constants: list[Any] = [graph.constant(model, i) for i in operator.inputs[1:] if i >= 0]
        self.weights: np.ndarray = constants[0]
        zeros = np.zeros(len(self.weights), "float32")
        self.bias: np.ndarray = constants[1] if constants[1:] else zeros
        self.clip = graph.clip(operator)
        self.options = graph.convolution(operator) if self.weights.ndim == 4 else None
        self.ranges: dict[bool, list[tuple[Range, Range]]] = {True: [], False: []}
        self.inputs: list[np.ndarray] = []

    def see(self, loaded: Any, number: int, count: int) -> None:
        """Keep what it read and gave in the last run, number `number` of `count`."""
        inputs, outputs = (loaded.get_tensor(i) for i in (self.source, self.output))
        inputs = inputs.reshape(-1, inputs.shape[-1]) if self.options is None else inputs
        measured = number % 2 == 0
        self.ranges[measured].append((_range(inputs, inputs.ndim - 1), _range(outputs, None)))
        if measured and count > 1:
            return
        if self.options is None:
            some = np.random.default_rng(number).permutation(len(inputs))
            self.inputs.append(inputs[some[: max(2 * ROWS // count, 1)]])
        elif len(self.inputs) < IMAGES:
            self.inputs.append(inputs[:1].copy())

    def finished(self) -> Product:
        """What was seen."""
        name, source = self.names
        return Product(
            name=name,
            source=source,
            weights=self.weights,
            bias=self.bias,
            options=self.options,
            clip=self.clip,
            inputs=np.concatenate(self.inputs),
            measured=_joined(self.ranges[True]),
            whole=_joined(self.ranges[True] + self.ranges[False]),
        )


def _range(x: np.ndarray, channels: int | None) -> Range:
    axes = tuple(axis for axis in range(x.ndim) if axis != channels)
    return x.min(axes), x.max(axes)


def _joined(ranges: Iterable[tuple[Range, Range]]) -> tuple[Range, Range]:
    inputs, outputs = (
        (np.min([low for low, _ in side], axis=0), np.max([high for _, high in side], axis=0))
        for side in zip(*ranges, strict=True)
    )
    return inputs, outputs

"""The graph of a TFLite file, as TensorFlow's `ModelT`: its operations, constants, one more of
them."""

import functools
from typing import Any

import numpy as np

from keras_vit.export import model_file

PRODUCTS = ("FULLY_CONNECTED", "CONV_2D")
CLIPS = {"NONE": (-np.inf, np.inf), "RELU": (0, np.inf), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}


@functools.cache
def _names(enum: type) -> dict[int, str]:
    """Numbers of the schema's enumerations to names."""
    return {v: k for k, v in vars(enum).items() if isinstance(v, int)}


def name_of(model: Any, operator: Any) -> str:
    """The name of an operation, such as `CONV_2D`."""
    code = model.operatorCodes[operator.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return _names(model_file.schema().BuiltinOperator)[number]


def readers(model: Any, tensor: int) -> list[Any]:
    """The operations that take a tensor."""
    return [op for op in model.subgraphs[0].operators if tensor in op.inputs]


def clip(operator: Any) -> tuple[float, float]:
    """Bounds of the output of a product, by the activation that is fused into it."""
    activation = operator.builtinOptions.fusedActivationFunction
    return CLIPS[_names(model_file.schema().ActivationFunctionType)[activation]]


def convolution(operator: Any) -> dict[str, Any]:
    """The options of a `CONV_2D` as `tf.nn.conv2d` takes them."""
    options = operator.builtinOptions
    return {
        "strides": (options.strideH, options.strideW),
        "padding": _names(model_file.schema().Padding)[options.padding],
        "dilations": (options.dilationHFactor, options.dilationWFactor),
    }


def constant(model: Any, tensor: int) -> np.ndarray | None:
    """The value of a float32 tensor; None if it is computed or has another type."""
    details = model.subgraphs[0].tensors[tensor]
    data = model.buffers[details.buffer].data
    if data is None or details.type != model_file.schema().TensorType.FLOAT32:
        return None
    return np.asarray(data, "uint8").view("float32").reshape(details.shape)


def set_constant(model: Any, operator: Any, position: int, value: np.ndarray) -> None:
    """Give an operation another constant input: other operations keep theirs, if they share it, and
    an optional one that it lacks is added."""
    data, index = np.asarray(value, "float32").ravel().view("uint8"), operator.inputs[position]
    tensors = model.subgraphs[0].tensors
    sharing = [tensor for tensor in tensors if tensor.buffer == tensors[index].buffer]
    if index >= 0 and len(sharing) == 1 and len(readers(model, index)) == 1:
        model.buffers[tensors[index].buffer].data = data
        return
    new = model_file.schema().TensorT()
    new.name = tensors[operator.outputs[0]].name + f"/input_{position}".encode()
    new.shape = np.array(value.shape, "int32")
    new.buffer = model_file.add_buffer(model, data)
    tensors.append(new)
    operator.inputs = operator.inputs.copy()
    operator.inputs[position] = len(tensors) - 1


def with_biases(content: bytes, biases: dict[str, np.ndarray]) -> bytes:
    """A float32 file with other biases.

    Args:
        biases: {name of a product's output: its bias, `(O,)`}.
    """
    model = model_file.unpacked(content)
    tensors = model.subgraphs[0].tensors
    for operator in model.subgraphs[0].operators:
        bias = biases.get(tensors[operator.outputs[0]].name.decode())
        if bias is not None:
            set_constant(model, operator, 2, bias)
    return model_file.packed(model, len(content))


def insert_multiplication(model: Any, source: int, by: np.ndarray, name: str) -> int:
    """Multiply the last axis of a tensor by constants, before the first operation that takes it.

    Args:
        by: float32 `(C,)`.
        name: of the result, which nothing takes yet.

    Returns:
        The result's index.
    """
    tables, (graph,) = model_file.schema(), model.subgraphs
    old = graph.tensors[source]
    factors, result, operator = tables.TensorT(), tables.TensorT(), tables.OperatorT()
    factors.name, factors.shape = f"{name}/factors".encode(), np.array(by.shape, "int32")
    factors.buffer = model_file.add_buffer(model, by.astype("float32").view("uint8"))
    result.name, result.shape, result.buffer = name.encode(), old.shape, 0
    operator.opcodeIndex = _code(model, tables.BuiltinOperator.MUL)
    operator.builtinOptionsType = tables.BuiltinOptions.MulOptions
    operator.builtinOptions = tables.MulOptionsT()
    place = min(graph.operators.index(op) for op in readers(model, source))
    graph.operators.insert(place, operator)
    graph.tensors += [factors, result]
    operator.inputs = np.array([source, len(graph.tensors) - 2], "int32")
    operator.outputs = np.array([len(graph.tensors) - 1], "int32")
    return len(graph.tensors) - 1


def _code(model, number):
    """The index of an operation's code, which is added if it is new."""
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == number:
            return index
    new = model_file.schema().OperatorCodeT()
    new.builtinCode = new.deprecatedBuiltinCode = number
    new.version = 1
    model.operatorCodes.append(new)
    return len(model.operatorCodes) - 1

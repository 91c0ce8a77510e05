"""Matrix products of an ONNX graph, without the reshapes around them."""

import collections
from typing import Any


def merge_reshapes(proto: Any) -> None:
    """Let products take tensors of any rank, as ONNX's MatMul does.

    TensorFlow reshapes `(B, N, I)` to `(B * N, I)` before a product with a matrix, and back after
    it. With a dynamic batch size OpenVINO cannot move int8 scales through these reshapes.

    Args:
        proto: an `onnx.ModelProto`, which is changed.
    """
    from onnx import shape_inference

    graph = proto.graph
    inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {x.name: _shape(x) for x in (*inferred.value_info, *inferred.input)}
    makers = {name: node for node in graph.node for name in node.output}
    readers = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    renamed = {}
    for node in (node for node in graph.node if node.op_type == "MatMul"):
        before, after = makers.get(node.input[0]), readers[node.output[0]]
        if before is None or [before.op_type, *(x.op_type for x in after)] != ["Reshape"] * 2:
            continue
        names = before.input[0], node.input[0], after[0].output[0]
        source, flat, target = (shapes.get(name) for name in names)
        if source and flat and target and source[:-1] == target[:-1] and source[-1] == flat[-1]:
            node.input[0] = names[0]
            renamed[names[2]] = node.output[0]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    _remove_unused(graph)


def _shape(value):
    """Numbers and names of the axes; None if one has neither."""
    found = [x.dim_value or x.dim_param for x in value.type.tensor_type.shape.dim]
    return found if all(found) else None


def _remove_unused(graph):
    """Remove the nodes and constants that nothing reads."""
    read = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [x for x in graph.initializer if x.name in read]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    shapes = [x for x in graph.value_info if x.name in read]
    del graph.value_info[:]
    graph.value_info.extend(shapes)

"""Insert weights into an ONNX graph that was converted without them."""

from typing import Any

import numpy as np


def insert(proto: Any, weights: list[tuple[str, np.ndarray]]) -> None:
    """Replace the graph's inputs after the first, `weight_0`, `weight_1` ..., by constants.

    Nodes that depend on constants alone are evaluated.

    Args:
        proto: an `onnx.ModelProto`, which is changed.
        weights: list of (name, array), one for each of these inputs, in order.
    """
    from onnx import numpy_helper

    graph = proto.graph
    names = {value.name: _index(value.name) for value in graph.input[1:]}
    known = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    known |= {name: weights[i][1] for name, i in names.items()}
    del graph.input[1:]
    nodes = [node for node in graph.node if not _computed(proto, node, known)]
    used = {name for node in nodes for name in node.input}
    titles = {name: weights[i][0] for name, i in names.items()}
    for node in nodes:
        node.input[:] = [titles.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    for name, value in known.items():
        if name in used:
            graph.initializer.append(numpy_helper.from_array(value, titles.get(name, name)))


def _index(name):
    return int(name.removeprefix("weight_").partition(":")[0])


def _computed(proto, node, known):
    """Evaluate a node if all its inputs are constants; whether it was."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if not node.input or not all(name in known for name in node.input if name):
        return False
    inputs = [helper.make_value_info(name, helper.TypeProto()) for name in node.input if name]
    outputs = [helper.make_value_info(name, helper.TypeProto()) for name in node.output]
    graph = helper.make_graph([node], "one", inputs, outputs)
    model = helper.make_model(graph, opset_imports=proto.opset_import)
    found = ReferenceEvaluator(model).run(None, {x.name: known[x.name] for x in inputs})
    known.update(zip(node.output, map(np.ascontiguousarray, found), strict=True))
    return True

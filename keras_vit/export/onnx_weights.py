"""Weights into an ONNX graph that was made without them."""

import numpy as np


def insert(proto, weights):
    """Numbers in the place of the inputs of a graph that follow the first, `weight_0`, `weight_1`
    and so on; what is computed from them alone is computed now.

    Args:
        proto: a `onnx.ModelProto`, which is changed.
        weights: list of (name, array), of all these inputs in their order.
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
    """Whether a node's outputs are known by now, for all its inputs were."""
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

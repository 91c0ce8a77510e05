"""Attention flow: how much can reach an output token, by maximum flow through the blocks.

"Quantifying Attention Flow in Transformers" (https://arxiv.org/abs/2005.00928), section 3.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_vit.explain.maps import fused
from keras_vit.explain.rollouts import check_square, with_skip

UNIT = 10**6  # capacities are integers: this many for a weight of 1


def attention_flow(
    maps: Sequence[np.ndarray], query: int = 0, tokens: Sequence[int] | None = None
) -> np.ndarray:
    """Attention flow: the maximum flow from an output token to each input token.

    The blocks' maps are a network. A token is joined to each token of the block before it by an
    edge whose capacity is the mean attention over the heads, averaged with the identity (the skip
    connection). Section 3 of https://arxiv.org/abs/2005.00928.

    The flow to a token is at most 1 and at most what the first block lets into it, the sum of the
    token's column. Deep models reach that bound for most tokens: the map is then nearly flat.

    Args:
        maps: the blocks' maps in order, `(B, heads, N, N)`, from `attention_maps`.
        query: index of the output token, 0 for the class token.
        tokens: indices of the input tokens; all by default. Each costs one maximum flow: for 12
            blocks of 197 tokens, 6 seconds per image for all of them.

    Returns:
        Array `(B, tokens)` float32, 0 to 1, exact to 1e-6 per block and token.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: no maps, or maps of different sizes; no such token.
    """
    maximum_flow, csr_array = scipy_graph()
    check_square(maps, "attention_flow")
    steps = [with_skip(fused(block, "mean")) for block in maps]
    images, count = steps[0].shape[:2]
    chosen = list(range(count)) if tokens is None else list(tokens)
    wrong = [i for i in (query, *chosen) if not 0 <= i < count]
    if wrong:
        raise ValueError(f"Tokens are numbers from 0 to {count - 1}. Received: {wrong[0]}")
    flows = np.empty((images, len(chosen)), "float32")
    for image in range(images):
        graph = _graph([step[image] for step in steps], csr_array)
        source = len(steps) * count + query
        for i, token in enumerate(chosen):
            flows[image, i] = maximum_flow(graph, source, token).flow_value / UNIT
    return flows


def _graph(steps, csr_array):
    """The network of one image: node l * N + i is token i after l blocks."""
    count, depth = len(steps[0]), len(steps)
    tails, heads = np.divmod(np.arange(count * count), count)
    rows = np.concatenate([(i + 1) * count + tails for i in range(depth)])
    columns = np.concatenate([i * count + heads for i in range(depth)])
    capacities = np.rint(UNIT * np.concatenate([step.ravel() for step in steps])).astype("int32")
    size = (depth + 1) * count
    return csr_array((capacities, (rows, columns)), shape=(size, size))


def scipy_graph() -> tuple[Any, Any]:
    """SciPy's `maximum_flow` and `csr_array`."""
    try:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_flow
    except ImportError:
        raise ImportError(
            'Attention flow needs SciPy: pip install "keras-vit-zoo[explain]"'
        ) from None
    return maximum_flow, csr_array

"""The kinds of attention that a model takes by name."""

from collections.abc import Sequence
from typing import Any

from keras_vit.layers.attention import Attention
from keras_vit.layers.base import one_of
from keras_vit.layers.linear import LinearAttention
from keras_vit.layers.sparse import AxialAttention, GridAttention, SparseAttention

ATTENTIONS: dict[str, tuple[type[Attention], dict[str, Any]]] = {
    "full": (Attention, {}),
    "linear": (LinearAttention, {}),
    "performer": (LinearAttention, {"features": "performer"}),
    "axial": (AxialAttention, {}),
    "sparse": (SparseAttention, {}),
}


def options_of(
    kind: str, grid: Sequence[int | None], num_prefix_tokens: int
) -> dict[str, Any] | None:
    """What `TransformerBlock(attention_options=)` takes for a kind of attention; None for full
    attention.

    Args:
        kind: a key of `ATTENTIONS`.
        grid: (rows, columns) of the patches.
        num_prefix_tokens: number of tokens before the patches.

    Raises:
        ValueError: an unknown kind, or one that needs a grid of known size.
    """
    cls, _ = ATTENTIONS[one_of(kind, "attention", ATTENTIONS)]
    if cls is Attention:
        return None
    if not issubclass(cls, GridAttention):
        return {"kind": kind}
    rows, columns = grid
    if not (isinstance(rows, int) and isinstance(columns, int)):
        raise ValueError(
            f'attention="{kind}" is for images of one size, cut into a grid. Received: '
            'image_size=None or patches="adaptive"'
        )
    return {"kind": kind, "grid": [rows, columns], "num_prefix_tokens": num_prefix_tokens}

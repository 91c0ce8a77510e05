"""The kinds of attention that a model takes by name, and the positions that go with them."""

from collections.abc import Sequence
from typing import Any

from keras_vit.layers.attention import Attention
from keras_vit.layers.base import one_of
from keras_vit.layers.grid import GridAttention
from keras_vit.layers.linear import LinearAttention
from keras_vit.layers.pooling_attention import PoolingAttention
from keras_vit.layers.positional import (
    RelativePositionAttention,
    RotaryPositionAttention,
    ShawAttention,
)
from keras_vit.layers.positions import POSITIONS
from keras_vit.layers.shifted import ShiftedWindowAttention
from keras_vit.layers.sparse import AxialAttention, SparseAttention

ATTENTIONS: dict[str, tuple[type[Attention], dict[str, Any]]] = {
    "full": (Attention, {}),
    "linear": (LinearAttention, {}),
    "performer": (LinearAttention, {"features": "performer"}),
    "axial": (AxialAttention, {}),
    "sparse": (SparseAttention, {}),
    "window": (ShiftedWindowAttention, {}),
    "pooling": (PoolingAttention, {}),
    "relative": (RelativePositionAttention, {}),
    "shaw": (ShawAttention, {}),
    "rotary": (RotaryPositionAttention, {}),
}
# Positions that the blocks have: {positions: {attention: the kind that has both}}.
IN_BLOCKS: dict[str, dict[str, str]] = {
    "relative": {
        "full": "relative",
        **{kind: kind for kind in ("relative", "shaw", "window")},
    },
    "rotary": {"full": "rotary", "rotary": "rotary"},
}
WINDOW = 7  # patches, Swin's


def options_of(
    attention: str, positions: str, grid: Sequence[int | None], num_prefix_tokens: int, depth: int
) -> list[dict[str, Any] | None]:
    """What `TransformerBlock(attention_options=)` takes in each block; None for full attention.

    Args:
        attention: a key of `ATTENTIONS`.
        positions: one of `POSITIONS`.
        grid: (rows, columns) of the patches.
        num_prefix_tokens: number of tokens before the patches.
        depth: number of blocks.

    Raises:
        ValueError: an unknown attention or unknown positions; positions that there are not with
            this attention; or one of them needs a grid of known size.
    """
    one_of(attention, "attention", ATTENTIONS)
    kind, named = attention, f'attention="{attention}"'
    if one_of(positions, "positions", POSITIONS) in IN_BLOCKS:
        kind, named = in_blocks(positions, attention), f'positions="{positions}"'
    cls, _ = ATTENTIONS[kind]
    if cls is Attention:
        return [None] * depth
    if not issubclass(cls, GridAttention):
        return [{"kind": kind}] * depth
    rows, columns = grid
    if not (isinstance(rows, int) and isinstance(columns, int)):
        raise ValueError(
            f"{named} is for images of one size, cut into a grid. Received: image_size=None or "
            'patches="adaptive"'
        )
    options = {"kind": kind, "grid": [rows, columns], "num_prefix_tokens": num_prefix_tokens}
    if kind != "window":
        return [options] * depth
    window = window_of((rows, columns))
    shifts = [[0, 0], shift_of(window, (rows, columns))]  # in turn
    return [{**options, "window": list(window), "shift": shifts[i % 2]} for i in range(depth)]


def in_blocks(positions: str, attention: str) -> str:
    """The kind of attention that has these positions itself.

    Raises:
        ValueError: there is none.
    """
    if (found := IN_BLOCKS[positions].get(attention)) is None:
        known = ", ".join(f'"{kind}"' for kind in IN_BLOCKS[positions])
        others = ", ".join(f'"{kind}"' for kind in POSITIONS if kind not in IN_BLOCKS)
        raise ValueError(
            f'positions="{positions}" is a part of attention, and there is one with attention='
            f"{known}; all kinds of attention take positions={others}. "
            f'Received: attention="{attention}"'
        )
    return found


def window_of(grid: Sequence[int]) -> tuple[int, int]:
    """The windows of a grid: as few as there can be of at most `WINDOW` rows and columns, equal but
    for the last ones: 14 -> 7, 8 -> 4, 16 -> 6."""
    rows, columns = (-(-n // -(-n // WINDOW)) for n in grid)
    return rows, columns


def shift_of(window: Sequence[int], grid: Sequence[int]) -> list[int]:
    """Half a window (section 3.2 of https://arxiv.org/abs/2103.14030); 0 if one window is all."""
    return [w // 2 if w < n else 0 for w, n in zip(window, grid, strict=True)]

"""The kinds of patches that a model takes by name."""

from collections.abc import Mapping
from typing import Any

from keras_vit.layers.adaptive import AdaptivePatches
from keras_vit.layers.base import arguments, one_of
from keras_vit.layers.projections import (
    HybridPatches,
    OverlappingPatches,
    PatchProjection,
    PositionalPatches,
)

KINDS = (OverlappingPatches, HybridPatches, PositionalPatches, AdaptivePatches)
# A kind is called after its class; plain patches need no layer but a convolution.
PATCHES: dict[str, type[PatchProjection] | None] = {
    "plain": None,
    **{cls.__name__.removesuffix("Patches").lower(): cls for cls in KINDS},
}


def kind_of(patches: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a kind of patches, and arguments of its layer.

    Raises:
        ValueError: if the kind or an argument is unknown.
    """
    options = {"kind": patches} if isinstance(patches, str) else dict(patches)
    kind = one_of(options.pop("kind", None), "patches", PATCHES)
    cls = PATCHES[kind]
    common = {*arguments(PatchProjection.__init__), "backbone"}  # a layer is no plain value
    known = [name for name in arguments(cls.__init__) if name not in common] if cls else []
    if wrong := sorted(set(options) - set(known)):
        raise ValueError(
            f'patches="{kind}" has no argument {", ".join(wrong)}. '
            f"It takes: {', '.join(known) or 'none'}."
        )
    return kind, options

"""Rows of presets/ as specs: checkpoints, and architectures without weights."""

import keras_vit_presets as presets
from keras_vit.hub import Repository
from keras_vit.layouts.spec import HALF, Spec, spec_of


def from_checkpoint(row: presets.Checkpoint, repository: Repository | None) -> Spec:
    """The spec of a row of the tables."""
    return spec_of(
        row.family,
        row.options,
        images=row.images,
        source=repository,
        ignore=() if row.num_classes else ("head.*",),
        optional=row.untrained,
        num_classes=row.num_classes,
        labels=row.labels,
        name=row.name,
    )


def from_architecture(name: str) -> Spec | None:
    """The spec of a timm architecture such as `vit_giant_patch14_224`; None: there is no such one.

    It has no weights, timm's default preprocessing, and a head with 1000 classes.
    """
    found = presets.architecture(name)
    if found is None:
        return None
    family, options = found
    size = int((presets.RESOLUTION.search(name) or [0, 224])[1])
    images = {"image_size": size, "mean": HALF, "std": HALF, "crop_pct": 0.9}
    options = {**options, "image_size": size}
    return spec_of(family, options, images=images, num_classes=1000, name=name)

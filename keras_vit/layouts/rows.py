"""The rows of presets/ as specs: a checkpoint's, and an architecture's without weights."""

from keras_vit import presets
from keras_vit.layouts.spec import HALF, spec_of


def from_row(name, repository):
    """The spec of a row of the tables."""
    row = presets.checkpoints()[name]
    table = presets.families()[row["family"]]
    options = presets.expand(table, table["architectures"][row["arch"]])
    images = {
        "image_size": row["size"],
        **table["norms"][row["norm"]],
        "crop_pct": row["crop"],
        "crop_mode": row.get("crop_mode", "center"),
        "interpolation": row.get("interpolation", "bicubic"),
    }
    return spec_of(
        row["family"],
        {**options, "image_size": row["size"]},
        images=images,
        source=repository,
        num_classes=row["classes"],
        labels=row.get("labels"),
        name=name,
    )


def from_architecture(name):
    """The spec of one of timm's architectures, `vit_giant_patch14_224`; None if it is none.

    It has no weights; its preprocessing is timm's default, its head has 1000 classes.
    """
    found = presets.architecture(name)
    if found is None:
        return None
    family, options = found
    size = int((presets.RESOLUTION.search(name) or [0, 224])[1])
    images = {"image_size": size, "mean": HALF, "std": HALF, "crop_pct": 0.9}
    options = {**options, "image_size": size}
    return spec_of(family, options, images=images, num_classes=1000, name=name)

"""Draw the gallery of docs/explain.md, and write the page that it shows.

    python scripts/docs/explain_gallery.py MODEL PICTURES

MODEL: deit_tiny_patch16_224.fb_in1k, by name or as a directory. PICTURES: a folder with the
photographs below. The results are kept in docs/explain/, so the documentation is built without
either.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

import keras_vit
from keras_vit import explain

OUT = pathlib.Path(__file__).parents[2] / "docs" / "explain"
PHOTOGRAPHS = ("n01440764_tench.JPEG", "n01818515_macaw.JPEG", "n02128385_leopard.JPEG")


def halves(left, right, size=224):
    """Two photographs in one picture, the middle of each in a half of it."""
    parts = []
    for path in (left, right):
        picture = Image.open(path).convert("RGB")
        width = picture.height // 2
        start = max((picture.width - width) // 2, 0)
        picture = picture.crop((start, 0, start + width, picture.height))
        parts.append(np.asarray(picture.resize((size // 2, size), Image.Resampling.BICUBIC)))
    return np.concatenate(parts, axis=1)


def main(name, pictures):
    model = keras_vit.from_preset(name)
    paths = [str(pathlib.Path(pictures) / file) for file in PHOTOGRAPHS]
    OUT.mkdir(exist_ok=True)

    def save(figure, file):
        figure.savefig(OUT / file, dpi=90, pil_kwargs={"quality": 85})
        print(file, flush=True)

    two = halves(paths[1], paths[2])
    names = [model.classify(path, top=1)[0][0] for path in paths[1:]]
    save(explain.overlay_classes(model, two, names), "two_objects.jpg")
    for method in ("rollout", "relevance", "grad_cam"):
        save(explain.gallery(model, paths, method, columns=3), f"{method}.jpg")
    save(explain.overlay_classes(model, paths[:1], top=3), "classes.jpg")
    save(explain.overlay_heads(model, paths[2]), "heads.jpg")
    save(
        explain.visualize_patches(model.preprocessor.image_converter.pixels(paths[2])),
        "patches.jpg",
    )
    save(explain.analyse(model, paths), "analyse.jpg")
    made = explain.page(model, paths[1:2], OUT / "page.html", heads_of=[0, 5, 11])
    print(f"page.html: {made.size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Draw the gallery of docs/explain.md, and write the page that it shows.

    python scripts/docs/explain_gallery.py MODEL

MODEL: deit_tiny_patch16_224.fb_in1k, by name or as a directory. The photographs, which are free,
are scikit-image's: a cat, a cup of coffee, a rocket. The results are kept in docs/explain/, so the
documentation is built without either.
"""

import pathlib
import sys

import numpy as np
from PIL import Image
from skimage import data

import keras_vit
from keras_vit import explain

OUT = pathlib.Path(__file__).parents[2] / "docs" / "explain"


def halves(left, right, size=224):
    """Two photographs in one picture, the middle of each in a half of it."""
    parts = []
    for photograph in (left, right):
        picture = Image.fromarray(photograph)
        width = picture.height // 2
        start = max((picture.width - width) // 2, 0)
        picture = picture.crop((start, 0, start + width, picture.height))
        parts.append(np.asarray(picture.resize((size // 2, size), Image.Resampling.BICUBIC)))
    return np.concatenate(parts, axis=1)


def main(name):
    model = keras_vit.from_preset(name)
    cat, coffee, rocket = photographs = [data.chelsea(), data.coffee(), data.rocket()]
    OUT.mkdir(exist_ok=True)

    def save(figure, file):
        figure.savefig(OUT / file, dpi=90, pil_kwargs={"quality": 85})
        print(file, flush=True)

    two = halves(cat, coffee)
    names = [model.classify(photograph, top=1)[0][0] for photograph in (cat, coffee)]
    save(explain.overlay_classes(model, two, names), "two_objects.jpg")
    for method in ("rollout", "relevance", "grad_cam"):
        save(explain.gallery(model, photographs, method, columns=3), f"{method}.jpg")
    save(explain.overlay_classes(model, [rocket], top=3), "classes.jpg")
    save(explain.overlay_heads(model, cat), "heads.jpg")
    pixels = model.preprocessor.image_converter.pixels(cat)
    save(explain.visualize_patches(pixels), "patches.jpg")
    save(explain.visualize_patches(pixels, patches="adaptive"), "adaptive.jpg")
    save(explain.analyse(model, photographs), "analyse.jpg")
    made = explain.page(model, [coffee], OUT / "page.html", heads_of=[0, 5, 11])
    print(f"page.html: {made.size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])

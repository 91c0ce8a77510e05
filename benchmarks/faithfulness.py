"""Deletion and insertion of each method's maps over photographs: which map is true?

    python benchmarks/faithfulness.py MODEL PICTURES [--step N] [--points N]

MODEL: a directory or name, such as deit_tiny_patch16_224.fb_in1k. PICTURES: a folder of photographs
with labels.json, {file: class}; with --step N only every N-th. --points: of a curve, without
the first. The class is the one that the model
finds most probable. Prints a table in Markdown.
"""

import argparse
import pathlib
import time

import common
import numpy as np


def methods(model):
    """{name: function of (images, classes) that gives maps (B, rows, columns)}."""
    from keras_vit import explain
    from keras_vit.explain.deletion import random_map
    from keras_vit.explain.maps import grid_of
    from keras_vit.explain.methods import METHODS

    grid = grid_of(model)

    def last_block(images, classes):
        (last,) = explain.attention_maps(model, images, blocks=-1, heads="mean")
        row = last[:, 0, 0, model.backbone.num_prefix_tokens :]
        return row.reshape(-1, *grid)

    found = {
        "random": lambda images, classes: random_map(len(images), grid),
        "attention of the last block": last_block,
    }
    for name, function in METHODS.items():
        found[name] = lambda images, classes, f=function: f(model, images, classes)[:, 0]
    found["rollout, discard 0.9"] = lambda images, classes: explain.relevance(
        model, images, discard=0.9
    )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("pictures", type=pathlib.Path)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--methods", nargs="*")
    args = parser.parse_args()
    import keras_vit
    from keras_vit import explain

    model = keras_vit.from_preset(args.model)
    paths = [str(path) for path in common.photographs(args.pictures)[0][:: args.step]]
    classes = explain.top_classes(model, paths, 1)
    print(f"{len(paths)} photographs\n")
    print("| map | deletion (low is good) | insertion (high is good) | ms per image |")
    print("|---|--:|--:|--:|")
    for name, function in methods(model).items():
        if args.methods and name not in args.methods:
            continue
        begin = time.perf_counter()
        maps = function(paths, classes)
        spent = (time.perf_counter() - begin) / len(paths) * 1000
        found = explain.faithfulness(model, paths, maps, classes, args.points)
        errors = [np.std(x) / np.sqrt(len(paths)) for x in (found.deletion, found.insertion)]
        cells = [
            f"{x.mean():.3f} ± {error:.3f}"
            for x, error in zip((found.deletion, found.insertion), errors, strict=True)
        ]
        print(f"| {name} | {cells[0]} | {cells[1]} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()

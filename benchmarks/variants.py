"""Kinds of attention and positions: cost against the number of tokens, and what they learn.

    python benchmarks/variants.py cost [--kinds full linear ...] [--sides 32 48 64 80] [--rounds N]
    python benchmarks/variants.py accuracy [--kinds ...] [--positions ...] [--steps N] [--seeds N]

cost: one layer of 4 heads and 192 channels on a grid of side x side patches and one class token,
inference in float32, batch size 1, two threads; each layer in its own process, in alternation. The
slope is that of log(time) over log(tokens) at the three largest grids: 2 is quadratic, 1 linear.
Memory is the growth of the process's peak in the first call. accuracy: a ViT of 1.8 M parameters on
CIFAR-10 (../shared/images), plain `fit` with AdamW, one value per choice and seed.
"""

import argparse
import json
import pathlib
import resource
import statistics

import alternation
import common

WIDTH, HEADS = 192, 4
KINDS = ("full", "linear", "performer", "axial", "sparse", "window", "pooling", "relative", "shaw")
KINDS += ("rotary",)
POSITIONS = ("learned", "learned2d", "sincos2d", "relative", "rotary", "none")


def prepared(kind, side):
    """A function that runs the layer once."""
    import numpy as np
    import tensorflow as tf

    from keras_vit.layers import kinds

    tf.config.threading.set_intra_op_parallelism_threads(alternation.THREADS)
    cls, options = kinds.ATTENTIONS[kind]
    *_, own = kinds.options_of(kind, "none", (side, side), 1, depth=2)  # windows: shifted
    own = dict(own or {})
    own.pop("kind", None)
    layer = cls(HEADS, **options, **own)
    x = tf.constant(np.random.default_rng(0).normal(size=(1, 1 + side**2, WIDTH)), tf.float32)
    layer.build(x.shape)
    compiled = tf.function(layer)
    return lambda: compiled(x).numpy()


def peak():
    """The largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MEMORY = """
import variants
run = variants.prepared({kind!r}, {side})
before = variants.peak()
run()
print("RESULT", variants.peak() - before)
"""


def rows(title, options, measured):
    """A table, with the slope of the last three columns."""
    import numpy as np

    sides = options.sides
    print(f"\n| {title} | " + " | ".join(f"{n} x {n}" for n in sides) + " | slope |")
    print("|---|" + "--:|" * (len(sides) + 1))
    for kind in options.kinds:
        values = [measured[kind, side] for side in sides]
        logs = np.log([side**2 for side in sides]), np.log(values)
        slope = np.polyfit(*(part[-3:] for part in logs), 1)[0]
        print(f"| {kind} | " + " | ".join(f"{v:.1f}" for v in values) + f" | {slope:.2f} |")


def cost(options):
    cases = [(kind, side) for side in options.sides for kind in options.kinds]
    seconds = {}
    for side in options.sides:  # few processes at a time
        commands = {c: (__file__, "--worker", *c) for c in cases if c[1] == side}
        seconds |= alternation.medians(alternation.alternate(commands, options.rounds))
    rows("ms", options, {case: value * 1e3 for case, value in seconds.items()})
    memory = {
        (kind, side): common.medians({0: MEMORY.format(kind=kind, side=side)}, 1)[0][0]
        for kind, side in cases
    }
    rows("MiB", options, memory)


def model(seed, **choice):
    import keras

    import keras_vit
    from keras_vit.images import ImageConverter, ImagePreprocessor

    keras.utils.set_random_seed(seed)
    backbone = keras_vit.ViTBackbone(
        image_size=32, patch_size=4, embed_dim=WIDTH, depth=4, num_heads=HEADS, **choice
    )
    converter = ImageConverter(32, mean=[0.5] * 3, std=[0.25] * 3, crop_pct=1.0)
    return keras_vit.ViT(backbone, 10, preprocessor=ImagePreprocessor(converter))


def accuracy(options):
    import keras
    import learning

    choices = [{"attention": kind} for kind in KINDS if kind in options.kinds]
    choices += [{"positions": kind} for kind in POSITIONS[1:] if kind in options.positions]
    results = {}
    for seed in range(options.seeds):
        training, test = learning.cifar10(options.shared, options.pictures, seed)
        epochs = learning.epochs_for(options.steps, len(training[1]), options.batch)
        for choice in choices:
            made = model(seed, **choice)
            made.compile(
                keras.optimizers.AdamW(1e-3, weight_decay=0.05),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile=False,
            )
            made.fit(*training, batch_size=options.batch, epochs=epochs, seed=seed, verbose=0)
            ((name, kind),) = choice.items()
            value = learning.accuracy(made, *test)
            results.setdefault((name, kind, made.count_params()), []).append(value)
            print(json.dumps({"seed": seed, name: kind, "value": round(value, 4)}), flush=True)
    print("\n| choice | parameters | accuracy | seeds |\n|---|--:|--:|---|")
    for (name, kind, params), values in results.items():
        each = ", ".join(f"{v:.3f}" for v in values)
        print(f"| {name}={kind} | {params} | {statistics.mean(values):.3f} | {each} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("cost", "accuracy"), default="cost")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 48, 64, 80])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--positions", nargs="*", choices=POSITIONS, default=POSITIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--shared", type=pathlib.Path, default=pathlib.Path("../shared"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        kind, side = options.worker
        run = prepared(kind, int(side))
        for _ in range(3):
            run()
        alternation.serve(run)
    elif options.what == "cost":
        cost(options)
    else:
        accuracy(options)


if __name__ == "__main__":
    main()

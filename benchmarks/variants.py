"""Kinds of attention, positions, patches and heads: cost, and what they learn.

    python benchmarks/variants.py cost [--kinds full linear ...] [--sides 32 48 64 80] [--rounds N]
    python benchmarks/variants.py accuracy [--seeds N] [--seed K] [--done FILE...] [--plot FILE]
    python benchmarks/variants.py heads [--steps N] [--rates 3e-4 1e-3 3e-3]

cost: one layer of 4 heads and 192 channels on a grid of side x side patches and one class token,
inference in float32, batch size 1, two threads; each layer in its own process, in alternation. The
slope is that of log(time) over log(tokens) at the three largest grids: 2 is quadratic, 1 linear.
Memory is the growth of the process's peak in the first call.

accuracy: a ViT of 0.46 M parameters, 64 patches, on CIFAR-10 (../shared/images), plain `fit` with
AdamW, one value per choice and seed; beside it milliseconds per picture (inference, batches of 64,
all models in one process, in alternation, medians) and the growth of the peak of memory in a
training step of 64 pictures, in MiB, in a process of its own.

heads: the same ViT with a class token and with a mean over the patches, at several learning rates
(appendix D.3 of the ViT paper: each needs its own).
"""

import argparse
import json
import pathlib
import statistics

import alternation
import common

WIDTH, HEADS = 192, 4
KINDS = ("full", "linear", "performer", "axial", "sparse", "window", "pooling", "relative", "shaw")
KINDS += ("rotary",)
POSITIONS = ("learned", "learned2d", "sincos2d", "conditional", "relative", "rotary", "none")
PATCHES = ("plain", "overlapping", "hybrid", "positional", "adaptive")
POOLINGS = ("token", "avg", "tokens", "seq", "map")


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
    """The largest memory of this process so far, in MiB. (ru_maxrss begins with the parent's.)"""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


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


HEAD = ("pooling",)  # choices of the classifier; the others are the backbone's


def choices():
    """The model as it is, and with one change each."""
    yield {}
    yield from ({"attention": kind} for kind in KINDS[1:] if kind not in POSITIONS)
    yield from ({"positions": kind} for kind in POSITIONS[1:])
    yield from ({"patches": kind} for kind in PATCHES[1:])
    yield from ({"pooling": kind} for kind in POOLINGS[1:])


def named(choice):
    return "plain" if not choice else ", ".join(f'{key}="{v}"' for key, v in choice.items())


def model(seed=0, rate=1e-3, **choice):
    import keras

    import keras_vit
    from keras_vit.images import ImageConverter, ImagePreprocessor

    keras.utils.set_random_seed(seed)
    head = {key: choice.pop(key) for key in HEAD if key in choice}
    if head.get("pooling") == "tokens":
        choice["reg_tokens"] = 3
    backbone = keras_vit.ViTBackbone(
        image_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=HEADS, **choice
    )
    converter = ImageConverter(32, mean=[0.5] * 3, std=[0.25] * 3, crop_pct=1.0)
    made = keras_vit.ViT(backbone, 10, preprocessor=ImagePreprocessor(converter), **head)
    made.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return made


STEP = """
import numpy as np
import variants
model = variants.model(**{choice!r})
x, y = np.zeros((64, 32, 32, 3), "float32"), np.zeros(64, int)
for count in (2, 3):  # TensorFlow traces the step, and then for any number of pictures
    model.train_on_batch(x[:count], y[:count])
before = variants.peak()
model.train_on_batch(x, y)
print("RESULT", variants.peak() - before)
"""


def times(options):
    """Milliseconds per picture of each choice."""
    import time

    import numpy as np
    import tensorflow as tf

    x = tf.constant(np.random.default_rng(0).normal(size=(64, 32, 32, 3)), tf.float32)
    calls = {}
    for choice in choices():
        made = model(**choice)
        calls[named(choice)] = tf.function(lambda x, made=made: made(x, training=False))
    seconds = {name: [] for name in calls}
    for _ in range(options.rounds * 4 + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(x).numpy()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) / 64 * 1e3 for name, found in seconds.items()}


def trained(options, seed, data, **choice):
    """The accuracy after `fit`, and the number of parameters."""
    import learning

    training, test = data
    made = model(seed, **choice)
    epochs = learning.epochs_for(options.steps, len(training[1]), options.batch)
    made.fit(*training, batch_size=options.batch, epochs=epochs, seed=seed, verbose=0)
    return learning.accuracy(made, *test), made.count_params()


def accuracy(options):
    import learning

    text = "".join(path.read_text() for path in options.done or ())
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    done = {(line["seed"], line["choice"]): line for line in lines}
    rows = {}
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    for seed in seeds:
        data = learning.cifar10(options.shared, options.pictures, seed)
        for choice in choices():
            name = named(choice)
            line = done.get((seed, name))
            if line is None:
                value, parameters = trained(options, seed, data, **choice)
                line = {"seed": seed, "choice": name, "value": value, "parameters": parameters}
                print(json.dumps(line), flush=True)
            rows.setdefault(name, (line["parameters"], []))[1].append(line["value"])
    if options.seed is not None:
        return
    milliseconds = times(options)
    memory = {named(c): common.medians({0: STEP.format(choice=c)}, 1)[0][0] for c in choices()}
    print("\n| choice | parameters | ms per picture | MiB per step | accuracy | seeds |")
    print("|---|--:|--:|--:|--:|---|")
    for name, (parameters, values) in rows.items():
        each = ", ".join(f"{v:.1%}" for v in values)
        cells = (f"{parameters:,}", f"{milliseconds[name]:.2f}", f"{memory[name]:.0f}")
        print(f"| {name} | {' | '.join(cells)} | {statistics.mean(values):.1%} | {each} |")
    if options.plot:
        plot({name: (milliseconds[name], v) for name, (_, v) in rows.items()}, options.plot)


def plot(points, path):
    """Accuracy, the mean of the seeds with their range, and time: one row per choice."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(8, 7), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    colours = {"attention": "C0", "positions": "C1", "patches": "C2", "pooling": "C3"}
    names = list(points)[::-1]
    for row, name in enumerate(names):
        milliseconds, values = points[name]
        mean, colour = statistics.mean(values), colours.get(name.split("=")[0], "black")
        off = [[mean - min(values)], [max(values) - mean]]
        left.errorbar(mean, row, xerr=off, fmt="o", color=colour, capsize=2)
        right.barh(row, milliseconds, color=colour, height=0.6)
    left.set_yticks(range(len(names)), names)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left.set_xlabel("accuracy on CIFAR-10")
    right.set_xlabel("inference, ms per picture")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)


def heads(options):
    import learning

    print("| learning rate |" + "".join(f" {kind} |" for kind in POOLINGS[:2]))
    print("|---|" + "--:|" * 2)
    for rate in options.rates:
        cells = []
        for kind in POOLINGS[:2]:
            values = []
            for seed in range(options.seeds):
                data = learning.cifar10(options.shared, options.pictures, seed)
                values.append(trained(options, seed, data, rate=rate, pooling=kind)[0])
            cells.append(f"{statistics.mean(values):.1%}")
        print(f"| {rate:g} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("cost", "accuracy", "heads"), default="cost")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 48, 64, 80])
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--seed", type=int, help="this one alone, and no table")
    parser.add_argument("--done", type=pathlib.Path, nargs="*", help="what was printed before")
    parser.add_argument("--plot", type=pathlib.Path, help="a PNG of accuracy and time")
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
    else:
        {"cost": cost, "accuracy": accuracy, "heads": heads}[options.what](options)


if __name__ == "__main__":
    main()

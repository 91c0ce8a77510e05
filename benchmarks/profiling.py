"""What a forward pass of ViT-B/16 spends its time on, with TensorFlow on the CPU.

    python benchmarks/profiling.py [--dtype float32 bfloat16] [--batch 1 8] [--constants] [--top N]

TensorFlow's profiler sums the time of each operation, by the kinds that the table shows; on two
threads, operations of which each uses both. Random weights, as in inference.py. `--constants`: the
graph of `predict(constant_weights=True)`; `--top`: also the operations that took most. An operation
that oneDNN has fused counts as what it begins with: `_MklFusedMatMul` as a product, with its bias
and GELU.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import alternation
import inference

STEPS = 20
KINDS = {  # of an operation's name or type; the first that matches
    "attention products": "BatchMatMul",
    "matrix products of dense layers": "MatMul|Conv2D",
    "casts": "Cast$",
    "norms": "norm",
    "softmax": "Softmax",
    "GELU": "Gelu|Erf|Tanh",
    "transposes": "Transpose",
    "residual sums, scale of attention": "Add|Mul|Sub",
    "copies": "Concat|Pack|Slice|Split|Reshape|Tile|Broadcast",
    "other": "",
}


def kind(name, operation):
    """The kind of an operation."""
    return next(k for k, words in KINDS.items() if re.search(words, f"{name}:{operation}"))


def worker(dtype, batch, constants):
    """Print kinds and operations with their milliseconds per pass."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    tf.config.threading.set_intra_op_parallelism_threads(alternation.THREADS)
    run = inference.graph(dtype, constants)
    x = tf.cast(np.random.default_rng(0).normal(size=(batch, 224, 224, 3)), dtype)
    for _ in range(3):
        run(x)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(STEPS):
                run(x).numpy()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace()
        space.ParseFromString(path.read_bytes())
    totals: collections.Counter = collections.Counter()
    for plane in space.planes:
        for event in itertools.chain.from_iterable(line.events for line in plane.lines):
            name = plane.event_metadata[event.metadata_id].name
            if match := re.fullmatch(r"([^:]+):(\w+)", name):  # "scope/name:Type": an operation
                totals[match[1], match[2]] += event.duration_ps / 1e9 / STEPS
    json.dump([[*operation, took] for operation, took in totals.items()], sys.stdout)


def measured(dtype, batch, constants):
    """[[name, type, milliseconds per pass], ...]"""
    command = [sys.executable, __file__, "--worker", dtype, str(batch)]
    command += ["--constants"] * constants
    environment = {**os.environ, **alternation.QUIET}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--constants", action="store_true")
    parser.add_argument("--top", type=int, default=0, metavar="N")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker[0], int(options.worker[1]), options.constants)
        return
    columns = {}
    for dtype, batch in itertools.product(options.dtype, options.batch):
        operations = measured(dtype, batch, options.constants)
        totals = columns[f"{dtype}, batch {batch}"] = collections.Counter()
        for name, operation, took in operations:
            totals[kind(name, operation)] += took
        for name, operation, took in sorted(operations, key=lambda o: -o[2])[: options.top]:
            print(f"{took:8.2f} ms  {operation:28} {name}")
    print(f"| | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for name in KINDS:
        shares = (f"{totals[name] / totals.total():.1%}" for totals in columns.values())
        print(f"| {name} | {' | '.join(shares)} |")
    whole = (f"{totals.total():.1f}" for totals in columns.values())
    print(f"| all operations, ms | {' | '.join(whole)} |")


if __name__ == "__main__":
    main()

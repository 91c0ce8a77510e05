"""What gradient checkpointing saves, and what it costs: one training step of a ViT-S/16 at 224.

    python benchmarks/checkpointing.py [--batch 32] [--runs 3] [--backends jax torch tensorflow]

Memory is by how much a process grows, at its peak, over its size with the model in it; time is the
median of the steps after the first two. Each backend in a process of its own, with checkpointing
and without. On TensorFlow, where the package refuses it, this program does it all the same. Prints
a table in Markdown.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

SIZE = {"image_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(backend, checkpointing, batch, runs):
    """Print MB and seconds of a step."""
    os.environ["KERAS_BACKEND"] = backend
    import keras
    import numpy as np

    import keras_vit
    from keras_vit.train import checkpointing as module

    model = keras_vit.ViT(keras_vit.ViTBackbone(**SIZE, drop_path_rate=0.1), 10)
    if checkpointing:
        module.SAVES = (backend,)
        module.checkpoint_gradients(model)
    model.compile(
        keras.optimizers.SGD(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=backend == "jax",
    )
    x = np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype("float32")
    y = np.arange(batch) % 10
    keras.Model.predict(model, x[:1], verbose=0)
    before, times = peak(), []
    for _ in range(runs + 2):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        times.append(time.perf_counter() - start)
    print("RESULT", peak() - before, statistics.median(times[2:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--backends", nargs="+", default=["jax", "torch", "tensorflow"])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        backend, checkpointing = options.worker
        measure(backend, checkpointing == "True", options.batch, options.runs)
        return
    print("| backend | MB | with checkpointing | seconds a step | with checkpointing |")
    print("|---|--:|--:|--:|--:|")
    for backend in options.backends:
        found = []
        for checkpointing in (False, True):
            command = [sys.executable, __file__, "--worker", backend, str(checkpointing)]
            command += ["--batch", str(options.batch), "--runs", str(options.runs)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT"))
            found.append([float(word) for word in line.split()[1:]])
        (memory, seconds), (less, slower) = found
        row = f"| {backend} | {memory:.0f} | {less:.0f} | {seconds:.2f} | {slower:.2f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()

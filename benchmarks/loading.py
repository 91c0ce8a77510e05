"""Time and peak memory of loading ViT-B/16 from a directory, compared with KerasHub's
`from_preset`.

    python benchmarks/loading.py [--runs 5]

Both load the same random weights (330 MiB, float32): keras_vit from timm's and from transformers'
layout, KerasHub from transformers' layout. Each run is its own process, in alternation, which
first imports its library and builds a tiny model. Reported are the time of `from_preset` and how
much it raises the process's peak memory.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import common

OURS = """
import keras_vit
keras_vit.ViTBackbone(image_size=32, embed_dim=8, depth=1, num_heads=1)
load = keras_vit.from_preset
"""
KERASHUB = """
import keras_hub
keras_hub.models.ViTBackbone(
    image_shape=(32, 32, 3), patch_size=16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)
load = keras_hub.models.ViTImageClassifier.from_preset
"""
WRITE = """  # in its own process: a child's peak memory starts at its parent's size
import pathlib
import keras_vit
folder = pathlib.Path({folder!r})
model = keras_vit.ViT.from_preset("vit_base_patch16_224.augreg_in21k_ft_in1k", load_weights=False)
model.save_to_timm(folder / "timm")
model.save_to_transformers(folder / "transformers")
"""
MEASURE = """
import resource, time
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, start = peak(), time.perf_counter()
model = load({directory!r})
print("RESULT", time.perf_counter() - start, peak() - before)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        code = WRITE.format(folder=str(folder))
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        programs = {
            "keras_vit, timm": (OURS, "timm"),
            "keras_vit, transformers": (OURS, "transformers"),
            "KerasHub, transformers": (KERASHUB, "transformers"),
        }
        programs = {
            name: program + MEASURE.format(directory=str(folder / layout))
            for name, (program, layout) in programs.items()
        }
        medians = common.medians(programs, runs)
    base = medians["KerasHub, transformers"]
    print(f"{'':26}{'seconds':>9}{'ratio':>8}{'MiB':>8}{'ratio':>8}   medians of {runs}")
    for name, (seconds, memory) in medians.items():
        print(
            f"{name:26}{seconds:9.2f}{seconds / base[0]:8.2f}{memory:8.0f}{memory / base[1]:8.2f}"
        )


if __name__ == "__main__":
    main()

"""Time and memory of each explanation of one picture, for ViT-B/16.

    [KERAS_BACKEND=torch] python benchmarks/explain.py

Weights are random. Each method runs in a process of its own: once to warm up, then the time for one
image is measured. Memory is by how much the process is larger, at its peak, than with the model and
one prediction. Prints a table in Markdown.
"""

import resource
import subprocess
import sys
import time

SIZE = {"image_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
METHODS = {  # what the table says: code
    "`attention_maps` of all blocks": "explain.attention_maps(model, image)",
    "`relevance` (rollout)": "explain.relevance(model, image)",
    "`attention_flow`, all tokens": "explain.attention_flow(explain.attention_maps(model, image))",
    "`class_relevance`": "explain.class_relevance(model, image, 0)",
    "`class_relevance` of five classes": "explain.class_relevance(model, image, range(5))",
    "`gradient_rollout`": "explain.gradient_rollout(model, image, 0)",
    "`grad_cam`": "explain.grad_cam(model, image, 0)",
    "`input_x_gradient`": "explain.input_x_gradient(model, image, 0)",
    "`integrated_gradients`, 32 steps": "explain.integrated_gradients(model, image, 0)",
    "`faithfulness`, 10 steps": "explain.faithfulness(model, image, flat, 0)",
    "`analyse`": "explain.analyse(model, image)",
    "`page`": "explain.page(model, image)",
}


def peak():
    """The largest size that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(code):
    """Print seconds and MB of a method."""
    import numpy as np

    from keras_vit import ViT, explain
    from keras_vit.images import ImageConverter, ImagePreprocessor

    preprocessor = ImagePreprocessor(ImageConverter(SIZE["image_size"]))
    model = ViT(ViT.backbone_cls(**SIZE), 1000, preprocessor=preprocessor)
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), "uint8")
    names = {"explain": explain, "model": model, "image": image, "flat": np.ones((1, 14, 14))}
    explain.top_classes(model, image)
    before = peak()
    eval(code, names)
    begin = time.perf_counter()
    eval(code, names)
    print(f"RESULT {time.perf_counter() - begin:.2f} {peak() - before:.0f}")


def main():
    print("| | seconds | MB |\n|---|--:|--:|")
    for name, code in METHODS.items():
        command = [sys.executable, __file__, code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT"))
        _, seconds, size = line.split()
        print(f"| {name} | {float(seconds):.1f} | {size} |", flush=True)


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()

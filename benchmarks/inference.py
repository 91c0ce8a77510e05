"""ViT-B/16 at 224 with TensorFlow on the CPU, compared with KerasHub and timm (PyTorch).

    python benchmarks/inference.py [--rounds N] [--dtype float32 bfloat16] [--batch 1 8]

Random weights, two threads, preprocessed inputs; each program in its own process, in alternation.
Keras models are called through `tf.function`, timm's in `torch.inference_mode`. "Constant weights":
the graph of `model.predict(..., constant_weights=True)`. The last column is the share of the rate
at which this machine multiplies two large matrices in that dtype, with the faster of TensorFlow and
PyTorch. Needs torch and timm.
"""

import argparse

import alternation
import common

NAME = "vit_base_patch16_224"
LAYERS, WIDTH, TOKENS, PATCH = 12, 768, 197, 16 * 16 * 3
SIZE = 2048  # of the matrices


def operations(batch):
    """Multiplications and additions in one forward pass (all tokens of all blocks)."""
    block = 12 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH
    return 2 * batch * (LAYERS * block + (TOKENS - 1) * PATCH * WIDTH + WIDTH * 1000)


def tensorflow(function, dtype, shape):
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(alternation.THREADS)
    x = tf.cast(np.random.default_rng(0).normal(size=shape), dtype)
    compiled = function()
    for _ in range(3):
        compiled(x)
    alternation.serve(lambda: compiled(x).numpy())


def ours(dtype):
    import numpy as np

    import keras_vit

    preset = f"{NAME}.augreg_in21k_ft_in1k"
    model = keras_vit.from_preset(preset, load_weights=False, dtype=dtype)
    noise = np.random.default_rng(0).normal
    for variable in model.weights:  # TensorFlow leaves out a constant bias of 0
        variable.assign_add(noise(0, 0.02, variable.shape))
    return model


def graph(dtype, constants=False):
    """A compiled function of pictures; with constants, that of `predict(constant_weights=True)`."""
    import tensorflow as tf

    model = ours(dtype)
    if constants:
        from keras_vit.models.constant_weights import ConstantWeights

        predict = ConstantWeights(model)
        return lambda x: predict([x])
    return tf.function(lambda x: model(x, training=False), jit_compile=False)


def keras_vit(dtype, batch):
    tensorflow(lambda: graph(dtype), dtype, (batch, 224, 224, 3))


def constant(dtype, batch):
    tensorflow(lambda: graph(dtype, constants=True), dtype, (batch, 224, 224, 3))


def kerashub(dtype, batch):
    def function():
        import keras_hub
        import tensorflow as tf

        backbone = keras_hub.models.ViTBackbone(
            image_shape=(224, 224, 3),
            patch_size=16,
            num_layers=LAYERS,
            num_heads=12,
            hidden_dim=WIDTH,
            mlp_dim=4 * WIDTH,
            dtype=dtype,
        )
        model = keras_hub.models.ViTImageClassifier(backbone, 1000, dtype=dtype)
        return tf.function(lambda x: model(x, training=False), jit_compile=False)

    tensorflow(function, dtype, (batch, 224, 224, 3))


def product_tensorflow(dtype, batch):
    def function():
        import tensorflow as tf

        return tf.function(lambda x: tf.matmul(x, x)[:1])

    tensorflow(function, dtype, (SIZE, SIZE))


def torch(function, dtype, shape):
    import torch

    torch.set_num_threads(alternation.THREADS)
    dtype = getattr(torch, dtype)
    with torch.inference_mode():
        call, x = function(dtype), torch.randn(shape).to(dtype)
        for _ in range(3):
            call(x)
        alternation.serve(lambda: call(x).float().numpy())


def timm(dtype, batch):
    def function(dtype):
        timm = common.import_timm()
        return timm.create_model(NAME).eval().to(dtype)

    torch(function, dtype, (batch, 3, 224, 224))


def product_torch(dtype, batch):
    torch(lambda dtype: lambda x: (x @ x)[:1], dtype, (SIZE, SIZE))


PROGRAMS = {"keras_vit": keras_vit, "keras_vit, constant weights": constant}
PROGRAMS |= {"KerasHub": kerashub, "timm": timm}
PRODUCTS = {"matmul, TensorFlow": product_tensorflow, "matmul, torch": product_torch}


def measure(dtype, batch, rounds):
    programs = {**PROGRAMS, **PRODUCTS}
    commands = {name: (__file__, "--worker", name, dtype, batch) for name in programs}
    median = alternation.medians(alternation.alternate(commands, rounds))
    rate = 2 * SIZE**3 / min(median[name] for name in PRODUCTS)
    fastest = min(median["KerasHub"], median["timm"])
    for name in PROGRAMS:
        share = operations(batch) / median[name] / rate
        print(
            f"| {dtype} | {batch} | {name} | {median[name] * 1e3:.1f} "
            f"| {median[name] / fastest:.2f} | {share:.0%} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, dtype, batch = options.worker
        {**PROGRAMS, **PRODUCTS}[name](dtype, int(batch))
        return
    columns = ("dtype", "batch", "program", "ms", "vs faster of KerasHub and timm")
    print(f"| {' | '.join(columns)} | share of matmul rate |")
    print("|---|--:|---|--:|--:|--:|")
    for dtype in options.dtype:
        for batch in options.batch:
            measure(dtype, batch, options.rounds)


if __name__ == "__main__":
    main()

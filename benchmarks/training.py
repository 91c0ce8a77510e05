"""One training step of ViT-Ti/16 at 224 on the CPU through `fit`, compared with KerasHub and timm.

    python benchmarks/training.py [--rounds N] [--dtype float32 bfloat16] [--batch 16]
    python benchmarks/training.py --profile [--batch 16]

Random weights, two threads, AdamW, an array of pictures of the model's size; each program in its
own process, in alternation. Keras' programs run `fit` for STEPS batches of a `tf.data.Dataset`
without autotuning (its waits, see `keras_vit.data.feed`, would be part of their times); timm's a
plain loop of PyTorch with the foreach AdamW. --profile: what the parts of our own step take. Needs
torch and timm.
"""

import argparse

import alternation
import common

NAME = "vit_tiny_patch16_224"
STEPS = 4  # in one round
CLASSES = 1000


def arrays(batch):
    import numpy as np

    random = np.random.default_rng(0)
    x = random.normal(0, 1, (batch * STEPS, 224, 224, 3)).astype("float32")
    return x, random.integers(0, CLASSES, batch * STEPS)


def policy(dtype):
    return "float32" if dtype == "float32" else "mixed_bfloat16"


def limit_threads():
    """Before a model is made: TensorFlow cannot change it later."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(alternation.THREADS)


def serve_fit(model, batch):
    import keras
    import tensorflow as tf

    model.compile(
        keras.optimizers.AdamW(1e-4, weight_decay=0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices(arrays(batch)).batch(batch).with_options(options)
    # Without a preprocessor, for all programs.
    run = lambda: keras.Model.fit(model, dataset, verbose=0)  # noqa: E731
    run()
    alternation.serve(run)


def keras_vit_model(dtype):
    import keras_vit

    return keras_vit.from_preset(
        f"{NAME}.augreg_in21k_ft_in1k", load_weights=False, dtype=policy(dtype)
    )


def keras_vit(dtype, batch):
    limit_threads()
    serve_fit(keras_vit_model(dtype), batch)


def kerashub(dtype, batch):
    import keras
    import keras_hub

    limit_threads()
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(224, 224, 3),
        patch_size=16,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        dtype=policy(dtype),
    )
    model = keras_hub.models.ViTImageClassifier(backbone, CLASSES, dtype=policy(dtype))
    serve_fit(keras.Model(model.inputs, model.outputs), batch)


def timm(dtype, batch):
    import torch

    torch.set_num_threads(alternation.THREADS)
    model = common.import_timm().create_model(NAME).train()
    x, y = arrays(batch)
    x, y = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.05)
    loss = torch.nn.CrossEntropyLoss()

    def run():
        for i in range(0, len(x), batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype != "float32"):
                value = loss(model(x[i : i + batch]), y[i : i + batch])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    run()
    alternation.serve(run)


def part(name, dtype, batch):
    """A part of our own step: `forward`, `gradients`, `step`."""
    import keras
    import tensorflow as tf

    limit_threads()
    model = keras_vit_model(dtype)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-4), loss, jit_compile=False)
    x, y = (tf.constant(a[:batch]) for a in arrays(batch))

    @tf.function
    def forward():
        return loss(y, model(x, training=True))

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        found = tape.gradient(value, [v.value for v in model.trainable_variables])
        return [tf.reduce_sum(g) for g in found]

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        found = tape.gradient(value, [v.value for v in model.trainable_variables])
        model.optimizer.apply(found, model.trainable_variables)
        return value

    run = {"forward": forward, "gradients": gradients, "step": step}[name]
    for _ in range(2):
        run()

    def some():
        for _ in range(STEPS):
            run()

    alternation.serve(some)


PROGRAMS = {"keras_vit": keras_vit, "KerasHub": kerashub, "timm": timm}
PARTS = ("forward", "gradients", "step")


def worker(name, dtype, batch):
    if name in PARTS:
        part(name, dtype, batch)
    else:
        PROGRAMS[name](dtype, batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, dtype, batch = options.worker
        worker(name, dtype, int(batch))
        return
    names = [*PARTS, "keras_vit"] if options.profile else list(PROGRAMS)
    print("| dtype | program | ms per picture | vs KerasHub | vs timm |\n|---|---|--:|--:|--:|")
    for dtype in options.dtype:
        commands = {name: (__file__, "--worker", name, dtype, options.batch) for name in names}
        median = alternation.medians(alternation.alternate(commands, options.rounds))
        for name in names:
            ms = median[name] / STEPS / options.batch * 1e3
            ratios = [
                f"{median[name] / median[other]:.2f}" if other in median else "-"
                for other in ("KerasHub", "timm")
            ]
            print(f"| {dtype} | {name} | {ms:.1f} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()

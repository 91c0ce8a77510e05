"""Pictures per second of a ViT in bfloat16 on a GPU: Keras on JAX and torch, compared with timm.

    python benchmarks/gpu.py [--model NAME] [--batch N] [--rounds N] [--no-compile]

Random weights and preprocessed pictures that lie on the device; `predict`: one forward pass,
`train`: one step of AdamW. Each program in its own process, in alternation. keras_vit is jitted by
JAX, or, on torch, compiled by `torch.compile` as timm is (--no-compile: neither). Weights are
float32, and what computes is bfloat16. Without a GPU the same programs run on the CPU, which the
table says: take a small model and batch there. Needs jax, torch and timm.
"""

import argparse
import functools
import os

import alternation
import common

SIZE, CLASSES, STEPS = 224, 1000, 10


def arrays(batch):
    import numpy as np

    random = np.random.default_rng(0)
    x = random.normal(0, 1, (batch, SIZE, SIZE, 3)).astype("float32")
    return x, random.integers(0, CLASSES, batch)


def device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def model_of(name):
    import keras

    import keras_vit

    keras.config.set_dtype_policy("mixed_bfloat16")
    return keras_vit.from_preset(name, load_weights=False)


def jax(name, what, batch, compiled):
    """`keras_vit` on JAX: a function without arguments that waits for its result."""
    import jax
    import keras

    model = model_of(name)
    x, y = (jax.device_put(a) for a in arrays(batch))
    weights = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]
    jit = jax.jit if compiled else lambda function: function

    def logits(weights, training):
        return model.stateless_call(weights, fixed, x, training=training)[0]

    if what == "predict":
        forward = jit(functools.partial(logits, training=False))
        return lambda: forward(weights).block_until_ready()
    optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.05)
    optimizer.build(model.trainable_variables)

    def loss(weights):
        found = keras.losses.sparse_categorical_crossentropy(y, logits(weights, True), True)
        return found.mean()

    @jit
    def step(weights, state):
        gradients = jax.grad(loss)(weights)
        return optimizer.stateless_apply(state, gradients, weights)

    now = [weights, [v.value for v in optimizer.variables]]

    def run():
        now[:] = step(*now)
        jax.block_until_ready(now)

    return run


def of_torch(module, x, y, what, compiled):
    """The same for a module of PyTorch."""
    import torch

    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, weight_decay=0.05)
    if compiled:
        module = torch.compile(module)
    synchronize = torch.cuda.synchronize if device() == "cuda" else lambda: None

    def forward():
        with torch.autocast(device(), torch.bfloat16):
            return module(x)

    def predict():
        with torch.inference_mode():
            forward()
        synchronize()

    def train():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward().float(), y).backward()
        optimizer.step()
        synchronize()

    return predict if what == "predict" else train


def torch(name, what, batch, compiled):
    """`keras_vit` on torch: its model is a module of PyTorch."""
    import torch

    x, y = (torch.tensor(a, device=device()) for a in arrays(batch))
    return of_torch(model_of(name).to(device()).train(what == "train"), x, y, what, compiled)


def timm(name, what, batch, compiled):
    import torch

    x, y = (torch.tensor(a, device=device()) for a in arrays(batch))
    model = common.import_timm().create_model(name.partition(".")[0]).to(device())
    x = x.permute(0, 3, 1, 2).contiguous()
    return of_torch(model.train(what == "train"), x, y, what, compiled)


PROGRAMS = {"keras_vit, JAX": jax, "keras_vit, torch": torch, "timm": timm}
BACKENDS = {"keras_vit, JAX": "jax", "keras_vit, torch": "torch", "timm": "torch"}


def worker(program, what, options):
    os.environ["KERAS_BACKEND"] = BACKENDS[program]  # before keras is imported
    run = PROGRAMS[program](options.model, what, options.batch, options.compile)

    def several():
        for _ in range(STEPS):
            run()

    several()
    alternation.serve(several)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224.augreg_in21k_ft_in1k")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker, options)
        return
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: the CPU"
    print(f"{options.model}, batch {options.batch}, bfloat16, {name}\n")
    print("| | program | pictures per second | vs timm |\n|---|---|--:|--:|")
    same = ["--model", options.model, "--batch", options.batch]
    same += [] if options.compile else ["--no-compile"]
    for what in ("predict", "train"):
        commands = {p: (__file__, *same, "--worker", p, what) for p in PROGRAMS}
        median = alternation.medians(alternation.alternate(commands, options.rounds))
        for program, seconds in median.items():
            rate = STEPS * options.batch / seconds
            ratio = median["timm"] / seconds
            print(f"| {what} | {program} | {rate:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()

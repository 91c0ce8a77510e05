"""Write explain.npz: maps for classes, by plain PyTorch on the goldens that timm wrote.

Run after make.py, in the same environment:

    python tests/goldens/make_explain.py

The file holds arrays `<golden>/<method>`, each `(B, 2, rows, columns)` or `(B, 2, height, width)`,
for the classes CLASSES.
"""

import json
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
import timm
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import goldens

CLASSES = (1, 4)
STEPS = 8  # of integrated gradients
NAMES = [
    "vit-plain",  # class token
    "vit-dinov2_reg4",  # and registers, LayerScale
    "deit-distilled",  # two heads
    "vit-gap_fc_norm",  # mean of the patches
    "vit-reg4_map",  # attention pooling
    "args-many",  # the same, without a class token
]


def load(name):
    with tempfile.TemporaryDirectory() as folder:
        goldens.repository(name, folder)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    for module in model.modules():
        if "fused_attn" in vars(module):
            module.fused_attn = False
    return model


def attention(model, x, cls):
    """The probabilities of each softmax, in order, and the gradients of a logit by them."""
    maps, softmax = [], torch.Tensor.softmax

    def recording(self, *args, **kwargs):
        maps.append(softmax(self, *args, **kwargs))
        return maps[-1]

    with mock.patch.object(torch.Tensor, "softmax", recording):
        logits = model(x)
    return maps, torch.autograd.grad(logits[:, cls].sum(), maps)


def by_attention(model, x, cls):
    """Relevance (https://arxiv.org/abs/2103.15679) and gradient rollout of the patches."""
    maps, gradients = attention(model, x, cls)
    steps = [(a * g).clamp(min=0).mean(1) for a, g in zip(maps, gradients, strict=True)]
    pool = steps.pop() if model.global_pool == "map" else None
    eye = torch.eye(steps[0].shape[-1])
    relevance, rollout = eye, eye
    for step in steps:
        relevance = relevance + step @ relevance
        mixed = step + eye
        rollout = mixed / mixed.sum(-1, keepdim=True) @ rollout
    return [row(model, total, pool) for total in (relevance, rollout)]


def row(model, total, pool):
    prefix = model.num_prefix_tokens
    if pool is not None:
        read = (pool @ total[:, -pool.shape[-1] :])[:, 0]
    elif model.global_pool == "avg":
        read = total[:, prefix:].mean(1)
    elif hasattr(model, "head_dist"):
        read = total[:, :2].mean(1)
    else:
        read = total[:, 0]
    return read[:, prefix:].reshape(len(read), *model.patch_embed.grid_size)


def grad_cam(model, x, cls):
    """At norm1 of the last block for a class token, else at the last norm."""
    token = model.global_pool == "token"
    last = model.blocks[-1].norm1 if token else model.norm
    kept = []
    handle = last.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, cls].sum(), kept)
    prefix = model.num_prefix_tokens
    features, gradient = kept[0][:, prefix:], gradient[:, prefix:]
    cam = (features * gradient.mean(1, keepdim=True)).sum(-1).clamp(min=0)
    return cam.reshape(len(cam), *model.patch_embed.grid_size)


def input_gradient(model, x, cls):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, cls].sum(), x)
    return gradient


def integrated(model, x, cls):
    parts = [input_gradient(model, x * (i + 0.5) / STEPS, cls) for i in range(STEPS)]
    return (x * sum(parts) / STEPS).sum(1)


def main():
    arrays = {}
    for name in NAMES:
        model = load(name)
        x = torch.from_numpy(goldens.arrays(name)["x"]).permute(0, 3, 1, 2)
        found = {}
        for cls in CLASSES:
            maps = {
                "grad_cam": grad_cam(model, x, cls),
                "input_x_gradient": (x * input_gradient(model, x, cls)).sum(1),
                "integrated_gradients": integrated(model, x, cls),
            }
            maps["relevance"], maps["gradient_rollout"] = by_attention(model, x, cls)
            for method, value in maps.items():
                found.setdefault(method, []).append(value.detach())
        arrays |= {f"{name}/{m}": torch.stack(v, 1).numpy() for m, v in found.items()}
    np.savez_compressed(goldens.HERE / "explain.npz", **arrays)
    print(json.dumps({name: list(array.shape) for name, array in arrays.items()}, indent=1))


if __name__ == "__main__":
    main()

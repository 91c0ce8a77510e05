"""Write the toy's golden, by plain PyTorch: the same architecture, written down independently.

python tests/toy/make.py [FOLDER]
"""

import json
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional

HERE = pathlib.Path(__file__).parent
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
WIDTH, HEADS, CLASSES, GRID = 8, 2, 7, (2, 3)


class Norm(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width, eps=1e-6)


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_dw = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.norm = Norm(WIDTH)
        self.mlp = Mlp(WIDTH)

    def forward(self, x):
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        return x + self.mlp(self.norm(y)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        count = (2 * GRID[0] - 1) * (2 * GRID[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(count, HEADS))
        self.register_buffer("relative_position_index", torch.zeros(3))

    def forward(self, x, grid, table):
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        rows, columns = grid
        for i in range(rows * columns):  # a loop, so that no index is built twice the same way
            for j in range(rows * columns):
                down, across = i // columns - j // columns, i % columns - j % columns
                place = (down + rows - 1) * (2 * columns - 1) + across + columns - 1
                scores[:, :, i, j] += table[place]
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn = Norm(width), Attention(width)
        self.norm2, self.mlp = Norm(width), Mlp(width)

    def forward(self, x, grid, table):
        x = x + self.attn(self.norm1(x), grid, table)
        return x + self.mlp(self.norm2(x))


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, 2)
        second = nn.Module()
        second.downsample = nn.Conv2d(WIDTH, 2 * WIDTH, 2, 2)
        second.blocks = nn.ModuleList([Block(2 * WIDTH)])
        first = nn.Module()
        first.blocks = nn.ModuleList([Conv()])
        self.stages = nn.ModuleList([first, second])
        self.head = nn.Module()
        self.head.norm, self.head.fc = Norm(2 * WIDTH), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x):
        x = self.stages[1].downsample(self.stages[0].blocks[0](self.stem(x)))
        grid = tuple(x.shape[2:])
        block = self.stages[1].blocks[0]
        table = block.attn.relative_position_bias_table
        if grid != GRID:
            old, new = ([2 * n - 1 for n in g] for g in (GRID, grid))
            table = table.T.reshape(1, HEADS, *old)
            table = functional.interpolate(table, new, mode="bicubic", antialias=True)
            table = table.reshape(HEADS, -1).T
        x = block(x.flatten(2).transpose(1, 2), grid, table)
        features = x.unflatten(1, grid)
        pooled = self.head.norm(features.mean((1, 2)))
        return {"features": features, "pooled": pooled, "logits": self.head.fc(pooled)}


def main():
    torch.manual_seed(0)
    model = Toy().eval()
    for parameter in model.parameters():
        parameter.data = torch.round(torch.randn(parameter.shape) * 256) / 1024
    x = torch.randn(2, 3, 8, 12)
    other = torch.cat([x, x[:, :, :4].flip(3)], 2)[..., :8]
    with torch.no_grad():
        outputs = model(x)
        outputs["resized"] = model(other)["logits"]
    config = {
        "architecture": "toy_small_128",
        "num_classes": CLASSES,
        "model_args": {"img_size": [8, 12]},
    }
    arrays = {f"weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    arrays |= {"config": np.array(json.dumps(config)), "x": x.permute(0, 2, 3, 1).numpy()}
    arrays |= {key: value.numpy() for key, value in outputs.items()}
    np.savez_compressed(OUT / "toy-toy.npz", **arrays)


if __name__ == "__main__":
    main()

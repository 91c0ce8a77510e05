"""Train the small ViT that ships with the package, presets/vit_digits, on scikit-learn's digits.

    python scripts/train_digits.py    two minutes on two cores; 97 % of the digits held out

It learns from the first 1000. scikit-learn orders the digits by their writers: the other 797, held
out, were written by other people.
"""

import argparse
import json
import pathlib

import keras
import numpy as np
from safetensors.numpy import save_file

import keras_vit
from keras_vit import demo, presets, train, weights

FOLDER = pathlib.Path(__file__).parents[1] / "presets" / "vit_digits"


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--epochs", type=int, default=120)
    args.add_argument("--output", type=pathlib.Path, default=FOLDER)
    args = args.parse_args()
    keras.utils.set_random_seed(0)
    images, labels = demo.digits()
    taught, held_out = (
        (images[rows], labels[rows]) for rows in (slice(demo.TRAINED), slice(demo.TRAINED, None))
    )
    model = keras_vit.from_preset(demo.PRESET, load_weights=False, drop_path_rate=0.1)
    train.finetune(
        model,
        taught,
        held_out,
        args.epochs,
        batch_size=50,
        learning_rate=1e-3,
        flip=False,
        verbose=2,
    )
    write(model, args.output)
    found = keras_vit.from_preset(str(args.output))
    print(f"accuracy on the held-out digits, as written: {demo.accuracy(found, *held_out):.4f}")


def write(model, folder):
    """Weights as float16 and the config, in timm's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights.export(model, presets.families()["vit"]["rename"])
    half = {key: np.ascontiguousarray(t.read(), "float16") for key, t in sorted(tensors.items())}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    images = model.preprocessor.image_converter
    name, tag = demo.PRESET.split(".")
    config = {
        "architecture": name,
        "num_classes": model.num_classes,
        "label_names": model.labels,
        "pretrained_cfg": {
            "tag": tag,
            "input_size": [len(images.mean), *images.image_size],
            "mean": images.mean,
            "std": images.std,
            "crop_pct": images.crop_pct,
            "crop_mode": images.crop_mode,
            "interpolation": images.interpolation,
            "license": "apache-2.0",
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()

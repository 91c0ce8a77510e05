"""Train the small ViT that ships with the package, presets/vit_digits, on scikit-learn's digits.

    python scripts/train_digits.py    two minutes on two cores; 97 % on held-out digits

It is trained on the first 1000. scikit-learn orders the digits by writer: the other 797, which are
held out, are by other writers.
"""

import argparse
import json
import pathlib

import keras
import numpy as np
from safetensors.numpy import save_file

import keras_vit
import keras_vit_presets as presets
from keras_vit import demo, train, weights

FOLDER = pathlib.Path(__file__).parents[1] / "presets" / "vit_digits"


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--epochs", type=int, default=120)
    args.add_argument("--output", type=pathlib.Path, default=FOLDER)
    args = args.parse_args()
    keras.utils.set_random_seed(0)
    images, labels = demo.digits()
    training, held_out = (
        (images[rows], labels[rows])
        for rows in (slice(demo.CHECKPOINT_DIGITS), slice(demo.CHECKPOINT_DIGITS, None))
    )
    model = keras_vit.from_preset(demo.PRESET, load_weights=False, drop_path_rate=0.1)
    train.finetune(
        model,
        training,
        held_out,
        args.epochs,
        batch_size=50,
        learning_rate=1e-3,
        flip=False,
        verbose=2,
    )
    write(model, args.output)
    saved = keras_vit.from_preset(str(args.output))
    print(f"accuracy of the saved model on held-out digits: {demo.accuracy(saved, *held_out):.4f}")


def write(model: keras_vit.ViT, folder: pathlib.Path) -> None:
    """Write float16 weights and the config, in timm's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = weights.export(model, presets.families()["vit"].rename)
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

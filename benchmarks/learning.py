"""What recipes, distillation and pre-training are worth: accuracies, the mean over seeds.

    python benchmarks/learning.py scratch --data cifar10      the recipe against plain Adam
    python benchmarks/learning.py scratch --data digits
    python benchmarks/learning.py distill                     a CNN teacher's student against alone
    python benchmarks/learning.py pretrain                    1 % and 10 % of CIFAR-10's labels
    python benchmarks/learning.py flowers --image-size 96     a real DeiT-Tiny: what is trained

All programs of a comparison have the same number of steps. --steps, --seeds and --pictures are the
budget; the figures in the docs say with which they were made. Pictures: ../shared/images (CIFAR-10,
flowers), scikit-learn (digits). Results are printed line by line, as JSON and then as a table.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import statistics
import tarfile
import tempfile
import time

import keras
import numpy as np
from PIL import Image

import keras_vit
from keras_vit import train
from keras_vit.demo import CHECKPOINT_DIGITS, digits
from keras_vit.images import ImageConverter, ImagePreprocessor

FLOWERS_VALIDATION = 917


def cifar10(shared, count, seed):
    """((images, labels), (images, labels)): `count` for training, 2000 of the test."""
    data = np.load(shared / "images/cifar10_jpeg.npz")
    sides = []
    for part, size in (("train", count), ("test", 2000)):
        content, offsets = data[f"{part}_jpeg"].tobytes(), data[f"{part}_offsets"]
        labels = data[f"{part}_labels"].astype(int)
        rows = np.random.default_rng(seed).permutation(len(labels))[:size]
        images = [
            np.asarray(Image.open(io.BytesIO(content[offsets[i] : offsets[i + 1]]))) for i in rows
        ]
        sides.append((np.stack(images), labels[rows]))
    return sides


def handwriting(shared, count, seed):
    """Digits of other writers for the test. They are not mirrored."""
    images, labels = digits()
    images = images.repeat(4, 1).repeat(4, 2)
    first = min(count, CHECKPOINT_DIGITS)
    return [
        (images[:first], labels[:first]),
        (images[CHECKPOINT_DIGITS:], labels[CHECKPOINT_DIGITS:]),
    ]


def vit(patch_size, channels=3, seed=0, distilled=False, drop_path=0.05, width=192):
    """A ViT for pictures of 32 x 32: of 1.8 M parameters with a width of 192."""
    keras.utils.set_random_seed(seed)
    cls = keras_vit.DeiT if distilled else keras_vit.ViT
    token = {"distillation_token": True} if distilled else {}
    backbone = cls.backbone_cls(
        image_size=32,
        patch_size=patch_size,
        in_channels=channels,
        embed_dim=width,
        depth=4,
        num_heads=width // 64,
        drop_path_rate=drop_path,
        **token,
    )
    converter = ImageConverter(32, mean=[0.5] * channels, std=[0.25] * channels, crop_pct=1.0)
    return cls(backbone, 10, preprocessor=ImagePreprocessor(converter))


def epochs_for(steps, count, batch):
    return max(round(steps / -(-count // batch)), 1)


def accuracy(model, images, labels):
    return float((model.predict(images, verbose=0).argmax(-1) == labels).mean())


RECIPE = dataclasses.replace(
    train.RECIPES["deit"],
    rate=None,
    repeats=1,
    clip_norm=1.0,
    warmup=0.1,
    scale=(0.4, 1.0),
    rand_augment="rand-m6-mstd0.5-inc1",
    erasing=0.0,
    mixup=0.2,
    cutmix=0.5,
)


def scratch(options, seed):
    """The recipe, and Adam at a constant rate without augmentation."""
    load = cifar10 if options.data == "cifar10" else handwriting
    training, test = load(options.shared, options.pictures, seed)
    channels, batch = training[0].shape[-1], options.batch
    epochs = epochs_for(options.steps, len(training[1]), batch)
    rows = {
        "Adam": train.Recipe("plain", scale="margin", flip=0.0),
        "recipe": RECIPE,
        "light": dataclasses.replace(
            RECIPE, rand_augment="", cutmix=0.0, mixup=0.2, scale=(0.6, 1.0)
        ),
    }
    for name, row in rows.items():
        model = vit(options.patch_size, channels, seed, drop_path=0.0 if name == "Adam" else 0.05)
        if name == "Adam":
            model.compile(
                keras.optimizers.Adam(1e-3),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                jit_compile=train.jit_compile(),
            )
            model.fit(*training, batch_size=batch, epochs=epochs, seed=seed, verbose=0)
        else:
            train.finetune(
                model, training, None, epochs, recipe=row, batch_size=batch, learning_rate=1e-3,
                flip=options.data == "cifar10", seed=seed, verbose=0,
            )  # fmt: skip
        yield name, accuracy(model, *test)


def teacher(options, recipe):
    """A CNN of 0.28 M parameters for pixels in 0..255, trained with the student's augmentation."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((32, 32, 3))
    for width, depth in ((32, 1), (64, 2), (128, 2)):
        for _ in range(depth):
            x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            x = keras.layers.Activation("relu")(keras.layers.BatchNormalization()(x))
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    (images, labels), _ = cifar10(options.shared, options.teacher_pictures, 0)
    converter = vit(options.patch_size).preprocessor.image_converter
    batches = train.TrainingBatches(images, labels, 10, 128, converter, recipe)
    steps = options.teacher_steps
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps * 9 // 10, warmup_target=3e-3, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.Adam(rate), train.SoftCrossEntropy(), jit_compile=train.jit_compile()
    )
    model.fit(batches, epochs=epochs_for(steps, len(labels), 128), verbose=0)
    pixels = keras.Input((32, 32, 3))
    return keras.Model(pixels, model(keras.layers.Rescaling(4 / 255, -2)(pixels)))


def distill(options, seed):
    """A student with a distillation token, alone and with a CNN teacher, hard and soft."""
    training, test = cifar10(options.shared, options.pictures, seed)
    epochs = epochs_for(options.steps, len(training[1]), options.batch)
    row = dataclasses.replace(RECIPE, rand_augment="", cutmix=0.0)
    if not hasattr(options, "teacher"):  # one for all seeds
        options.teacher = teacher(options, row)
        yield "teacher", accuracy(options.teacher, *test)
    kinds = {
        "alone": None,
        "hard": {"hard": True, "alpha": 0.5},
        "soft": {"hard": False, "alpha": 0.5, "temperature": 3.0},
    }
    for name, kind in kinds.items():
        student = vit(options.patch_size, seed=seed, distilled=True)
        model = student if kind is None else train.Distiller(student, options.teacher, **kind)
        train.finetune(
            model, training, None, epochs, recipe=row, batch_size=options.batch,
            learning_rate=1e-3, seed=seed, verbose=0,
        )  # fmt: skip
        yield name, accuracy(student, *test)


DECODER = {"decoder_dim": 96, "decoder_depth": 2, "decoder_heads": 3}
METHODS = {"mae": DECODER, "simmim": {"mask_unit": 8}, "masked_patches": {}}


def encoder(options, method, images):
    """The weights of a backbone that is pre-trained on all pictures; seconds and the last loss."""
    before = vit(options.patch_size, width=options.width)
    model = train.pretraining.METHODS[method](
        before.backbone, before.preprocessor, **METHODS[method]
    )
    start = time.perf_counter()
    history = train.pretrain(
        model, images, epochs_for(options.steps, len(images), options.batch),
        batch_size=options.batch, learning_rate=options.pretraining_rate, verbose=0,
    ).history["loss"]  # fmt: skip
    return model.backbone.get_weights(), time.perf_counter() - start, history[-1]


def pretrain(options, seed):
    """A backbone pre-trained on all pictures, then 1 % and 10 % of the labels; and from scratch."""
    training, test = cifar10(options.shared, options.pictures, 0)
    if not hasattr(options, "encoders"):  # one for all seeds, which draw the labels
        options.encoders = {"scratch": None}
        for method in options.method:
            kept = options.keep and options.keep / f"{method}.npz"
            if kept and kept.exists():
                found = np.load(kept)
                options.encoders[method] = [found[f"arr_{i}"] for i in range(len(found))]
                continue
            options.encoders[method], seconds, loss = encoder(options, method, training[0])
            if kept:
                np.savez(kept, *options.encoders[method])
            yield f"{method}, seconds", seconds
            yield f"{method}, last loss", loss
    drawn = np.random.default_rng(seed).permutation(len(training[1]))
    for part in (0.01, 0.1):
        rows = drawn[: max(int(part * len(drawn)), 20)]
        for name, weights in options.encoders.items():
            classifier = vit(options.patch_size, seed=seed, width=options.width)
            if weights is not None:
                classifier.backbone.set_weights(weights)
            train.finetune(
                classifier, (training[0][rows], training[1][rows]), None,
                epochs_for(options.fine_tuning_steps, len(rows), 32), batch_size=32,
                learning_rate=1e-3, seed=seed, verbose=0,
            )  # fmt: skip
            yield f"{name}, {part:.0%} of the labels", accuracy(classifier, *test)


def flowers(options, seed):
    """A real DeiT-Tiny: the recipe with layer decay, full fine-tuning, head only, LoRA."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(options.shared / "images/flowers.tar") as tar:
            tar.extractall(folder, filter="data")
        found = train.read_folder(pathlib.Path(folder) / "flowers")
        rows = train.split_labels(found.labels, FLOWERS_VALIDATION / len(found.labels), seed)
        rows[0][:] = np.random.default_rng(seed).permutation(rows[0])
        part = rows[0][: options.pictures], rows[1]
        training, test = (([found.paths[i] for i in r], found.labels[r]) for r in part)
        epochs = epochs_for(options.steps, len(training[1]), options.batch)
        kinds = {
            "layer decay 0.75": {"layer_decay": 0.75, "learning_rate": 5e-4},
            "full": {},
            "head": {"learning_rate": 3e-3},
            "LoRA": {"learning_rate": 1e-3},
        }
        for name, given in kinds.items():
            keras.utils.set_random_seed(seed)
            model = keras_vit.from_preset(
                options.shared / "hub/timm/deit_tiny_patch16_224.fb_in1k",
                num_classes=5,
                image_size=options.image_size,
            )
            if name == "head":
                train.freeze(model, backbone=True)
            if name == "LoRA":
                model.backbone.enable_lora(8)
            train.finetune(
                model, training, None, epochs, batch_size=options.batch, seed=seed, verbose=0,
                **given,
            )  # fmt: skip
            yield name, accuracy(train.fast(model), *test)


KINDS = {"scratch": scratch, "distill": distill, "pretrain": pretrain, "flowers": flowers}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--shared", type=pathlib.Path, default=pathlib.Path("../shared"))
    parser.add_argument("--data", choices=("cifar10", "digits"), default="cifar10")
    parser.add_argument("--method", choices=METHODS, nargs="+", default=["mae", "simmim"])
    parser.add_argument("--width", type=int, default=192, help="of the models of `pretrain`")
    parser.add_argument("--pretraining-rate", type=float, default=1e-3)
    parser.add_argument("--keep", type=pathlib.Path, help="a folder for pre-trained weights")
    parser.add_argument("--fine-tuning-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--teacher-pictures", type=int, default=20_000)
    parser.add_argument("--teacher-steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--patch-size", type=int, default=4, help="of models from scratch")
    options = parser.parse_args()
    results = {}
    for seed in range(options.seeds):
        for name, value in KINDS[options.kind](options, seed):
            results.setdefault(name, []).append(value)
            print(json.dumps({"seed": seed, "name": name, "value": round(value, 4)}), flush=True)
    print("\n| | mean | seeds |\n|---|--:|---|")
    for name, values in results.items():
        each = ", ".join(f"{v:.3f}" for v in values)
        print(f"| {name} | {statistics.mean(values):.3f} | {each} |")


if __name__ == "__main__":
    main()

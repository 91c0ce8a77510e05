"""`keras-vit finetune` on 4317 images of flowers, from an ImageNet-1k DeiT-Tiny: accuracy and time.

    python benchmarks/flowers.py [--shared ../shared] [--epochs 3] [options of keras-vit finetune]
    python benchmarks/flowers.py --probe

3400 images are for training, 917 for validation. `--probe`: the baseline, logistic regression on
the class token of the same checkpoint.
"""

import argparse
import csv
import json
import pathlib
import tarfile
import tempfile
import time

from keras_vit_command import run as keras_vit

CHECKPOINT = "hub/timm/deit_tiny_patch16_224.fb_in1k"
PART = 917 / 4317


def probe(checkpoint, pictures):
    """Validation accuracy of logistic regression on features."""
    from sklearn.linear_model import LogisticRegression

    from keras_vit import from_preset, train

    found = train.read_folder(pictures)
    training, validation = train.split_labels(found.labels, PART)
    model = from_preset(checkpoint, num_classes=0)
    features = model.predict(found.paths, verbose=0)
    head = LogisticRegression(max_iter=1000).fit(features[training], found.labels[training])
    return head.score(features[validation], found.labels[validation])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=pathlib.Path, default=pathlib.Path("../shared"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--probe", action="store_true")
    args, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        with tarfile.open(args.shared / "images/flowers.tar") as tar:
            tar.extractall(folder, filter="data")
        if args.probe:
            print(f"{probe(args.shared / CHECKPOINT, folder / 'flowers'):.1%}")
            return
        start = time.perf_counter(), time.process_time()
        status = keras_vit(
            ["finetune", str(folder / "flowers"), "--preset", str(args.shared / CHECKPOINT)]
            + ["--output", str(folder / "model"), "--epochs", str(args.epochs)]
            + ["--validation", str(PART), *options]
        )
        if status:
            raise SystemExit(status)
        minutes = (time.perf_counter() - start[0]) / 60
        busy = (time.process_time() - start[1]) / 60  # all cores together
        with open(folder / "model/training.csv") as log:
            accuracy = [round(float(row["val_accuracy"]), 4) for row in csv.DictReader(log)]
    found = {"val_accuracy": accuracy, "minutes": round(minutes, 1), "cpu_minutes": round(busy, 1)}
    print(json.dumps({"options": options, **found}))


if __name__ == "__main__":
    main()

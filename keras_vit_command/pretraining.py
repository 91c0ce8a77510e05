"""`pretrain`: trains a backbone on pictures without labels and writes it as a folder."""

import argparse
import csv
import importlib.util
import pathlib
from typing import Any

import keras

from keras_vit import atomic, train
from keras_vit.images import picture_files
from keras_vit.train.pretraining import METHODS
from keras_vit_command.commands import check_parent, load_model, pictures, track
from keras_vit_command.tables import console

SHOWN = 8  # pictures of the drawing


def run_pretrain(args: argparse.Namespace) -> int:
    """Pre-train, and write the model without a head, training.csv and reconstruction.png."""
    out, output = console(), pathlib.Path(args.output)
    check_parent(output)
    state = output.with_name(output.name + ".state")
    if state.exists() and not args.resume:
        raise ValueError(
            f"{str(state)!r} is of a training that was interrupted. Continue it with --resume, or "
            "delete it."
        )
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"The folder {str(output)!r} is not empty. Choose another --output.")
    if not pathlib.Path(args.folder).is_dir():
        raise FileNotFoundError(f"There is no folder {args.folder!r}.")
    paths, left_out = pictures(picture_files(args.folder))
    keras.utils.set_random_seed(args.seed)
    encoder = load_model(
        args.preset,
        num_classes=0,
        image_size=args.image_size,
        drop_path_rate=args.drop_path,
        load_weights=args.pretrained,
    )
    model = METHODS[args.method](encoder.backbone, encoder.preprocessor)
    out.print(f"{len(paths)} images, {args.method}, {encoder.count_params() / 1e6:.1f}M parameters")
    resume = train.Resume(state, delete_checkpoint=False)
    history = train.pretrain(
        model,
        paths,
        args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        flip=not args.no_flip,
        seed=args.seed,
        callbacks=[resume],
        progress=track(out, "reading images"),
        verbose=1 if out.is_terminal else 2,
    ).history
    with atomic.filling(output) as folder:
        encoder.save_to_preset(str(folder))
        with open(folder / "training.csv", "w", newline="") as file:
            log = csv.writer(file)
            log.writerow(["epoch", *history])
            log.writerows(zip(range(len(history["loss"])), *history.values(), strict=True))
        draw(model, paths, folder)
    state.unlink(missing_ok=True)
    out.print(f"Loss {history['loss'][-1]:.3f}. The backbone is in {output}. Next:", soft_wrap=True)
    out.print(f"  keras-vit finetune FOLDER --preset {output} --output DIR", soft_wrap=True)
    return 2 if left_out else 0


def draw(model: Any, paths: list[Any], folder: pathlib.Path) -> None:
    """reconstruction.png, where the method predicts pixels and matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") and isinstance(model, (train.MAE, train.SimMIM)):
        train.show_reconstruction(model, paths[:SHOWN]).savefig(
            folder / "reconstruction.png", dpi=100
        )

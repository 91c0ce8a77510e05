"""`finetune`: from a folder of class folders to a folder with a model."""

import contextlib
import pathlib
import shutil
import tempfile
import time

import keras

from keras_vit import train
from keras_vit.cli.commands import check_parent, load, tell_broken, track
from keras_vit.cli.exporting import check_options, write
from keras_vit.cli.tables import console


def run_finetune(args):
    """Train; the model, its labels and a log go to the output folder."""
    out, goal = console(), pathlib.Path(args.output)
    check_goal(goal, args.overwrite)
    target = args.export and pathlib.Path(args.export)
    if args.quantize and not target:
        raise ValueError("--quantize is for the file of --export FILE.")
    if target:
        check_options(target, args)
        check_parent(target)
    taught, judges, names = folders(args, out)
    keras.utils.set_random_seed(args.seed)
    model = load(
        args.preset,
        num_classes=len(names),
        image_size=args.image_size,
        drop_path_rate=args.drop_path,
        dtype=args.dtype,
    )
    model.labels = names
    start = time.monotonic()
    with staging(goal) as folder:
        log = keras.callbacks.CSVLogger(str(folder / "training.csv"))
        history = learn(model, taught, judges, args, log, out)
        model.save_to_preset(str(folder))
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
    accuracy, minutes = history["val_accuracy"], (time.monotonic() - start) / 60
    epochs = f"{len(accuracy)} epoch{'s' * (len(accuracy) > 1)}"
    out.print(f"Validation accuracy {accuracy[-1]:.1%} after {epochs}, {minutes:.1f} minutes.")
    out.print(f"The model, its labels.txt and training.csv lie in {goal}. Next:", soft_wrap=True)
    out.print(f"  keras-vit predict {goal} PICTURE", soft_wrap=True)
    if target:
        with out.status(f"writing {target}"):
            options = {"quantize": args.quantize} if args.quantize else {}
            write(model, target, taught[0] if args.quantize == "int8" else None, **options)
        out.print(f"Exported to {target}.", soft_wrap=True)
    return 0


def learn(model, taught, judges, args, log, out):
    """The history; Ctrl-C ends the training after the first epoch, and what was learned is kept."""
    try:
        train.finetune(
            model,
            taught,
            judges,
            args.epochs,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            flip=not args.no_flip,
            seed=args.seed,
            callbacks=[log],
            progress=track(out, "reading pictures"),
            verbose=1 if out.is_terminal else 2,
        )
    except KeyboardInterrupt:
        history = getattr(model, "history", None)  # none while pictures are still being read
        if history is None or not history.history.get("val_accuracy"):
            raise
        out.print("\nStopped. The model is kept as it is now.")
    return model.history.history


def folders(args, out):
    """Pictures and labels for training and for validation, and the names of the classes."""
    found = train.read_folder(args.folder, track(out, "checking files"))
    tell_broken(found.broken)
    if pathlib.Path(args.validation).is_dir():
        other = train.read_folder(args.validation, track(out, "checking files"))
        tell_broken(other.broken)
        if other.class_names != found.class_names:
            raise ValueError(
                f"{args.validation} must hold the same class folders as {args.folder}: "
                f"{', '.join(found.class_names)}. Received: {', '.join(other.class_names)}"
            )
        sides = (found.paths, found.labels), (other.paths, other.labels)
    else:
        sides = tuple(
            ([found.paths[i] for i in rows], found.labels[rows])
            for rows in train.split(found.labels, part(args.validation), args.seed)
        )
    count = [len(labels) for _, labels in sides]
    out.print(
        f"{sum(count)} pictures of {len(found.class_names)} classes: {', '.join(found.class_names)}"
    )
    out.print(f"{count[0]} to train on, {count[1]} to judge by")
    return *sides, found.class_names


def part(text):
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--validation takes a part such as 0.2, or a folder that exists. Received: {text!r}"
        ) from None


def check_goal(goal, overwrite):
    """Refuses to write over what is there, unless it is a model and that was asked for."""
    if goal.exists() and not goal.is_dir():
        raise ValueError(f"{str(goal)!r} is a file. --output takes a folder.")
    if not goal.is_dir() or not any(goal.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"The folder {str(goal)!r} is not empty. Choose another --output, or write over the "
            "model in it with --overwrite."
        )
    if not (goal / "config.json").is_file():
        raise ValueError(
            f"No model lies in {str(goal)!r} that could be overwritten. Choose another --output."
        )


@contextlib.contextmanager
def staging(goal):
    """A folder beside `goal`; its files go there once all are complete. Others there stay."""
    made = [path for path in (goal, *goal.parents) if not path.exists()]
    goal.mkdir(parents=True, exist_ok=True)  # now, not after hours, it turns out that it can't be
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{goal.name}.", dir=goal.absolute().parent))
    try:
        yield folder
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            target = goal / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # of folders that are not empty
            for path in made:
                path.rmdir()

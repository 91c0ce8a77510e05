"""The commands that run a model."""

import pathlib
import sys

from keras_vit import demo, explain, train
from keras_vit.cli.tables import console, table
from keras_vit.images import picture_files
from keras_vit.zoo import from_preset

STEP = 32  # pictures at once
LISTED = 5  # broken files that are named; the others are counted


def load(name, **options):
    """The model of that name; options that were not given are left out."""
    given = {key: value for key, value in options.items() if value is not None}
    return train.fast(from_preset(name, **given))


def track(out, text):
    """A function of (iterable, total) that gives the same and draws a bar."""
    from rich.progress import track as bar

    return lambda items, total: bar(items, text, total, console=out, transient=True)


def pictures(names):
    """The picture files that are meant, and how many files were left out, which is said."""
    paths = []
    for name in names:
        paths += picture_files(name) if pathlib.Path(name).is_dir() else [name]
    faults = [train.fault(path) for path in paths]
    tell_broken([(path, why) for path, why in zip(paths, faults, strict=True) if why])
    good = [str(path) for path, why in zip(paths, faults, strict=True) if not why]
    if not good:
        raise ValueError(f"There is no picture to look at: {', '.join(names)}.")
    return good, len(paths) - len(good)


def tell_broken(broken):
    """Files that are not pictures, on stderr: the first ones by name."""
    if broken:
        count = f"{len(broken)} file{'s' * (len(broken) > 1)}"
        print(f"keras-vit: {count} left out, not readable as a picture:", file=sys.stderr)
    for _, why in broken[:LISTED]:
        print(f"  {why}", file=sys.stderr)
    if len(broken) > LISTED:
        print(f"  and {len(broken) - LISTED} more", file=sys.stderr)


def run_predict(args):
    """Print the most probable classes of each picture."""
    out = console()
    paths, left_out = pictures(args.images)
    model = load(args.name, image_size=args.image_size)
    chunks = [paths[i : i + STEP] for i in range(0, len(paths), STEP)]
    shown = chunks if len(chunks) == 1 else track(out, "looking")(chunks, len(chunks))
    results = [result for chunk in shown for result in model.classify(chunk, top=args.top)]
    made = table("picture", "class", ">probability")
    for path, result in zip(paths, results, strict=True):
        for i, (name, probability) in enumerate(result):
            made.add_row("" if i else path, name, f"{probability:.1%}")
    out.print(made)
    return 2 if left_out else 0


def check_parent(path):
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(path.parent)!r} to write {path.name} into."
        )


def run_explain(args):
    """Draw what the model looks at."""
    out, path = console(), pathlib.Path(args.output)
    explain.matplotlib_figure()  # better now than after the work
    check_parent(path)
    paths, left_out = pictures(args.images)
    model = load(args.name, image_size=args.image_size)
    with out.status("looking"):
        explain.overlay(model, paths).savefig(path, dpi=150)
    count = f"{len(paths)} picture{'s' * (len(paths) > 1)}"
    out.print(f"{path}: {explain.shown(model)}, {count}.", soft_wrap=True)
    return 2 if left_out else 0


def run_demo(args):
    """The whole way on small data."""
    demo.run(args.preset, args.output)
    return 0

"""`embed` and `search`: many pictures to Parquet files, and the nearest of them to one."""

import argparse
import json
import pathlib
import sys

from keras_vit import explain, scale
from keras_vit.text import printable
from keras_vit_command.commands import LISTED, check_parent, load_model, track
from keras_vit_command.tables import console, table


def run_embed(args: argparse.Namespace) -> int:
    """Write the embeddings of many pictures."""
    out = console()
    options = {} if args.image_size is None else {"image_size": args.image_size}
    scale.find(args.source, args.column)  # raises now, before the model is loaded
    done = scale.embed(
        load_model(args.name, **options),
        args.source,
        args.output,
        args.what,
        batch_size=args.batch_size,
        workers=args.workers,
        top=args.top,
        dtype="float16" if args.float16 else "float32",
        column=args.column,
        retry_errors=args.retry_errors,
        options=options,
        name=args.name,
        progress=None if args.json else track(out, "embedding"),
    )
    if args.json:
        found = {"pictures": done.pictures, "before": done.before, "broken": done.broken}
        print(json.dumps({"folder": str(done.folder), **found, "errors": dict(done.examples)}))
    else:
        before = f" {done.before} had theirs before." if done.before else ""
        out.print(f"{done.folder}: {done.pictures} pictures.{before}", soft_wrap=True)
    tell_errors(done)
    return 2 if done.broken else 0


def tell_errors(done: scale.Embedded) -> None:
    """Report pictures whose row has an error, on stderr: the first ones by name."""
    if not done.broken:
        return
    rows = f"{done.broken} row{'s' * (done.broken > 1)}"
    text = f"keras-vit: {rows} with an error in place of a value; --retry-errors tries again:"
    print(text, file=sys.stderr)
    for _, why in done.examples[:LISTED]:
        print(f"  {printable(why)}", file=sys.stderr)
    if done.broken > LISTED:
        print(f"  and {done.broken - LISTED} more", file=sys.stderr)


def run_search(args: argparse.Namespace) -> int:
    """Print, and draw, the pictures that are nearest to one."""
    out = console()
    if args.output:
        explain.matplotlib_figure()  # raises now, not after the work
        check_parent(pathlib.Path(args.output))
    found = scale.search(args.folder, args.picture, args.top)
    if args.output:
        scale.sheet(args.folder, args.picture, found).savefig(args.output, dpi=150)
    if args.json:
        print(json.dumps([match._asdict() for match in found], indent=2))
        return 0
    made = table("picture", ">similarity")
    for match in found:
        made.add_row(printable(match.path), f"{match.similarity:.3f}")
    out.print(made)
    return 0

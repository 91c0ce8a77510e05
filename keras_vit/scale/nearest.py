"""The pictures that are nearest to one, among those that `embed` has embedded."""

import contextlib
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_vit.checks import MANY, count
from keras_vit.explain import matplotlib_figure
from keras_vit.models.classifier import ImageClassifier
from keras_vit.pixels import open_image
from keras_vit.scale.outputs import Output, fingerprint
from keras_vit.scale.reading import decode
from keras_vit.scale.shards import Shards, embeddings
from keras_vit.scale.sources import SCHEMES, Picture, find
from keras_vit.types import Path
from keras_vit.zoo import from_preset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4  # of a sheet
SIDE = 256  # pixels, the longer edge of a picture on it


class Match(NamedTuple):
    """A picture that was found: its path, as the rows have it, and its cosine similarity."""

    path: str
    similarity: float


def search(
    folder: Path, picture: Path, top: int = 10, model: ImageClassifier | Path | None = None
) -> list[Match]:
    """The pictures whose features are most similar to those of a picture, the nearest first.

    The rows are read part by part, so memory holds one part. With faiss installed, it compares.

    Args:
        folder: what `embed` has written, with `what="features"`.
        picture: a file or a URL.
        top: how many.
        model: that has made the features; None: it is loaded from where it came.

    Raises:
        FileNotFoundError: `folder` is none of `embed`.
        ValueError: it holds tokens or classes; the model is another; `picture` cannot be read;
            `top` is not positive.
    """
    count(top, "top", 1, MANY)
    shards = Shards(folder)
    manifest = shards.manifest
    if manifest.what != "features":
        raise ValueError(
            f"{str(folder)!r} holds {manifest.what}; search needs features: embed with "
            'what="features".'
        )
    if model is None and manifest.preset is None:
        raise ValueError("The model has no name, so it cannot be loaded again: pass model.")
    if model is None:
        model = manifest.preset
    if not isinstance(model, ImageClassifier):
        listed = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest.options.items()}
        model = from_preset(model, **listed)  # type: ignore[arg-type]
    if fingerprint(model) != manifest.model:
        raise ValueError(
            f"The features in {str(folder)!r} are of another model ({manifest.preset or 'unnamed'})"
        )
    return nearest(shards, vector(model, picture), top)


def vector(model: ImageClassifier, picture: Path) -> np.ndarray:
    """The features of one picture, `(D,)` float32.

    Raises:
        ValueError: it cannot be read.
    """
    output = Output(model, "features", batch_size=1)
    pixels = decode(find([picture]).pictures[0], output.converter)
    if isinstance(pixels, str):
        raise ValueError(pixels)
    return output([pixels])[0]


def nearest(shards: Shards, query: np.ndarray, top: int) -> list[Match]:
    """The rows whose embeddings have the largest cosine similarity to a vector `(D,)`."""
    query = normalized(query[None])
    found: list[Match] = []
    for part in shards.parts().values():
        paths, values = embeddings(part)
        if paths:
            similarity, rows = most_similar(query, normalized(values), min(top, len(paths)))
            pairs = zip(rows[0], similarity[0], strict=True)
            found += [Match(paths[row], float(value)) for row, value in pairs]
        found = sorted(found, key=lambda match: -match.similarity)[:top]
    return found


def normalized(x: np.ndarray) -> np.ndarray:
    """Vectors `(B, D)` of length 1, float32."""
    x = x.astype("float32")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def most_similar(queries: np.ndarray, x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top` largest products of queries `(Q, D)` with vectors `(B, D)`, and the rows of these
    vectors: `(Q, top)` each, the largest first."""
    try:
        import faiss
    except ImportError:
        products = queries @ x.T
        rows = np.argpartition(-products, top - 1, axis=1)[:, :top]
        best = np.take_along_axis(products, rows, 1)
        order = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    return faiss.knn(queries, x, top, metric=faiss.METRIC_INNER_PRODUCT)


def located(folder: Path, paths: Sequence[str]) -> Iterator[Picture]:
    """The pictures of rows, to be read; those in `.tar` files, too. What is no longer there cannot
    be read: an OSError."""
    root = Shards(folder).manifest.root
    for path in paths:
        place = path if path.startswith(SCHEMES) else os.path.join(root, path)
        yield (_member(place) or Picture(path, place))._replace(path=path)


def _member(place: str) -> Picture | None:
    """The picture at `folder/some.tar/member`; None if there is no such archive or member."""
    for end in (match.end() - 1 for match in re.finditer(r"\.tar/", place)):
        if os.path.isfile(place[:end]):
            with contextlib.suppress(ValueError):  # it is no archive any more
                members = find([place[:end]]).pictures
                return next((picture for picture in members if picture.path == place), None)
    return None


def sheet(folder: Path, picture: Path, found: Sequence[Match]) -> "Figure":
    """A figure of a picture and what `search` has found for it; an empty field stands for a picture
    that is no longer there.

    Raises:
        ImportError: matplotlib is not installed.
    """
    shown = [find([picture]).pictures[0], *located(folder, [match.path for match in found])]
    titles = ["searched", *(f"{match.similarity:.3f}" for match in found)]
    rows = math.ceil(len(shown) / COLUMNS)
    figure = matplotlib_figure()(figsize=(2.2 * COLUMNS, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axis in axes:
        axis.set_axis_off()
    for axis, title, one in zip(figure.axes, titles, shown, strict=False):
        axis.set_title(f"{title}\n{_plain(one.path)}", fontsize=8)
        _draw(axis, one)
    return figure


def _plain(path: str) -> str:
    """The end of a path, in letters that matplotlib's font has, and without formulas."""
    name = pathlib.PurePosixPath(path).name[-24:]
    return "".join(c if c.isprintable() and c < "\u0250" and c != "$" else "?" for c in name)


def _draw(axis: Any, picture: Picture) -> None:
    try:
        image = open_image(picture.opened())
    except (OSError, ValueError):
        return
    image.thumbnail((SIDE, SIDE))
    axis.imshow(np.asarray(image))

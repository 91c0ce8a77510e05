"""An interactive page: one HTML file that needs no server and asks for nothing."""

import base64
import gzip
import html
import importlib.resources
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from PIL import Image

from keras_vit import atomic
from keras_vit.explain.analysis import block_distances, map_grids
from keras_vit.explain.canvas import class_names, file_name, pixels, probabilities
from keras_vit.explain.class_maps import class_relevance, grad_cam
from keras_vit.explain.classes import top_classes
from keras_vit.explain.maps import attention_maps, chosen_blocks, classifier, grid_of
from keras_vit.explain.rollouts import rollout
from keras_vit.images import listed
from keras_vit.models.classifier import ImageClassifier
from keras_vit.types import Images, Path

LARGEST = 2**22  # weights in a map; those of larger ones, in the first stages, are left out


class Page:
    """A page, as `page` makes it. A notebook shows it.

    Attributes:
        html: the text of the file.
    """

    def __init__(self, text: str):
        self.html = text

    @property
    def size(self) -> int:
        """The size of the file, in bytes."""
        return len(self.html.encode())

    def save(self, path: Path) -> None:
        """Write the file."""
        with atomic.replacing(path) as temporary:
            pathlib.Path(temporary).write_text(self.html, "utf-8")

    def _repr_html_(self) -> str:
        text = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{text}" style="width: 100%; height: 720px; border: 0"></iframe>'


def page(
    model: keras.Model,
    images: Images,
    path: Path | None = None,
    blocks: int | Sequence[int] | None = None,
    heads_of: Sequence[int] | None = None,
    top: int = 5,
    limit: float = 10e6,
) -> Page:
    """An interactive page of a model's attention, rollout, relevance and attention distance.

    Hover over the picture, tap it or use the arrow keys to choose the query; sliders choose block
    and head. The file works offline on laptops and phones.

    Args:
        model, images, blocks: as in `attention_maps`. By default blocks whose map has more than 4
            million weights are left out.
        path: where to write it, or None.
        heads_of: indices, among the chosen blocks, of those whose heads are all in the file; of the
            others the mean and the maximum over the heads are. By default those of all blocks; if
            the file would be too large, of the first, the middle and the last; else of none.
        top: how many of the most probable classes have a map of relevance: `class_relevance`, or
            `grad_cam` if the blocks do not have the same tokens.
        limit: the largest size of the file, in bytes.

    Raises:
        ValueError: as `attention_maps`; the file is larger than `limit`.
    """
    model = classifier(model)
    several = listed(images)
    every = list(range(len(chosen_blocks(model))))
    chosen = every if blocks is None else [i % len(every) for i in np.atleast_1d(blocks)]
    default = blocks is None
    found = [_picture(model, several[i : i + 1], chosen, default, top) for i in range(len(several))]
    count = len(found[0]["maps"])
    options = [heads_of] if heads_of is not None else [range(count), {0, count // 2, count - 1}, ()]
    made = Page("")
    for option in options:
        made = Page(_text(model, found, {i % count for i in option} if count else set()))
        if made.size <= limit:
            break
    else:
        raise ValueError(
            f"The page would have {made.size / 1e6:.1f} MB, more than the limit of "
            f"{limit / 1e6:.1f} MB. Give fewer images, blocks or heads_of, or a higher limit."
        )
    if path is not None:
        made.save(path)
    return made


def _picture(model, image, chosen, default, top):
    """What the page shows of one image: maps by block, rollout, relevance, distances."""
    lazy = attention_maps(model, image, chosen, lazy=True)
    blocks = chosen_blocks(model, chosen)
    maps, away = [], []
    for index, block, m in zip(chosen, blocks, lazy, strict=True):
        queries, keys, first = map_grids(model, block, m.shape)
        away.append(block_distances(model, block, m).tolist())
        if not default or m.shape[2] * m.shape[3] <= LARGEST:
            maps.append(
                {"index": index, "map": m[0], "grid": queries, "keys": keys, "first": first}
            )
    whole = [entry["map"] for entry in maps]
    found = {"maps": maps, "distances": away, "name": file_name(image[0])}
    found["pixels"] = pixels(model, image)[0]
    same = len({m.shape[1:] for m in whole}) == 1 and whole[0].shape[1] == whole[0].shape[2]
    if same and len(maps) == len(chosen_blocks(model)):
        found["rollout"] = rollout([m[None] for m in whole])[0]
    if model.num_classes:
        found |= _relevance(model, image, top)
    return found


def _relevance(model, image, top):
    ids = top_classes(model, image, min(top, model.num_classes))
    names, chances = class_names(model), probabilities(model, image)[0]
    try:
        maps, method = class_relevance(model, image, ids), "relevance"
    except ValueError:  # blocks with different tokens
        maps, method = grad_cam(model, image, ids), "Grad-CAM"
    classes = [{"name": names[i], "probability": float(chances[i])} for i in ids[0]]
    return {"classes": classes, "relevance": maps[0], "method": method}


# --- Text ---


class Blob:
    """Arrays of bytes, one after the other."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, values: np.ndarray) -> list[int]:
        """Append a map, `(rows, columns)`: rows as bytes, of their maxima, which are floats before
        them. Returns where it begins, rows and columns."""
        largest = values.max(axis=1, keepdims=True).astype("<f4")
        unit = np.rint(255 * values / np.maximum(largest, 1e-30)).clip(0, 255).astype("uint8")
        start = self.size
        part = largest.tobytes() + unit.tobytes()
        part += bytes(-len(part) % 4)  # floats begin at multiples of 4
        self.parts.append(part)
        self.size += len(part)
        return [start, *values.shape]


def _text(model: ImageClassifier, found: Sequence[dict[str, Any]], heads_of: set[int]) -> str:
    blob, prefix = Blob(), model.backbone.num_prefix_tokens
    about = {
        "model": model.preset or model.name,
        "token": bool(model.backbone.options.get("class_token", prefix)),
        "prefix": prefix,
        "grid": grid_of(model),
        "images": [_entry(picture, blob, heads_of) for picture in found],
    }
    data = base64.b64encode(gzip.compress(b"".join(blob.parts), 6, mtime=0)).decode()
    template = importlib.resources.files("keras_vit.explain").joinpath("page.html")
    text = template.read_text("utf-8")
    words = json.dumps(about, ensure_ascii=False).replace("<", "\\u003c")
    text = text.replace("__TITLE__", html.escape(str(about["model"])))
    return text.replace("__ABOUT__", words).replace("__DATA__", data)


def _entry(picture, blob, heads_of):
    entry: dict[str, Any] = {
        "src": data_url(picture["pixels"]),
        "size": picture["pixels"].shape[:2],
        "name": picture["name"],
        "distances": picture["distances"],
        "blocks": [],
    }
    for i, block in enumerate(picture["maps"]):
        m = block["map"]
        made = {key: block[key] for key in ("index", "grid", "keys", "first")}
        made["heads"] = [blob.add(head) for head in m] if i in heads_of else []
        made["count"] = len(m)
        made["mean"], made["max"] = blob.add(m.mean(0)), blob.add(m.max(0))
        entry["blocks"].append(made)
    if "rollout" in picture:
        entry["rollout"] = blob.add(picture["rollout"])
    if "relevance" in picture:
        entry["method"], entry["classes"] = picture["method"], picture["classes"]
        entry["relevance"] = [blob.add(m.reshape(1, -1)) for m in picture["relevance"]]
        entry["relevance_grid"] = picture["relevance"].shape[1:]
    return entry


def data_url(picture: np.ndarray) -> str:
    """A picture `(H, W, C)` uint8 as a `data:` address: JPEG, or PNG if it is small."""
    small = max(picture.shape[:2]) <= 96
    file = io.BytesIO()
    shown = picture if picture.shape[-1] in (1, 3) else picture[..., :1]
    image = Image.fromarray(shown.squeeze(-1) if shown.shape[-1] == 1 else shown)
    image.save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 90}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

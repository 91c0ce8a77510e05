"""Pictures read and decoded by threads, ahead of the model, in order."""

import collections
import concurrent.futures
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from keras_vit.images import ImageConverter
from keras_vit.pixels import open_image
from keras_vit.scale.sources import SCHEMES, Picture

FOR_URLS = 32  # threads: they wait for servers


def processors() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def threads_for(pictures: Sequence[Picture]) -> int:
    """How many threads read and decode: one per processor, more where servers are asked."""
    distant = any(picture.place.startswith(SCHEMES) for picture in pictures)
    return max(FOR_URLS if distant else 1, processors())


def decode(
    picture: Picture, converter: ImageConverter, stopped: threading.Event | None = None
) -> np.ndarray | str:
    """The model's input `(H, W, C)`, float32; or why there is none, in words."""
    try:
        image = open_image(picture.opened(stopped), len(converter.mean))
        return np.asarray(converter.call(image))
    except Exception as error:  # whatever a picture does: the others must not suffer
        return str(error) or type(error).__name__


def decoded(
    pictures: Sequence[Picture], converter: ImageConverter, threads: int, ahead: int
) -> Iterator[np.ndarray | str]:
    """What `decode` gives for each picture, in their order.

    Args:
        pictures: what to read.
        converter: the model's.
        threads: how many decode.
        ahead: how many pictures are in memory at most, besides those that are taken.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads, "keras_vit_decode")
    waiting: collections.deque = collections.deque()
    stopped = threading.Event()
    try:
        for picture in pictures:
            waiting.append(pool.submit(decode, picture, converter, stopped))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)

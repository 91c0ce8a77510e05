"""TensorFlow's interpreter of TFLite files."""

import os
import tempfile
import time
import warnings
from typing import Any

from keras_vit.types import Path


def interpreter(path: Path, threads: int | None = None) -> Any:
    """The interpreter of a file, ready to run."""
    return _ready(model_path=os.fspath(path), num_threads=threads)


def interpreter_of(content: bytes, **options: Any) -> Any:
    """The interpreter of a file's bytes, with one thread per processor, ready to run."""
    return _ready(model_content=content, num_threads=os.cpu_count(), **options)


def _ready(**options):
    import tensorflow as tf

    with warnings.catch_warnings():
        # It recommends another package, whose interpreter is the same, and warns that preserving
        # all tensors takes memory.
        for message in (".*tf.lite.Interpreter is deprecated", ".*experimental_preserve_all"):
            warnings.filterwarnings("ignore", message, UserWarning)
        loaded = tf.lite.Interpreter(**options)
    loaded.allocate_tensors()
    return loaded


def operations(loaded: Any) -> list[str]:
    """Names of the operations in an interpreter's graph, in order, without its delegates."""
    names = [details["op_name"] for details in loaded._get_ops_details()]
    return [name for name in names if name != "DELEGATE"]


def partitions(loaded: Any) -> int:
    """How many parts of the graph run in a delegate; 1 is best."""
    return [d["op_name"] for d in loaded._get_ops_details()].count("DELEGATE")


def starts(path: Path, threads: int) -> tuple[float, float]:
    """Seconds until a file is ready to run: without and with XNNPACK's weight cache.

    Args:
        path: a TFLite file.
        threads: to run it with.

    Raises:
        ImportError: without the extra `int8`, whose LiteRT has the cache.
    """
    try:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.cpu_options import CpuOptions
        from ai_edge_litert.options import Options
    except ImportError as error:
        raise ImportError(
            'weight_cache needs LiteRT: pip install "keras-vit-zoo[int8]"', name="ai_edge_litert"
        ) from error

    def load(**cached):
        start = time.perf_counter()
        options = Options(cpu_options=CpuOptions(num_threads=threads, **cached))
        CompiledModel.from_file(os.fspath(path), options=options)
        return time.perf_counter() - start

    load()  # LiteRT itself, and the file's pages
    with tempfile.TemporaryDirectory() as folder:
        cached = {"xnnpack_weight_cache_path": os.path.join(folder, "weights.cache")}
        load(**cached)  # makes it
        return load(), load(**cached)

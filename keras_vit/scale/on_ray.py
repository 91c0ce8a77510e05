"""The same on Ray Data: actors hold the model, each writes whole parts.

A part is a task. It is written under its own name, in one step, so that a task that Ray runs twice
leaves the same file; and a job that is killed is continued by what `embed` finds in the folder.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import pickle
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_vit.models.classifier import ImageClassifier
from keras_vit.scale.outputs import Output
from keras_vit.scale.parts import Done, Part
from keras_vit.scale.parts import write_parts as write_here
from keras_vit.scale.shards import Shards

RETRIES = 3  # of a part whose worker dies: a picture that kills it must not do so without end
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its authors
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of `embed` that a worker needs."""

    what: str
    batch_size: int
    top: int
    workers: int
    threads: int | None
    backend: str = dataclasses.field(default_factory=keras.backend.backend)


def write_parts(
    parts: Sequence[Part], model: ImageClassifier, shards: Shards, settings: Settings
) -> Generator[Done, None, None]:
    """As in one process, by actors of Ray.

    Raises:
        ImportError: Ray is not installed.
        OSError: a worker cannot write.
        RuntimeError: workers die again and again.
    """
    if not parts:
        return
    with _running() as ray:
        parcel = ray.put((keras.saving.serialize_keras_object(model), model.get_weights()))
        tasks = [{"part": pickle.dumps(part)} for part in parts]
        cpus = ray.cluster_resources().get("CPU", 1)
        gpus = ray.cluster_resources().get("GPU", 0)
        done = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            Worker,
            fn_constructor_args=(parcel, str(shards.folder.resolve()), settings, cpus),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(settings.workers, len(parts))),
            # A worker that took whole processors would leave none for Ray Data's own tasks, which
            # then waits for ever, in silence.
            num_cpus=min(1.0, 0.5 * cpus / settings.workers),
            num_gpus=min(1.0, gpus / settings.workers) if gpus else None,
            max_restarts=RETRIES,  # Ray Data itself would restart a worker for ever
            max_task_retries=RETRIES,
        )
        try:
            for row in done.iter_rows():
                yield pickle.loads(row["done"])
        except ray.exceptions.RayError as error:
            raise _failure(error) from error


def _failure(error: Any) -> Exception:
    """An error of a worker as one of this process: what is below Ray's own ones, in a line."""
    cause = error
    while below := getattr(cause, "cause", None) or cause.__cause__:
        cause = below
    if isinstance(cause, OSError):
        return cause
    return RuntimeError(f"A worker of Ray failed: {str(cause).strip().splitlines()[0]}")


class Worker:
    """An actor: a copy of the model, which writes parts.

    Args:
        parcel: reference to (config, weights).
        folder: of the shards.
        settings: of `embed`.
        cpus: of the cluster.
    """

    def __init__(self, parcel: Any, folder: str, settings: Settings, cpus: float):
        import ray

        if keras.backend.backend() != settings.backend:
            raise RuntimeError(
                f"Keras' backend is {keras.backend.backend()} in this worker and "
                f"{settings.backend} in the process that asks: set KERAS_BACKEND on all machines."
            )
        _share_processors(max(1, int(cpus / settings.workers)))
        config, weights = ray.get(parcel)
        model = keras.saving.deserialize_keras_object(config)
        model.set_weights(weights)
        self.output = Output(model, settings.what, settings.batch_size, settings.top)
        self.shards = Shards(pathlib.Path(folder))
        self.threads = settings.threads

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        parts = [pickle.loads(part) for part in batch["part"]]
        done = write_here(parts, self.output, self.shards, self.threads)
        return {"done": np.array([pickle.dumps(one) for one in done], object)}


def _share_processors(share: int) -> None:
    """Give TensorFlow so many processors; it would start threads for all of the machine."""
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # it has its threads already
        tf.config.threading.set_intra_op_parallelism_threads(share)
        tf.config.threading.set_inter_op_parallelism_threads(1)


@contextlib.contextmanager
def _running() -> Iterator[Any]:
    """The module ray, connected; a cluster of this machine alone ends with the job."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError:
        raise ImportError('Several workers need Ray: pip install "keras-vit-zoo[scale]"') from None
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    kept = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        context.enable_progress_bars = kept[0]
        log.setLevel(kept[1])
        if started:
            ray.shutdown()

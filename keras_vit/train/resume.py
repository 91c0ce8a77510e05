"""Training that continues after a crash: its whole state in one file, replaced atomically."""

import contextlib
import errno
import json
import math
import pathlib
import warnings
import zipfile
import zlib
from typing import Any

import keras
import numpy as np

from keras_vit import atomic
from keras_vit.types import Path

INDEX, BYTES = "state.json", "variables"  # the entries of the zip archive
DAMAGED = (  # what reading a damaged archive raises
    zipfile.BadZipFile,
    zlib.error,
    json.JSONDecodeError,
    UnicodeDecodeError,
    EOFError,
    KeyError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
)


class Resume(keras.callbacks.Callback):
    """Saves the state of the training after each epoch; the next `fit` continues from it.

    It does what `keras.callbacks.BackupAndRestore` does, with one file for everything: all
    variables of the model (those of LoRA and the seeds of dropout, too) and of the optimizer, the
    number of the epoch and the history. The file is written beside its place and then renamed. So
    a process that is killed at any moment leaves the state after one epoch, whole.

    A state with NaN is not saved, and if the disk is full the one before stays; both give a
    warning, and the training goes on. `History` contains the epochs before the interruption.

    The same numbers as without an interruption need the same order of the data: `fit` of this
    package's models shuffles arrays by seed and epoch; your own dataset has to do likewise. The
    state of other callbacks, such as `EarlyStopping`, is not saved.

    Args:
        path: the file. Its folder is made if need be.
        delete_checkpoint: whether to delete the file when the training has ended.
        settings: what else to store, for `read_state`: values that JSON can hold.

    Raises:
        ValueError: in `fit`: the file is damaged, or the state of another model or optimizer.

    Example:

    ```python
    model.fit(images, labels, epochs=20, callbacks=[keras_vit.train.Resume("training.state")])
    ```
    """

    def __init__(
        self, path: Path, delete_checkpoint: bool = True, settings: dict[str, Any] | None = None
    ):
        super().__init__()
        self.path = pathlib.Path(path)
        self.delete_checkpoint = delete_checkpoint
        self.settings = settings or {}
        self.epoch = 0  # how many epochs the file has; 0: there is none
        self.history: dict[str, list[Any]] = {}  # of all epochs, those before an interruption, too
        self._earlier = 0  # epochs that Keras' History does not have yet

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.history, self.epoch = {}, 0
        if self.path.exists():
            state = load_state(self.path, self.model)
            self.history, self.epoch = state["history"], state["epoch"]
            self.model._initial_epoch = self.epoch  # as BackupAndRestore does
        self._earlier = self.epoch

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._complete_history()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(np.asarray(value).tolist())
        about = {"epoch": epoch + 1, "history": self.history, "settings": self.settings}
        try:
            save_state(self.path, self.model, about)
            self.epoch = epoch + 1
        except (OSError, ValueError) as error:
            warnings.warn(f"The state after epoch {epoch + 1} is not saved: {error}", stacklevel=2)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._complete_history()
        if self.delete_checkpoint:
            self.path.unlink(missing_ok=True)

    def _complete_history(self):
        """Puts the epochs before the interruption in front, once `History` has begun."""
        history = self.model.history
        if self._earlier and history is not None:
            history.epoch[:0] = range(self._earlier)
            for name, values in self.history.items():
                history.history.setdefault(name, [])[:0] = values
        self._earlier = 0
        self.model._initial_epoch = None  # it was for this call of fit alone


def save_state(path: Path, model: keras.Model, about: dict[str, Any]) -> None:
    """Write all variables of a model and its optimizer to one file, atomically.

    Args:
        path: a zip archive: state.json, which lists the variables, and their bytes, one after
            another.
        model: a model that has been trained.
        about: what else to store: values that JSON can hold.

    Raises:
        ValueError: a weight is NaN or infinite.
        OSError: the file cannot be written.
    """
    variables = _variables(model)
    index = {**about, "optimizer": type(model.optimizer).__name__, "torch": _torch_generators()}
    index["variables"] = [_described(variable) for variable in variables]
    with atomic.replacing(path) as new, zipfile.ZipFile(new, "w") as file:
        file.writestr(INDEX, json.dumps(index))
        with file.open(BYTES, "w", force_zip64=True) as entry:
            for variable, (_, _, dtype) in zip(variables, index["variables"], strict=True):
                array = np.ascontiguousarray(keras.ops.convert_to_numpy(variable), dtype)
                if array.size and not np.isfinite([array.min(), array.max()]).all():
                    raise ValueError(f"{variable.path} has values that are not finite.")
                entry.write(array.reshape(-1).view("uint8").data)


def read_state(path: Path) -> dict[str, Any]:
    """What `Resume` has stored beside the variables: `epoch`, how many are completed; `history`, a
    dict as Keras' `History` has; `settings`.

    Raises:
        ValueError: it is not such a file, or it is damaged.
        OSError: it cannot be read.
    """
    with _opened(path) as file:
        return json.loads(file.read(INDEX))


def load_state(path: Path, model: keras.Model, optimizer: bool = True) -> dict[str, Any]:
    """Set all variables of a model, and of its optimizer on request, to those of a file.

    Returns:
        As `read_state`.

    Raises:
        ValueError: the file is damaged, or the state of another model or optimizer: nothing has
            changed.
        OSError: it cannot be read.
    """
    state = read_state(path)
    variables = _variables(model) if optimizer else model.variables
    stored = state["variables"]
    if optimizer and state["optimizer"] != type(model.optimizer).__name__:
        raise ValueError(
            f"{str(path)!r} is the state of a training with {state['optimizer']}. Received: "
            f"{type(model.optimizer).__name__}"
        )
    here = [_described(variable) for variable in variables]
    for there, own in zip(stored, here, strict=False):
        if there[1:] != own[1:]:
            raise ValueError(
                f"{str(path)!r} is the state of another model: {there[0]} has the shape "
                f"{tuple(there[1])} and type {there[2]}. Received: {own[0]}, {tuple(own[1])}, "
                f"{own[2]}"
            )
    if len(stored) != len(here) if optimizer else len(stored) < len(here):
        raise ValueError(
            f"{str(path)!r} is the state of another model, with {len(stored)} variables. "
            f"Received: {len(here)} variables"
        )
    with _opened(path) as file:
        if file.testzip() is not None:  # before anything changes
            raise zipfile.BadZipFile
        with file.open(BYTES) as entry:
            for variable in variables:
                shape, dtype = variable.shape, np.dtype(_described(variable)[2])
                content = bytearray(entry.read(math.prod(shape) * dtype.itemsize))
                variable.assign(np.frombuffer(content, dtype).reshape(shape))
    if optimizer:
        _set_torch_generators(state["torch"])
    return state


def _variables(model):
    """All variables of a model, in an order that its structure fixes, then its optimizer's."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]


def _described(variable):
    """[path, shape, dtype]; the path is for messages: it differs from process to process."""
    return [variable.path, list(variable.shape), keras.backend.standardize_dtype(variable.dtype)]


def _torch_generators():
    """The states of torch's generators, the CPU's first, in hexadecimal: Keras' dropout on torch
    draws from them, not from a seed of its own."""
    if keras.backend.backend() != "torch":
        return []
    import torch

    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return [state.numpy().tobytes().hex() for state in states]


def _set_torch_generators(states):
    if keras.backend.backend() != "torch" or not states:
        return
    import torch

    cpu, *gpus = [torch.tensor(list(bytes.fromhex(state)), dtype=torch.uint8) for state in states]
    torch.set_rng_state(cpu)
    if len(gpus) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(gpus)


@contextlib.contextmanager
def _opened(path):
    """The zip archive; whatever is wrong in it is a ValueError."""
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # an impossible offset
            raise
        raise ValueError(
            f"{str(path)!r} is not a whole state of a training. Delete it to start again."
        ) from error

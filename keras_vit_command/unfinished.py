"""The state of a training that has not ended, in the output folder of `finetune`."""

import contextlib
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from keras_vit import atomic, train

NAME = "unfinished"


class Unfinished:
    """The folder `unfinished` in an output folder: the states after the last and the best epoch.

    Args:
        output: where the trained model goes.
    """

    def __init__(self, output: pathlib.Path):
        self.output = output
        self.folder = output / NAME
        self.last, self.best = self.folder / "last.state", self.folder / "best.state"

    def exists(self) -> bool:
        """Whether there is a training to continue."""
        return self.last.is_file()

    def progress(self) -> str:
        """How far it is: `"3 of 5 epochs"`."""
        state = train.read_state(self.last)
        return f"{state['epoch']} of {state['settings']['epochs']} epochs"

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """The folder exists and belongs to this process; without a state it is deleted again.

        Raises:
            BlockingIOError: another process trains into the output folder.
        """
        with atomic.making(self.folder), contextlib.ExitStack() as stack:
            try:
                stack.enter_context(atomic.locked(self.folder / "lock"))
            except BlockingIOError:
                raise BlockingIOError(
                    f"Another keras-vit finetune writes to {str(self.output)!r}. Choose another "
                    "--output."
                ) from None
            try:
                yield
            except BaseException as error:
                if self.exists():
                    error.add_note(
                        f"The training is kept after {self.progress()}: to continue, run the same "
                        "command with --resume."
                    )
                raise
            finally:
                if not self.exists():
                    shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Delete the states."""
        for path in (self.last, self.best):
            path.unlink(missing_ok=True)


class Keeper(train.Resume):
    """Saves the state after each epoch, and keeps the best one, by validation accuracy; of epochs
    with equal accuracy the one with the lower loss."""

    def __init__(self, unfinished: Unfinished, settings: dict[str, Any]):
        super().__init__(unfinished.last, delete_checkpoint=False, settings=settings)
        self.best = unfinished.best

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self.epoch == epoch + 1 and self.is_best():
            try:
                with atomic.replacing(self.best) as new:
                    link(self.path, new)
            except OSError as error:
                warnings.warn(f"Epoch {epoch + 1} cannot be kept: {error}", stacklevel=2)

    def is_best(self) -> bool:
        """Whether no epoch before is better than the last one."""
        return not self.best.is_file() or score(self.history) > self.best_score()

    def best_score(self) -> tuple[float, float]:
        return score(train.read_state(self.best)["history"])

    def select(self, model: keras.Model, keep: str, completed: bool) -> dict[str, Any]:
        """Give the model the weights of the epoch to keep.

        Args:
            model: it has been trained.
            keep: `"best"` or `"last"`.
            completed: whether its weights are those after an epoch, not of an interrupted one.

        Returns:
            `epoch`, from 1, and `history`, until then.
        """
        best = keep == "best" and self.best.is_file()
        if completed and not (best and self.best_score() > score(self.history)):
            return {"epoch": len(self.history["loss"]), "history": self.history}
        return train.load_state(self.best if best else self.path, model, optimizer=False)


class Patience(keras.callbacks.Callback):
    """Ends the training once no epoch has been better for some time. It reads the keeper's history,
    which a continued training has, too.

    Args:
        keeper: it stands before this callback.
        epochs: how many.
    """

    def __init__(self, keeper: Keeper, epochs: int):
        super().__init__()
        self.keeper, self.epochs = keeper, epochs

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        history = self.keeper.history
        scores = list(zip(history["val_accuracy"], (-x for x in history["val_loss"]), strict=True))
        if len(scores) - 1 - scores.index(max(scores)) >= self.epochs:
            self.model.stop_training = True


def score(history: dict[str, list[float]]) -> tuple[float, float]:
    """What makes the last epoch of a history better than another."""
    return history["val_accuracy"][-1], -history["val_loss"][-1]


def link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A second name for a file that is never changed, only replaced; else a copy."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)

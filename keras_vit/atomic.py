"""Atomic writes: files and folders are complete before they take their place.

They are written into a staging folder on the same disk and then renamed. A staging folder that a
killed process left behind is deleted by the next write to the same place; a lock tells it from one
in use.
"""

import contextlib
import errno
import glob
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator

import filelock

from keras_vit.types import Path

NEW, OLD, LOCK = "new", "old", "lock"  # what a staging folder contains
YOUNG = 60  # seconds in which a staging folder may not have its lock yet
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """A temporary path for a file or folder, which takes the place of `path` at the end, or is
    deleted if writing it fails.

    Of an existing folder, only the entries that the new one has, too, are replaced. If the last
    step fails, the new file or folder stays on the disk, and the error says where.

    Args:
        path: a file or folder, new or existing; links to them are followed.

    Raises:
        ValueError: `path` is neither, for instance a device or a named pipe.
        OSError: the parent folder does not exist or cannot be written to, or the disk is full.
    """
    path = pathlib.Path(path).resolve()
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{str(path)!r} is neither a file nor a folder, so it is not replaced.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write to.")
    # A mounted folder cannot be renamed, and may be on another disk than its parent.
    with _staging(path if path.is_dir() else path.parent, path.name) as stage:
        yield stage.new
        with _last_step(stage, path):
            if path.is_dir():
                _merge(stage, path, _entries(path))
            else:
                os.replace(stage.new, path)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[pathlib.Path]:
    """A temporary folder, whose entries move into `folder` at the end. Other entries stay.

    An entry that another process has written since the start is not replaced. If the last step
    fails, the new entries stay on the disk, and the error says where.

    Args:
        folder: an existing or new folder; a new one is removed again if writing fails.

    Raises:
        OSError: the folder cannot be written to, the disk is full, or an entry has changed.
    """
    with making(folder):
        folder = pathlib.Path(folder).resolve()
        before = _entries(folder)
        with _staging(folder, folder.name) as stage:
            stage.new.mkdir()
            yield stage.new
            with _last_step(stage, folder):
                _merge(stage, folder, before)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[None]:
    """Make a folder and its parents. Those that did not exist and end up empty are removed."""
    folder = pathlib.Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # of folders that are gone or not empty
                path.rmdir()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, which the system releases even if the process is killed.

    Yields:
        Whether it is held: False on a file system without locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(f"Another process holds the lock {str(path)!r}.") from None
    except (NotImplementedError, OSError):
        pass
    try:
        yield lock.is_locked
    finally:
        lock.release()


def check_space(folder: Path, size: int) -> None:
    """Raise OSError unless the disk of `folder` has room for `size` bytes.

    To be called before HDF5 writes a file: it crashes the process when the disk is full.

    Raises:
        OSError: the message says how many bytes are needed, free and missing.
    """
    free = shutil.disk_usage(folder).free
    with contextlib.suppress(PermissionError):
        probe, name = tempfile.mkstemp(prefix=".space.", dir=folder)
        try:
            os.unlink(name)
            os.posix_fallocate(probe, 0, size)  # unlike `free`, this heeds quotas
        except AttributeError:  # not on every system
            pass
        except OSError as error:
            if error.errno in FULL:
                free = min(free, size - 1)
        finally:
            os.close(probe)
    if free < size:
        raise OSError(
            f"Not enough space in {str(folder)!r}: {size / 1e6:.1f} MB are needed, "
            f"{free / 1e6:.1f} MB are free. Free at least {max((size - free) / 1e6, 0.1):.1f} MB."
        )


class _Stage:
    """A folder for what is new, for what it replaces, and a lock."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.new, self.old, self.lock = path / NEW, path / OLD, path / LOCK
        self.needed = False  # whether the only copy is in it

    def in_use(self):
        """Whether its process still runs, as far as can be told."""
        if {path.name for path in self.path.iterdir()} - {NEW, OLD, LOCK}:
            return True  # not ours, or it is needed
        return not self.lock.exists() and time.time() - self.path.stat().st_mtime < YOUNG

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)

    def keep_new(self, name):
        """Move what is new out of the folder, where the user sees it: its path."""
        stem, dot, suffix = name.partition(".")
        kept = self.path.parent / f"{stem}-{self.path.suffix[1:]}{dot}{suffix}"
        try:
            _move(self.new, kept)
        except OSError:
            self.needed, kept = True, self.new
            with contextlib.suppress(OSError):
                (self.path / "needed").touch()
        return kept


@contextlib.contextmanager
def _staging(home, name):
    """A `_Stage` in the folder `home` for a new version of `name`."""
    prefix = f".{name}."
    for path in home.glob(f"{glob.escape(prefix)}*"):
        if re.fullmatch(r"[a-z0-9_]{8}", path.name.removeprefix(prefix)):
            _remove_stale(path)
    stage = _Stage(pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=home)))
    try:
        with locked(stage.lock):
            yield stage
    finally:
        if not stage.needed:
            stage.remove()


def _remove_stale(path):
    """Delete a staging folder if its process has ended."""
    stage = _Stage(path)
    with contextlib.suppress(OSError):
        if not stage.in_use():
            with locked(stage.lock) as held:
                if held:
                    stage.remove()


def _entries(folder):
    """{name: what changes when somebody replaces or edits the entry} of a folder."""
    states = {entry.name: entry.lstat() for entry in folder.iterdir()}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns) for name, s in states.items()}


@contextlib.contextmanager
def _last_step(stage, path):
    """If this fails, what is new is kept, and the error says where."""
    try:
        yield
    except BaseException as error:
        if not stage.new.exists():
            raise
        kept = stage.keep_new(path.name)
        text = f"The new {path.name!r} is complete. It is now {str(kept)!r}."
        if isinstance(error, OSError):
            raise OSError(f"{error} {text}") from error
        error.add_note(text)  # Ctrl-C
        raise


def _merge(stage, folder, before):
    """Move the new entries into a folder, all or none, unless those that they replace have changed
    since `before`."""
    if not stage.new.is_dir():
        raise IsADirectoryError(f"{str(folder)!r} is a folder.")
    now = _entries(folder)
    # Backwards: a preset's config.json comes last, and without it nobody loads half a preset.
    names = sorted((entry.name for entry in stage.new.iterdir()), reverse=True)
    changed = [name for name in names if now.get(name) != before.get(name)]
    if changed:
        raise FileExistsError(
            f"Another process has written {', '.join(sorted(changed))} to {str(folder)!r}."
        )
    stage.old.mkdir()
    moves = [(folder / name, stage.old / name) for name in names if name in now]
    moves += [(stage.new / name, folder / name) for name in names]
    done = []
    try:
        for source, target in moves:
            _move(source, target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            _move(target, source)
        raise


def _move(source, target):
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(source, target)  # overlayfs does not rename folders of a lower layer

"""keras_vit.atomic: files and folders that are complete or not there, whatever happens."""

import contextlib
import errno
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

import pytest

from keras_vit import atomic

ANOTHER_DISK = pathlib.Path("/dev/shm")


def tree(folder):
    """{path: content} of all files below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def write(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)


@pytest.fixture
def another_disk(tmp_path):
    """A folder on another file system than `tmp_path`."""
    if not ANOTHER_DISK.is_dir() or os.stat(ANOTHER_DISK).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip(f"{ANOTHER_DISK} is not another file system")
    with tempfile.TemporaryDirectory(dir=ANOTHER_DISK) as folder:
        yield pathlib.Path(folder)


@pytest.fixture
def mounted(tmp_path):
    """A mount point, and the size in bytes of the file system in it."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    size = 1_000_000
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(command, capture_output=True).returncode == 0:
            yield folder, size
            subprocess.run(["umount", str(folder)], check=True)
            return
    pytest.skip("this user may not mount a file system")


# --- replacing ---


def test_a_file_is_complete_or_not_there(tmp_path):
    path = tmp_path / "m.bin"
    with atomic.replacing(path) as new:
        new.write_text("one")
        assert not path.exists()
    assert tree(tmp_path) == {"m.bin": "one"}
    with pytest.raises(RuntimeError), atomic.replacing(path) as new:
        new.write_text("half")
        raise RuntimeError
    assert tree(tmp_path) == {"m.bin": "one"} and os.listdir(tmp_path) == ["m.bin"]


def test_of_a_folder_only_its_own_entries_are_replaced(tmp_path):
    path = tmp_path / "saved"
    with atomic.replacing(path) as new:
        write(new, **{"saved_model.pb": "1", "variables/shard-1": "1"})
    write(path, **{"notes.txt": "mine"})
    with atomic.replacing(path) as new:
        write(new, **{"saved_model.pb": "2", "variables/shard-2": "2"})
    assert tree(tmp_path) == {
        "saved/notes.txt": "mine",
        "saved/saved_model.pb": "2",
        "saved/variables/shard-2": "2",
    }
    assert sorted(os.listdir(path)) == ["notes.txt", "saved_model.pb", "variables"]


def test_new_files_have_the_rights_of_the_user_s_umask(tmp_path):
    with atomic.replacing(tmp_path / "file") as new:
        new.write_text("")
    with atomic.filling(tmp_path / "folder") as new:
        write(new, inside="")
    mask = os.umask(0)
    os.umask(mask)
    for name, rights in (("file", 0o666), ("folder", 0o777), ("folder/inside", 0o666)):
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == rights & ~mask


@pytest.mark.parametrize("kind", ["device", "named pipe", "socket", "link to a device"])
def test_what_is_no_file_is_not_replaced(kind, tmp_path):
    path = tmp_path / "it"
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "link to a device":
        path.symlink_to("/dev/null")
    else:
        path = pathlib.Path("/dev/null")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        with atomic.replacing(path):
            raise AssertionError("nothing is written")
    assert not path.is_file() and path.exists()
    assert not [p for p in path.parent.iterdir() if p.name.startswith(f".{path.name}.")]


def test_there_is_no_folder_to_write_to(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder.*nowhere"):
        with atomic.replacing(tmp_path / "nowhere" / "m"):
            pass


@pytest.mark.parametrize("kind", ["file", "folder", "new file", "new folder"])
def test_a_link_to_another_disk_is_followed(kind, tmp_path, another_disk):
    target = another_disk / "target"
    if kind == "file":
        target.write_text("old")
    elif kind == "folder":
        write(target, kept="old")
    link = tmp_path / "link"
    link.symlink_to(target)
    with atomic.replacing(link) as new:
        write(new, inside="new") if "folder" in kind else new.write_text("new")
    assert link.is_symlink() and os.listdir(another_disk) == ["target"]
    wanted = {"target/inside": "new"} if "folder" in kind else {"target": "new"}
    assert tree(another_disk) == {**wanted, **({"target/kept": "old"} if kind == "folder" else {})}
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize("way", [atomic.replacing, atomic.filling])
def test_a_mount_point_is_written_into(way, mounted):
    folder, _ = mounted
    for text in ("first", "second"):
        with way(folder) as new:
            write(new, **{"config.json": text, "variables/shard": text})
        assert tree(folder) == {"config.json": text, "variables/shard": text}
    assert sorted(os.listdir(folder)) == ["config.json", "variables"]


def fails(*numbers, error=errno.EIO):
    """A function that fails with that error in the calls of those numbers, from 0; else renames."""
    rename, calls = os.rename, iter(range(100))

    def failing(source, target):
        if next(calls) in numbers:
            raise OSError(error, os.strerror(error), str(source))
        return rename(source, target)

    return failing


@pytest.mark.parametrize("fault", [errno.EXDEV, errno.EBUSY, errno.EIO])
def test_if_the_last_step_fails_the_new_file_stays(fault, tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", fails(0, error=fault))
    with pytest.raises(OSError, match=r"is complete. It is now '(.*)'") as raised:
        with atomic.replacing(path) as new:
            new.write_text("new")
    [kept] = set(tmp_path.iterdir()) - {path}
    assert path.read_text() == "old" and kept.read_text() == "new"
    assert kept.suffix == ".tflite" and str(kept) in str(raised.value)


@pytest.mark.parametrize("way", [atomic.replacing, atomic.filling])
@pytest.mark.parametrize("step", range(5))
def test_if_moving_fails_the_old_and_the_new_folder_stay(way, step, tmp_path, monkeypatch):
    path = tmp_path / "m"
    old = {"config.json": "old", "other": "old", "weights": "old"}
    new = {"config.json": "new", "labels": "new", "weights": "new"}
    write(path, **old)
    monkeypatch.setattr(os, "rename", fails(step))
    with pytest.raises(OSError, match=r"is complete. It is now") as raised:
        with way(path) as folder:
            write(folder, **new)
    [kept] = [p for p in path.iterdir() if p.is_dir()]
    assert tree(kept) == new and str(kept) in str(raised.value)
    assert tree(path) == {**old, **{f"{kept.name}/{name}": text for name, text in new.items()}}


def test_if_nothing_can_be_renamed_the_new_folder_stays(tmp_path, monkeypatch):
    path = tmp_path / "m"
    write(path, weights="old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="is complete") as raised:
        patch.setattr(os, "rename", fails(*range(100)))
        with atomic.replacing(path) as new:
            write(new, weights="new")
    with atomic.replacing(path) as new:  # which does not delete it
        write(new, weights="newer")
    kept = pathlib.Path(str(raised.value).split("'")[-2])
    assert (path / "weights").read_text() == "newer" and tree(kept) == {"weights": "new"}


def test_folders_that_cannot_be_renamed_are_copied(tmp_path, monkeypatch):
    path = tmp_path / "m"
    write(path, **{"config.json": "old", "variables/shard-1": "old"})
    monkeypatch.setattr(os, "rename", fails(*range(100), error=errno.EXDEV))
    with atomic.replacing(path) as new:
        write(new, **{"config.json": "new", "variables/shard-2": "new"})
    assert tree(tmp_path) == {"m/config.json": "new", "m/variables/shard-2": "new"}


def test_ctrl_c_in_the_last_step_loses_nothing(tmp_path, monkeypatch):
    write(tmp_path / "m", weights="old")
    rename, calls = os.rename, []

    def interrupted(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(*paths)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        with atomic.filling(tmp_path / "m") as new:
            write(new, weights="new")
    [kept] = [p for p in (tmp_path / "m").iterdir() if p.is_dir()]
    assert tree(kept) == {"weights": "new"} and str(kept) in raised.value.__notes__[0]
    assert (tmp_path / "m" / "weights").read_text() == "old"


# --- filling ---


def test_a_folder_that_was_made_is_removed_if_nothing_comes_into_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic.filling(tmp_path / "some" / "where") as new:
        write(new, half="half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("there", [{}, {"config.json": "old"}])
def test_what_another_process_has_written_is_not_replaced(there, tmp_path):
    path = tmp_path / "m"
    write(path, **there)
    with pytest.raises(OSError, match="Another process has written config.json") as raised:
        with atomic.filling(path) as new:
            write(new, **{"config.json": "mine", "weights": "mine"})
            write(path, **{"config.json": "theirs", "weight.txt": "theirs"})
    assert (path / "config.json").read_text() == "theirs" and not (path / "weights").exists()
    [kept] = [p for p in path.iterdir() if p.is_dir()]
    assert tree(kept) == {"config.json": "mine", "weights": "mine"}
    assert str(kept) in str(raised.value)


# --- killed processes ---

WRITER = """
import sys, time, types
package = sys.modules["keras_vit"] = types.ModuleType("keras_vit")
package.__path__ = [sys.argv[3]]  # its __init__ would import TensorFlow
from keras_vit import atomic
way = {"replacing": atomic.replacing, "filling": atomic.filling}[sys.argv[1]]
with way(sys.argv[2]) as new:
    (new if new.suffix or not new.is_dir() else new / "part").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writers():
    """A function that starts two processes which write and do not end."""
    processes = []

    def start(way, path):
        package = str(pathlib.Path(atomic.__file__).parent)
        command = [sys.executable, "-c", WRITER, way, str(path), package]
        for _ in range(2):
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert [process.stdout.readline() for process in processes] == ["writing\n"] * 2
        return processes

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("way", ["replacing", "filling"])
def test_the_next_write_cleans_up_after_a_killed_one(way, tmp_path, writers):
    path = tmp_path / "m"
    first, second = writers(way, path)
    first.send_signal(signal.SIGKILL)
    first.wait()
    home = path if way == "filling" else tmp_path
    assert len([p for p in home.iterdir() if p.name.startswith(".m.")]) == 2
    with getattr(atomic, way)(path) as new:
        write(new, part="whole") if way == "filling" else new.write_text("whole")
    [alive] = [p for p in home.iterdir() if p.name.startswith(".m.")]  # the second's, in use
    second.kill()
    second.wait()
    with getattr(atomic, way)(path) as new:
        write(new, part="whole") if way == "filling" else new.write_text("whole")
    assert tree(tmp_path) == ({"m/part": "whole"} if way == "filling" else {"m": "whole"})
    assert not alive.exists()


def test_only_staging_folders_are_cleaned_up(tmp_path):
    for name, content in ((".m.abcdefgh", "letter"), (".m.ABCDEFGH", "new"), (".m.b", "new")):
        write(tmp_path / name, **{content: "mine"})
        os.utime(tmp_path / name, (0, 0))
    write(tmp_path / ".m.12345678", new="just made, not locked yet")
    before = tree(tmp_path)
    with atomic.replacing(tmp_path / "m") as new:
        new.write_text("new")
    assert tree(tmp_path) == {**before, "m": "new"}
    os.utime(tmp_path / ".m.12345678", (time.time() - 3600,) * 2)
    with atomic.replacing(tmp_path / "m") as new:
        new.write_text("new")
    assert not (tmp_path / ".m.12345678").exists()


def test_a_lock_is_held_by_one(tmp_path):
    with atomic.locked(tmp_path / "lock") as held:
        assert held
        with pytest.raises(BlockingIOError), atomic.locked(tmp_path / "lock"):
            pass
    with atomic.locked(tmp_path / "lock") as held:
        assert held


# --- space ---


def test_space_is_checked_on_a_real_disk(mounted):
    folder, size = mounted
    atomic.check_space(folder, size // 2)
    (folder / "other").write_bytes(bytes(size // 2))
    message = r"0.9 MB are needed, 0.\d MB are free. Free at least 0.\d MB"
    with pytest.raises(OSError, match=message):
        atomic.check_space(folder, 900_000)
    assert os.listdir(folder) == ["other"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_space_is_checked_with_quotas(number, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="1.0 MB are needed"):
        atomic.check_space(tmp_path, 1_000_000)
    assert os.listdir(tmp_path) == []


def test_space_is_checked_where_it_cannot_be_reserved(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    atomic.check_space(tmp_path, 1_000)
    with pytest.raises(OSError, match="Free at least"):
        atomic.check_space(tmp_path, 10**18)

"""Several processes at one cache, their end, a full disk: the real client, a Hub on 127.0.0.1."""

import hashlib
import json
import os
import pathlib
import random
import resource
import time

import pytest
import tiny_checkpoints as tiny
from forking import fresh_server
from hub_server import HubServer, client_of, kept
from tiny_checkpoints import same

from keras_vit.hub import Repository
from keras_vit.hub_errors import NotCached

WEIGHTS = "model.safetensors"
TIMM = "me/timm"
LARGE = 12 << 20


@pytest.fixture(scope="module")
def processes():
    """(Hub, a way to start `take` in a process of its own), found by the real HF_ENDPOINT.

    One process imports the package once, and is forked for each start.
    """
    files = {TIMM: tiny.timm_files(), "me/large": {"a.bin": random.Random(0).randbytes(LARGE)}}
    with HubServer(files) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        context = fresh_server("keras_vit.hub")

        def start(*args):
            process = context.Process(target=take, args=args)
            process.start()
            return process

        yield server, start


@pytest.fixture
def server(processes):
    server = processes[0]
    server.requests.clear()
    server.failures.clear()
    return server


def take(name, file, cache, report, limit=None):
    """In a process: download a file, and report its hash, or the error, as JSON."""
    if limit:
        limit(cache)
    try:
        path = Repository(name, cache_dir=cache).file(file)
        said = {"hash": hashlib.sha256(path.read_bytes()).hexdigest()}
    except Exception as error:
        said = {"error": type(error).__name__, "said": str(error)}
    blobs = pathlib.Path(cache).rglob("*/blobs/*")
    said["left"] = [p.name for p in blobs if p.suffix != ".incomplete"]
    pathlib.Path(report).write_text(json.dumps(said))


def finished(process, report):
    process.join(60)
    assert process.exitcode == 0
    return json.loads(report.read_text())


def test_two_processes_ask_for_the_same_file_and_one_downloads(processes, server, tmp_path):
    start = processes[1]
    reports = [tmp_path / "1", tmp_path / "2"]
    slow = server.fail(drop=1000, stall=True, methods=["GET"], times=1)
    first = start("me/large", "a.bin", tmp_path / "cache", reports[0])
    assert slow.reached.wait(60)
    second = start("me/large", "a.bin", tmp_path / "cache", reports[1])
    deadline = time.monotonic() + 60
    while len(server.asked("HEAD")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    slow.release()
    digest = hashlib.sha256(server.repositories["me/large"]["a.bin"]).hexdigest()
    for process, report in zip((first, second), reports, strict=True):
        assert finished(process, report) == {"hash": digest, "left": [digest]}
    assert server.asked("GET") == ["GET a.bin"]


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_process_leaves_nothing_that_loads(processes, server, tmp_path, seed):
    start = processes[1]
    wanted = server.repositories[TIMM][WEIGHTS]
    cut = random.Random(seed).randrange(len(wanted))
    stuck = server.fail(drop=cut, stall=True, methods=["GET"], file=WEIGHTS, times=1)
    process = start(TIMM, WEIGHTS, tmp_path / "cache", tmp_path / "report")
    assert stuck.reached.wait(60)
    process.kill()
    process.join(60)
    stuck.release()
    assert not kept(tmp_path / "cache")
    with client_of(server, tmp_path / "cache"):
        with pytest.raises(NotCached):
            Repository(TIMM, local_files_only=True).tensors()
        assert same(Repository(TIMM).tensors(), wanted)


def small_disk(folder):
    """Mount a file system of 1 MiB there, for this process alone."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    new_user, new_mount = 0x10000000, 0x00020000
    if libc.unshare(new_user | new_mount):
        raise SystemExit(77)
    pathlib.Path("/proc/self/setgroups").write_text("deny")
    pathlib.Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    pathlib.Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    os.makedirs(folder)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=1m"):
        raise SystemExit(77)


def small_files(folder):
    """Let this process write files of 1 MiB at most."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


@pytest.mark.parametrize(
    "limit, reason",
    [(small_disk, "No space left on device"), (small_files, "File too large")],
)
def test_a_full_disk(processes, server, tmp_path, limit, reason):
    start = processes[1]
    folder, report = tmp_path / "cache", tmp_path / "report"
    process = start("me/large", "a.bin", folder, report, limit)
    process.join(60)
    if process.exitcode == 77:
        pytest.skip("a small file system cannot be mounted: no user namespaces here")
    said = json.loads(report.read_text())
    assert said["error"] == "HubError" and said["left"] == []
    assert (
        f"could not be saved: the disk is full, or a quota or limit is reached ({reason}). Free "
        "some space, or pass a cache_dir= on another disk." in said["said"]
    )
    digest = hashlib.sha256(server.repositories["me/large"]["a.bin"]).hexdigest()
    retry = start("me/large", "a.bin", folder, report)  # with room, the same folder serves
    assert finished(retry, report) == {"hash": digest, "left": [digest]}

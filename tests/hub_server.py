"""A small Hub on 127.0.0.1 that speaks huggingface_hub's protocol and fails when it is told to.

Routes: HEAD and GET of `/{repo}/resolve/{revision}/{file}`, the only ones that the package uses.
Small files are answered with their content, `.safetensors` as the Hub's large files are, by a
redirect to another host (`localhost`).
"""

import contextlib
import hashlib
import http.server
import os
import socket
import struct
import threading
import urllib.parse

import pytest

LARGE = (".safetensors", ".bin", ".h5")


class Failure:
    """What to do instead of answering: as many times as `times` says, to requests that match.

    Args:
        status, headers: an HTTP error, with these headers more.
        drop: send this many bytes of the answer's body, then end the connection.
        reset: end it by a TCP reset instead of an orderly close.
        stall: then wait, until `release()`, before going on.
        flip: change the last byte of the content.
        silent: accept the request, and answer nothing until `release()`.
        length: claim this Content-Length, send as many bytes of the file as there are, and close.
        methods, file: which requests; None: any file.
    """

    def __init__(self, status=None, headers=None, drop=None, reset=False, stall=False,
                 silent=False, flip=False, length=None, methods=("HEAD", "GET"), file=None,
                 times=10**9):  # fmt: skip
        self.status, self.headers, self.length = status, headers or {}, length
        self.drop, self.reset, self.stall, self.silent = drop, reset, stall, silent
        self.flip = flip
        self.methods, self.file, self.times = methods, file, times
        self.reached = threading.Event()
        self.released = threading.Event()

    def release(self):
        self.released.set()


class HubServer(http.server.ThreadingHTTPServer):
    """Repositories under a local address; a context manager.

    Attributes:
        repositories: `{"org/name": {"file": bytes}}`.
        gated, private: names of repositories that need `token`.
        token, stranger: two valid tokens; the stranger's opens no gated and no private repository.
        requests: (method, repository, revision, file, headers) of all requests so far.
        failures: a list of `Failure`.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, repositories=None, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.repositories = dict(repositories or {})
        self.tags = {}
        self.gated, self.private = set(), set()
        self.token, self.stranger = "hf_let_me_in", "hf_stranger"
        self.requests, self.failures, self.connections = [], [], set()
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        for failure in self.failures:
            failure.release()
        for connection in list(self.connections):  # a client may hold one open
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def commit(self, name):
        """The commit of a repository's `main`: it follows from the contents."""
        digest = hashlib.sha1(name.encode())
        for file, content in sorted(self.repositories[name].items()):
            digest.update(file.encode() + b"\0" + content)
        return digest.hexdigest()

    def tag(self, name, tag):
        """Keep today's contents under a tag; returns their commit, which is kept, too."""
        commit = self.commit(name)
        kept = dict(self.repositories[name])
        self.tags[name, tag] = self.tags[name, commit] = (commit, kept)
        return commit

    def at(self, name, revision):
        """(commit, files) of a revision, or None."""
        if revision in ("main", self.commit(name)):
            return self.commit(name), self.repositories[name]
        return self.tags.get((name, revision))

    def fail(self, **options):
        """Add a `Failure`, and return it."""
        self.failures.append(Failure(**options))
        return self.failures[-1]

    def failure(self, method, file):
        with self.lock:
            for failure in self.failures:
                if failure.times and method in failure.methods and failure.file in (None, file):
                    failure.times -= 1
                    return failure
        return None

    def asked(self, method=None):
        """`METHOD file` of all requests so far, in order."""
        return [f"{m} {f}" for m, _, _, f, _ in self.requests if method in (None, m)]

    def handle_error(self, request, client_address):
        pass  # a client that was killed


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub = self.server
        path = urllib.parse.unquote(self.path).removeprefix("/cdn")
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        direct = self.path.startswith("/cdn")
        if not rest:  # huggingface_hub asks for news of its own
            return self.refuse(404)
        with hub.lock:
            hub.requests.append(
                (
                    self.command,
                    name,
                    revision,
                    file,
                    {k.lower(): v for k, v in self.headers.items()},
                )
            )
        failure = hub.failure(self.command, file)
        if failure and failure.silent:
            self.close_connection = True
            failure.reached.set()
            failure.released.wait(60)
            return None
        if failure and failure.status:
            return self.refuse(failure.status, **failure.headers)
        if not direct and self.refused(name, revision, file):
            return None
        commit, files = hub.at(name, revision)
        content = files[file]
        etag = hashlib.sha256(content).hexdigest()
        common = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{etag}"'}
        if file.endswith(LARGE) and not direct:
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{etag}"'}
            place = f"http://localhost:{hub.server_port}/cdn/{name}/resolve/{commit}/{file}"
            return self.reply(302, {**common, **linked, "Location": place}, b"Found")
        return self.send(content, common, failure)

    def refused(self, name, revision, file):
        """Whether an error has been sent, as the Hub words it."""
        hub = self.server
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", hub.token, hub.stranger):
            message = "Invalid credentials in Authorization header"
            self.refuse(401, **{"X-Error-Message": message})
        elif name not in hub.repositories or (name in hub.private and token != hub.token):
            # The Hub does not tell strangers which repositories there are.
            if token:
                self.refuse(404, **{"X-Error-Code": "RepoNotFound"})
            else:
                self.refuse(401, **{"X-Error-Message": "Invalid username or password."})
        elif name in hub.gated and token != hub.token:
            message = f"Access to model {name} is restricted."
            status = 403 if token else 401
            self.refuse(status, **{"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif hub.at(name, revision) is None:
            self.refuse(404, **{"X-Error-Code": "RevisionNotFound"})
        elif file not in hub.at(name, revision)[1]:
            commit = hub.at(name, revision)[0]
            self.refuse(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            return False
        return True

    def refuse(self, status, **headers):
        self.reply(status, headers, b"")

    def reply(self, status, headers, body):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send(self, content, headers, failure):
        status, start = 200, 0
        asked = self.headers.get("Range")
        if asked:
            status, start = 206, int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if failure is not None and failure.flip:
            content = content[:-1] + bytes([content[-1] ^ 1])
        body = content[start:]
        if failure is None or self.command == "HEAD":
            return self.reply(status, headers, body)
        self.send_response(status)
        length = len(body) if failure.length is None else failure.length
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()
        count = len(body) if failure.drop is None else failure.drop
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:count])
            self.wfile.flush()
            failure.reached.set()
            if failure.stall:
                failure.released.wait(60)
                self.wfile.write(body[count:])
        if failure.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            os.close(self.connection.detach())  # an orderly shutdown would come first otherwise
        self.close_connection = True
        return None


@contextlib.contextmanager
def client_of(server, cache):
    """Let huggingface_hub ask that server, as with HF_ENDPOINT, and keep files in that folder.

    The environment variables are read on import, into these constants. No stored token is used.
    """
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
        patch.delenv("HF_TOKEN", raising=False)
        patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield server


def kept(cache):
    """The files of a cache that a later load may take."""
    return sorted(p.name for p in cache.rglob("snapshots/*/*"))

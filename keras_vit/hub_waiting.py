"""How long the Hub may keep us waiting; and what is shown meanwhile.

huggingface_hub retries by itself, but waits minutes for a server that accepts and never answers,
and for as long as `Retry-After` says. Hooks of its HTTP client set limits, within `limited` only.
"""

import contextlib
import contextvars
import logging
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import parse_ratelimit_headers

SILENCE = 45.0  # seconds without an answer, or without more of a file
PATIENCE = 30.0  # seconds in all that a Hub may ask to wait
NOTICE = 5.0  # seconds until a line says that an answer is awaited
BUSY = (408, 429, 500, 502, 503, 504)  # the states after which huggingface_hub tries again
log = logging.getLogger("keras_vit")


class SilentError(Exception):
    """The Hub did not answer."""


class WaitError(Exception):
    """The Hub asks to wait for longer than the limit.

    Attributes:
        status: of the HTTP answer.
        seconds: how long to wait.
    """

    def __init__(self, status: int, seconds: int):
        super().__init__(status, seconds)
        self.status, self.seconds = status, seconds


class Limits:
    """The limits of one download, over all its attempts."""

    def __init__(self) -> None:
        self.progress = time.monotonic()  # when there was an answer, or more of the file
        self.position = -1  # in the file
        self.patience = PATIENCE
        self.refusal: WaitError | None = None
        self.notice: threading.Timer | None = None

    def before(self, request: Any) -> None:
        """Raises where a limit is reached; otherwise the request may take what is left of it."""
        if self.refusal:
            raise self.refusal
        if request.method == "GET":
            start = re.match(r"bytes=(\d+)", request.headers.get("Range", "bytes=0-"))
            position = int(start[1]) if start else 0
            if position > self.position:
                self.position, self.progress = position, time.monotonic()
        left = self.progress + SILENCE - time.monotonic()
        if left <= 0:
            raise SilentError
        limits = request.extensions.get("timeout", {})
        limits = {
            name: left if limit is None else min(limit, left) for name, limit in limits.items()
        }
        request.extensions = {**request.extensions, "timeout": limits}
        self._announce(f"Waiting for an answer of {request.url.host} ...")

    def after(self, response: Any) -> None:
        """Note what an answer says; huggingface_hub then waits as long as its headers say."""
        self.stop()
        if response.status_code in BUSY:
            seconds = _seconds(response)
            if seconds > self.patience:
                self.refusal = WaitError(response.status_code, seconds)
                for header in ("Retry-After", "RateLimit"):
                    response.headers.pop(header, None)
            elif seconds:
                self.patience -= seconds
                log.warning(
                    "%s asks to wait %d s (HTTP %d) ...",
                    response.request.url.host,
                    seconds,
                    response.status_code,
                )
        elif response.request.method != "GET":
            self.progress = time.monotonic()

    def _announce(self, text):
        self.stop()
        self.notice = threading.Timer(NOTICE, log.warning, [text])
        self.notice.daemon = True
        self.notice.start()

    def stop(self) -> None:
        """An answer is there, or no longer awaited."""
        if self.notice:
            self.notice.cancel()
            self.notice = None


def _seconds(response):
    """How long an answer asks to wait."""
    rate = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and rate is not None and rate.remaining == 0:
        return rate.reset_in_seconds
    after = response.headers.get("Retry-After", "").strip()
    return int(after) if after.isdecimal() else 0


_active: contextvars.ContextVar[Limits | None] = contextvars.ContextVar("limits", default=None)


def _before(request):
    limits = _active.get()
    if limits:
        limits.before(request)


def _after(response):
    limits = _active.get()
    if limits:
        limits.after(response)


@contextlib.contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Requests of huggingface_hub in this thread are under those limits."""
    hooks = huggingface_hub.get_session().event_hooks
    for kind, hook in {"request": _before, "response": _after}.items():
        if hook not in hooks[kind]:
            hooks[kind].append(hook)
    token = _active.set(limits)
    try:
        yield
    finally:
        _active.reset(token)
        limits.stop()


def explain(error: Exception, what: str) -> str:
    """What to say of a limit that was reached."""
    if isinstance(error, WaitError):
        return (
            f"The Hub asks to wait {error.seconds} s before it gives {what} (HTTP {error.status}), "
            "longer than this waits by itself. Try again then; logging in with `hf auth login` or "
            "token= raises the limit."
        )
    return (
        f"{constants.ENDPOINT} does not answer: {SILENCE:.0f} s without a reply, and {what} is not "
        "in the cache. Check the network, the proxy and HF_ENDPOINT, or pass a directory with the "
        "repository's files."
    )

"""Errors of huggingface_hub as errors that say what to do."""

import errno

from huggingface_hub import constants, errors

from keras_vit import hub_waiting
from keras_vit.text import printable

LOGIN = "log in with `hf auth login` or pass token="


class HubError(OSError):
    """A file of the Hub is not available; the message says what to do."""


class MissingFile(HubError):
    """The repository or directory has no such file."""


class NotCached(HubError):
    """The file is not in the cache, and the Hub cannot be reached."""


class DamagedError(OSError):
    """A file arrived with other bytes than the Hub has."""


def transient(error: BaseException) -> bool:
    """Whether a second attempt may succeed."""
    match error:
        case errors.HfHubHTTPError():
            return error.response is not None and error.response.status_code >= 500
        case errors.HTTPError():  # httpx's: the connection broke
            return True
        case DamagedError():
            return True
        case _:  # fewer bytes than the Hub promised
            return type(error) is OSError and error.errno is None


def explain(
    error: BaseException,
    filename: str,
    name: str,
    revision: str | None = None,
    local_files_only: bool = False,
) -> HubError:
    """An error of huggingface_hub as a `HubError`.

    Args:
        error: what `hf_hub_download` raised.
        filename, name, revision: the requested file; `name` is `org/name`.
        local_files_only: whether only the cache was searched.
    """
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # why the Hub could not be asked
    where = name + (f" at revision {revision}" if revision else "")
    what = f"{filename} of {where}"
    page = f"{constants.ENDPOINT}/{name}"
    match error:
        case errors.HFValidationError():
            said = (
                f"{name!r} is neither a directory nor a repository name, org/name: "
                f"{printable(error)}"
            )
        case errors.GatedRepoError():
            said = f"{where} is gated. Accept its terms on {page}, then {LOGIN}."
        case errors.RevisionNotFoundError():
            said = f"{name} has no revision {revision!r}. Its branches and tags: {page}/tree/main"
        case errors.RepositoryNotFoundError():
            said = (
                f"There is no repository {name} on the Hub, or it is private. "
                f"Check the name; for a private one {LOGIN}."
            )
        case errors.RemoteEntryNotFoundError():
            return missing(filename, name, revision)
        case errors.HfHubHTTPError():
            said = _refusal(error, what)
        case errors.FileMetadataError():
            said = (
                f"{constants.ENDPOINT} does not answer as the Hub does. "
                f"Check HF_ENDPOINT, the proxy and the firewall: {printable(error)}"
            )
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() | errors.HTTPError():
            return _offline(error, what, page, local_files_only)
        case hub_waiting.SilentError():
            return NotCached(hub_waiting.explain(error, what))
        case hub_waiting.WaitError():
            said = hub_waiting.explain(error, what)
        case DamagedError():
            said = (
                f"{what} arrived damaged, several times: its sha256 is not the Hub's. Try again "
                "later, or from another network; a proxy may change files."
            )
        case OSError():
            said = _disk(error, what)
            return HubError(error.errno, said) if error.errno else HubError(said)
        case _:
            said = f"{what} could not be downloaded: {printable(error)}"
    return HubError(said)


def missing(filename: str, name: str, revision: str | None = None) -> MissingFile:
    """The error for a file that the repository does not have."""
    where = name + (f" at revision {revision}" if revision else "")
    return MissingFile(
        f"{where} has no file {filename}. "
        f"Its files: {constants.ENDPOINT}/{name}/tree/{revision or 'main'}"
    )


def _offline(error, what, page, local_files_only):
    if local_files_only or constants.HF_HUB_OFFLINE:
        why = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE is set"
        return NotCached(
            f"{what} is not in the cache, and {why}. Load it once without that, or pass a "
            "directory with the repository's files."
        )
    return NotCached(
        f"The Hub cannot be reached ({printable(error) or type(error).__name__}), and {what} is "
        f"not in the cache. Check the network, or HF_ENDPOINT ({constants.ENDPOINT}), or pass a "
        f"directory with the files of {page}."
    )


def _refusal(error, what):
    status = error.response.status_code if error.response is not None else None
    said = getattr(error, "server_message", None)
    said = f": {printable(said)}" if said else ""
    if status == 401:
        return (
            f"The Hub denies access to {what} (HTTP 401{said}). The repository does not exist, is "
            f"private, or the token is not valid: check the name, and {LOGIN}."
        )
    if status == 403:
        return (
            f"The Hub refuses {what} (HTTP 403{said}). Ask its owner for access, then {LOGIN} "
            "of an account that has it."
        )
    if status == 429:
        return (
            f"The Hub answered HTTP 429, too many requests, for {what}, several times. "
            f"Wait a few minutes, or {LOGIN}, which raises the limit."
        )
    return (
        f"The Hub answered HTTP {status} for {what}{said}. "
        "Try again later; see https://status.huggingface.co"
    )


def _disk(error, what):
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return (
                f"{what} could not be saved: the disk is full, or a quota or limit is reached "
                f"({error.strerror}). Free some space, or pass a cache_dir= on another disk."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOTDIR | errno.EEXIST:
            return (
                f"{what} could not be saved: {printable(error)}. "
                "Pass a writable cache_dir=, or set HF_HOME."
            )
        case _:
            return f"{what} could not be downloaded: {printable(error)}"

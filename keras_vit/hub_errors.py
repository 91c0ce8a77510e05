"""What went wrong with the Hub, in words that say what to do."""

import errno

from huggingface_hub import constants, errors

LOGIN = "log in with `hf auth login` or pass token="


class HubError(OSError):
    """The Hub could not be asked, or refused; the message says what to do."""


class MissingFile(HubError):
    """The repository or directory has no such file."""


class NotCached(HubError):
    """The file is not in the cache, and the Hub is out of reach."""


def transient(error):
    """Whether a failure of huggingface_hub may be gone in a moment."""
    match error:
        case errors.HfHubHTTPError():
            return error.response is not None and error.response.status_code >= 500
        case errors.HTTPError():  # httpx's: the connection broke
            return True
        case _:  # fewer bytes than the Hub promised
            return type(error) is OSError and error.errno is None


def explain(error, filename, name, revision=None, local_files_only=False):
    """An error of huggingface_hub as a `HubError`.

    Args:
        error: what `hf_hub_download` raised.
        filename, name, revision: what it was asked for; `name` is `org/name`.
        local_files_only: whether the cache alone was asked.
    """
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # why the Hub could not be asked
    where = name + (f" at revision {revision}" if revision else "")
    what = f"{filename} of {where}"
    page = f"{constants.ENDPOINT}/{name}"
    match error:
        case errors.HFValidationError():
            said = (
                f"{name!r} is neither a directory nor the name of a repository, org/name: {error}"
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
                f"Check HF_ENDPOINT, the proxy and the firewall: {error}"
            )
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() | errors.HTTPError():
            return _offline(error, what, page, local_files_only)
        case OSError():
            said = _disk(error, what)
            return HubError(error.errno, said) if error.errno else HubError(said)
        case _:
            said = f"{what} could not be downloaded: {error}"
    return HubError(said)


def missing(filename, name, revision=None):
    """There is no such file in the repository."""
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
            "directory that holds the repository's files."
        )
    return NotCached(
        f"The Hub cannot be reached ({error or type(error).__name__}), and {what} is not in "
        f"the cache. Check the network, or HF_ENDPOINT ({constants.ENDPOINT}), or pass a directory "
        f"that holds the files of {page}."
    )


def _refusal(error, what):
    status = error.response.status_code if error.response is not None else None
    said = getattr(error, "server_message", None)
    said = f": {said}" if said else ""
    if status == 401:
        return (
            f"The Hub does not let us in to {what} (HTTP 401{said}). There is no such repository, "
            f"or it is private, or the token is not valid: check the name, and {LOGIN}."
        )
    if status == 403:
        return (
            f"The Hub refuses {what} (HTTP 403{said}). Ask its owner for access, then {LOGIN} "
            "of an account that has it."
        )
    if status == 429:
        return (
            f"The Hub answered HTTP 429, too many requests, for {what}, several times. "
            f"Wait some minutes; or {LOGIN}, which raises the limit."
        )
    return (
        f"The Hub answered HTTP {status} for {what}{said}. "
        "Try again later; see https://status.huggingface.co"
    )


def _disk(error, what):
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return (
                f"{what} could not be kept: the disk is full, or a limit of it is reached "
                f"({error.strerror}). Free some space, or pass a cache_dir= on another disk."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.ENOTDIR | errno.EEXIST:
            return (
                f"{what} could not be kept: {error}. "
                "Pass a cache_dir= that can be written, or set HF_HOME."
            )
        case _:
            return f"{what} could not be downloaded: {error}"

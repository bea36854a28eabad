"""What goes wrong with a remote, as one of coral's errors, without a word that could be a credential."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from coral.errors import ConfigError, CoralError, RemoteDenied, RemoteError, RemoteNotFound, RemoteUnreachable

__all__ = ["denied", "kinds", "no_bucket", "no_condition", "remote_errors", "without_secrets"]

_R = TypeVar("_R", bound=RemoteError)

_SECRETS = re.compile(
    r"(?ix)"
    r"(?<=://)[^/@\s]+(?=@)"  # user:password in a URL
    r"|(?<=[?&])[^\s'\"<>]+"  # what stands behind a URL's "?"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{12,}|\bhf_[A-Za-z0-9]{8,}|\bya29\.[\w.-]+|\beyJ[\w.-]{16,}"
    r"|(?<=bearer\s)\S+|(?<=basic\s)\S+"
    r"|(?<=secret=)\S+|(?<=token=)\S+|(?<=password=)\S+|(?<=sig=)\S+|(?<=key=)\S+|(?<=credential=)\S+"
    r"|[A-Za-z0-9/+]{40,}={0,2}"  # an AWS secret has 40 of these, an Azure key more
)
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_NO_BUCKET_ADVICE = "There is no such bucket: create it, or correct the remote's URL."
_DENIED_ADVICE = (
    "Its credentials are missing, wrong or expired, or do not allow this: renew them in the environment, or in the "
    "files of the store's own tools."
)
_DENIED = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "UnauthorizedSSOTokenError", "SSOTokenLoadError", "ClientAuthenticationError", "DefaultCredentialsError",
    "RefreshError", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "401", "403",
}  # fmt: skip
_AGAIN = {
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError",
    "HTTPClientError", "ClientConnectionError", "ClientPayloadError", "ServerTimeoutError",
    "ResponseStreamingError", "IncompleteReadError", "FSTimeoutError", "ServiceRequestError",
    "ServiceResponseError", "ProxyConnectionError", "ResponseParserError", "InternalError", "ServiceUnavailable",
    "SlowDown", "RequestTimeout", "ConditionalRequestConflict", "BadDigest", "IncompleteBody", "TooManyRequests",
    "408", "409", "429", "500", "502", "503", "504",
}  # fmt: skip
_ERRNO_AGAIN = {errno.EBUSY, errno.ETIMEDOUT, getattr(errno, "EREMOTEIO", errno.EIO), errno.EPIPE}


def without_secrets(text: str) -> str:
    """A text of somebody else's, shortened, escaped, and with what looks like a credential crossed out."""
    crossed = _SECRETS.sub("***", text)
    return "".join(c if c.isprintable() else " " for c in crossed)[:300]


def kinds(error: BaseException) -> set[str]:
    """The names that an error, and what it came from, go by: classes, and codes that the server gave."""
    found: set[str] = set()
    seen = 0
    at: BaseException | None = error
    while at is not None and seen < 8:
        found |= {kind.__name__ for kind in type(at).__mro__}
        response = getattr(at, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code", "")))
            found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
        found |= {str(getattr(at, name, "")) for name in ("code", "status", "status_code", "error_code")}
        at, seen = at.__cause__ or at.__context__, seen + 1
    return found


@contextmanager
def remote_errors(url: str, doing: str) -> Iterator[None]:
    """Turn whatever a library raises into the RemoteError that says what was done, and what to do about it.

    FileNotFoundError and FileExistsError, of a file, go through.
    """
    try:
        yield
    except CoralError:
        raise
    except Exception as error:
        named = kinds(error)
        if isinstance(error, FileNotFoundError | FileExistsError) and not named & (_NO_BUCKET | _DENIED):
            raise
        raise _of(*_told_apart(error, named), url, doing, error) from None  # a traceback shows what a text must not


def no_condition(url: str) -> ConfigError:
    """The error for a store on which two writers could overwrite each other."""
    return ConfigError(
        f"{url} is on a store without a conditional put: two writers could overwrite each other there. If there is "
        "only ever one, say so: add_remote(name, url, single_writer=True)."
    )


def no_bucket(url: str, error: Exception) -> RemoteNotFound:
    """The error for a bucket that is not there."""
    return _of(RemoteNotFound, _NO_BUCKET_ADVICE, url, "writing to", error)


def denied(url: str, error: Exception) -> RemoteDenied:
    """The error for credentials that are not there."""
    return _of(RemoteDenied, _DENIED_ADVICE, url, "opening", error)


def _of(kind: type[_R], advice: str, url: str, doing: str, error: Exception) -> _R:
    text = without_secrets(f"{type(error).__name__}: {error}")
    return kind(f"{doing} {url} failed ({text}). {advice}", remote=url)


def _told_apart(error: Exception, named: set[str]) -> tuple[type[RemoteError], str]:
    if named & _NO_BUCKET:
        return RemoteNotFound, _NO_BUCKET_ADVICE
    forbidden = str(error).startswith("Forbidden:")  # gcsfs, of a 403
    if isinstance(error, PermissionError) or named & _DENIED or forbidden:
        return RemoteDenied, _DENIED_ADVICE
    again = isinstance(error, ConnectionError | TimeoutError) or named & _AGAIN
    if again or (isinstance(error, OSError) and error.errno in _ERRNO_AGAIN):
        return RemoteUnreachable, "Look at the network and try again: what was transferred is not sent anew."
    return RemoteError, "Nothing was half-written; try again once that is seen to."

"""What goes wrong with the Hub, as one of coral's errors, without a word of the token.

The cause is left out, too: a traceback would show its text, which may have the token, or a signed URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import cast

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from coral.errors import CoralError, RemoteDenied, RemoteError, RemoteNotFound, RemoteUnreachable, UnsafeInput
from coral.remotes._errors import without_secrets

__all__ = ["NETWORK", "hub_errors"]

NETWORK: tuple[type[Exception], ...] = (
    cast("type[Exception]", HfHubHTTPError.__bases__[0]),
    ConnectionError,
    TimeoutError,
)
"""What a request may raise. The first is the base of the HTTP library's errors: httpx2's, or httpx's, as the version of
huggingface_hub has it."""


_CAUGHT: tuple[type[Exception], ...] = (EntryNotFoundError, *NETWORK)


@contextmanager
def hub_errors(doing: str, repo_id: str) -> Iterator[None]:
    """Turn what the Hub, or the way to it, raises while coral is `doing` something with a repository into one error.

    RemoteDenied, RemoteNotFound, RemoteUnreachable, or RemoteError for the rest; UnsafeInput for an id that cannot be.
    """
    try:
        yield
    except CoralError:
        raise
    except HFValidationError as error:
        raise UnsafeInput(f"{doing}: {without_secrets(str(error))}") from None
    except _CAUGHT as error:
        kind, advice = _explained(error, repo_id)
        raise kind(f"{doing}: {advice}", remote=f"hf://{repo_id}") from None
    except JSONDecodeError as error:
        raise RemoteUnreachable(
            f"{doing}: the Hub's answer cannot be read ({_first_line(error)}). Try again.", remote=f"hf://{repo_id}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:  # of huggingface_hub, about an answer or what it was given
        raise RemoteError(f"{doing}: {_first_line(error)}", remote=f"hf://{repo_id}") from None
    except RuntimeError as error:
        if not isinstance(error.__cause__, NETWORK):
            raise
        kind, advice = _explained(error.__cause__, repo_id)  # huggingface_hub wraps what befalls an upload in these
        raise kind(f"{doing}: {advice}", remote=f"hf://{repo_id}") from None


def _explained(error: Exception, repo_id: str) -> tuple[type[RemoteError], str]:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    match error:
        case GatedRepoError():  # before RepositoryNotFoundError, which it is, too
            return RemoteDenied, (
                f"{repo_id} is gated. Ask for access on its page on the Hub, then pass the token of the account that "
                "has it, or log in with `hf auth login`."
            )
        case RepositoryNotFoundError():
            return RemoteNotFound, (
                f"there is no repository {repo_id} on the Hub, or this account may not see it. Check the name, or make "
                f"it (`hf repos create {repo_id}`); for a private one pass a token, or log in with `hf auth login`."
            )
        case RevisionNotFoundError():
            return (
                RemoteNotFound,
                f"{repo_id} has no such revision. Use a branch, a tag or a commit of that repository.",
            )
        case OfflineModeIsEnabled():
            return RemoteUnreachable, "huggingface_hub is offline (HF_HUB_OFFLINE is set), and it is not in the cache."
        case EntryNotFoundError():
            return RemoteNotFound, f"{repo_id} has no such file: {_first_line(error)}"
        case _ if status == 429:
            return RemoteUnreachable, f"the Hub limits the rate of requests{_wait(error)}. Try again later, or log in."
        case _ if status in (401, 403):
            return RemoteDenied, (
                f"the Hub refused ({status}): the token is wrong, has expired, or does not allow it for {repo_id}."
            )
        case _ if status >= 500:
            return RemoteUnreachable, f"the Hub answered with status {status}. Try again later."
        case _ if status:
            return RemoteError, f"the Hub refused ({status}): {_first_line(error)}"
        case _:
            return RemoteUnreachable, f"the Hub cannot be reached: {_first_line(error)}. Check the network."


def _wait(error: Exception) -> str:
    response = getattr(error, "response", None)
    seconds = response.headers.get("Retry-After", "") if response is not None else ""
    return f" (for {seconds} more seconds)" if seconds.isdecimal() else ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(lines[0] if lines else type(error).__name__)

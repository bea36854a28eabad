"""Every error coral raises, as one tree.

```
CoralError
├── ConfigError            (ValueError)       an option, or a pair of options, that cannot be
├── MissingExtra           (ImportError)      an optional package that this needs is not installed
├── PolicyError            (ValueError)       training events that contradict each other
├── SaveFailedError        (RuntimeError)     a save in the background failed; the cause is attached
├── UnsafeInput            (ValueError)       a name or a value that must not enter a repository
│   └── LimitExceeded                         ... because it is too large
├── UnsupportedValue       (TypeError)        a tensor or state value that cannot be stored exactly
├── EmptyCommit            (ValueError)       a commit without a single tensor
├── WeightsMismatch        (ValueError)       weights that do not fit the model, all of them named
├── Conflict               (RuntimeError)     another writer moved the ref first
│   └── Diverged                              the other side has commits that are not here
├── UnknownRemote          (KeyError)         no remote of that name
├── RemoteError            (OSError)          the other side failed
│   ├── RemoteDenied       (PermissionError)  it refused the credentials, or what was asked with them
│   ├── RemoteNotFound                        there is no such bucket, or folder
│   └── RemoteUnreachable  (ConnectionError)  it did not answer, or not as it should
├── RefError               (LookupError)
│   ├── UnknownRef         (KeyError)         no such commit, branch or tag
│   ├── AmbiguousRef                          more than one commit answers to it
│   ├── RefExists                             a branch or tag of that name is there already
│   ├── CommitInUse                           a ref or an open run holds it: it cannot be pruned
│   └── CommitPruned                          its record is kept, its tensors are gone
├── RepositoryError
│   ├── NotARepository     (FileNotFoundError)
│   └── NewerFormat                           written by a newer coral
├── CorruptObject          (ValueError)       bytes that are not what was stored
│   └── MissingObject      (KeyError)         ... or not there at all
└── StorageError           (OSError)          the filesystem said no
    ├── DiskFull
    └── ReadOnly           (PermissionError)
```

Each also subclasses the built-in that a caller would catch, and carries its data as attributes.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = [
    "AmbiguousRef",
    "CommitInUse",
    "CommitPruned",
    "ConfigError",
    "Conflict",
    "CoralError",
    "CorruptObject",
    "DiskFull",
    "Diverged",
    "EmptyCommit",
    "LimitExceeded",
    "MissingExtra",
    "MissingObject",
    "NewerFormat",
    "NotARepository",
    "PolicyError",
    "ReadOnly",
    "RefError",
    "RefExists",
    "RemoteDenied",
    "RemoteError",
    "RemoteNotFound",
    "RemoteUnreachable",
    "RepositoryError",
    "SaveFailedError",
    "StorageError",
    "UnknownRef",
    "UnknownRemote",
    "UnsafeInput",
    "UnsupportedValue",
    "WeightsMismatch",
]


def printable(text: str, *, lines: bool = True) -> str:
    """`text` with what a terminal would act upon escaped: control characters, those that turn the direction of writing,
    lone surrogates. Line ends stay, if `lines`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c == "\n") else ascii(c)[1:-1] for c in text)


class CoralError(Exception):
    """Whatever coral raises on purpose. What it says holds nothing that a terminal would act upon."""

    def __str__(self) -> str:  # KeyError and OSError would print something else
        return printable(str(self.args[0])) if self.args else type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:  # an error crosses to another process with its data
        state = {name: getattr(self, name) for name in ("errno", "filename") if hasattr(self, name)}
        return _rebuild, (type(self), self.args, {**self.__dict__, **state})


def _rebuild(kind: type[CoralError], args: tuple[Any, ...], state: Mapping[str, Any]) -> CoralError:
    error = kind.__new__(kind)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class ConfigError(CoralError, ValueError):
    """An option, or a pair of options, that cannot be."""


class MissingExtra(CoralError, ImportError):
    """An optional package that is needed is not installed; the message says how to install it."""


class PolicyError(CoralError, ValueError):
    """Training events that contradict each other."""


class SaveFailedError(CoralError, RuntimeError):
    """A save in the background failed; `__cause__` is what went wrong, `step` what it was to save."""

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class UnsafeInput(CoralError, ValueError):
    """A name or a value that must not enter a repository."""


class LimitExceeded(UnsafeInput):
    """An input beyond a documented limit."""


class UnsupportedValue(CoralError, TypeError):
    """A tensor or a state value that cannot be stored exactly; `path` says where it stands."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class EmptyCommit(CoralError, ValueError):
    """A commit without a single tensor."""


class WeightsMismatch(CoralError, ValueError):
    """Weights that do not fit a model, or `training` state that does not fit the optimizer or a scheduler.

    `missing` and `unexpected` are names; `mismatched` maps a name to (expected, got) as text.
    """

    def __init__(
        self,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Mapping[str, tuple[str, str]] | None = None,
        training: bool = False,
    ) -> None:
        self.missing = list(missing)
        self.unexpected = list(unexpected)
        self.mismatched = dict(mismatched or {})
        who, what = ("this run", "the training state") if training else ("the model", "the weights")
        lines = [f"{what} {'does' if training else 'do'} not fit {who}:"]
        lines += [f"  missing: {printable(name, lines=False)}" for name in self.missing]
        lines += [f"  unexpected: {printable(name, lines=False)}" for name in self.unexpected]
        lines += [
            f"  {printable(name, lines=False)}: {who} has {want}, {what} {got}"
            for name, (want, got) in self.mismatched.items()
        ]
        lines.append(
            "Resume with the optimizer and schedulers that it is of, or load the weights alone and begin anew."
            if training
            else "Pass strict=False to load what fits and have the rest returned."
        )
        super().__init__("\n".join(lines))


class Conflict(CoralError, RuntimeError):
    """Another writer moved the ref first; read it again and retry."""


class Diverged(Conflict):
    """The branch has commits, on the other side or here, that the other one has not: pull, or merge, first.

    `ref` is the branch, `ours` and `theirs` are the commits that it is at.
    """

    def __init__(self, message: str, *, ref: str = "", ours: str = "", theirs: str = "") -> None:
        super().__init__(message)
        self.ref = ref
        self.ours = ours
        self.theirs = theirs


class UnknownRemote(CoralError, KeyError):
    """No remote of that name; `remote` is what was asked for."""

    def __init__(self, message: str, *, remote: str = "") -> None:
        super().__init__(message)
        self.remote = remote


class RemoteError(CoralError, OSError):
    """The other side failed; `remote` is its URL, which never holds credentials."""

    def __init__(self, message: str, *, remote: str = "") -> None:
        super().__init__(message)
        self.remote = remote


class RemoteDenied(RemoteError, PermissionError):
    """The other side refused the credentials, or what was asked with them."""


class RemoteNotFound(RemoteError):
    """There is no such bucket, or folder, on the other side."""


class RemoteUnreachable(RemoteError, ConnectionError):
    """The other side did not answer, or not as it should: the operation can be retried."""


class RefError(CoralError, LookupError):
    """A ref that does not lead to a commit that can be used; `ref` is what was asked for."""

    def __init__(self, message: str, *, ref: str = "") -> None:
        super().__init__(message)
        self.ref = ref


class UnknownRef(RefError, KeyError):
    """No commit, branch or tag answers to it; `near` holds names like it."""

    def __init__(self, ref: str, known: Iterable[str] = (), *, detail: str = "") -> None:
        known = list(known)
        self.near = difflib.get_close_matches(ref, known, n=3, cutoff=0.5)
        text = f"unknown ref {ref!r}"
        if detail:
            text += f": {detail}"
        if self.near:
            text += ". Did you mean " + " or ".join(repr(n) for n in self.near) + "?"
        elif known and not detail:
            text += ". There are: " + ", ".join(repr(k) for k in sorted(known)[:10]) + "."
        super().__init__(text, ref=ref)


class AmbiguousRef(RefError):
    """More than one thing answers to it; `candidates` names them."""

    def __init__(self, ref: str, candidates: Sequence[str]) -> None:
        self.candidates = list(candidates)
        shown = ", ".join(self.candidates[:5]) + (", ..." if len(self.candidates) > 5 else "")
        super().__init__(f"ref {ref!r} is ambiguous: {shown}. Give more of it.", ref=ref)


class RefExists(RefError):
    """A branch or tag of that name is there already."""


class CommitInUse(RefError):
    """A branch, a tag or an open run holds the commit: it cannot be pruned."""


class CommitPruned(RefError):
    """The commit's record is kept, its tensors were pruned."""


class RepositoryError(CoralError):
    """A folder that cannot be used as a repository; `path` is the folder."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class NotARepository(RepositoryError, FileNotFoundError):
    """No coral repository at the path."""


class NewerFormat(RepositoryError):
    """The repository was written by a newer coral."""


class CorruptObject(CoralError, ValueError):
    """Bytes that are not what was stored. `path`, `tensor` and `commits` say what is touched, where known."""

    def __init__(self, message: str, *, path: str = "", tensor: str = "", commits: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.path = path
        self.tensor = tensor
        self.commits = list(commits)


class MissingObject(CorruptObject, KeyError):
    """An object that something names and no pack holds."""


class StorageError(CoralError, OSError):
    """The filesystem refused; `errno` and `filename` are those of the refusal."""

    def __init__(self, message: str, *, errno: int | None = None, filename: str | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.filename = filename


class DiskFull(StorageError):
    """No space, or no quota, is left."""


class ReadOnly(StorageError, PermissionError):
    """The repository cannot be written to."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn an OSError that passes through into the StorageError that says what coral was `doing`."""
    try:
        yield
    except CoralError:
        raise
    except OSError as error:
        raise from_os_error(error, doing) from error


def from_os_error(error: OSError, doing: str) -> StorageError:
    """The StorageError for an OSError met while `doing` something."""
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or str(error) or type(error).__name__
    kind: type[StorageError]
    if error.errno in _FULL:
        kind, advice = DiskFull, "Free some space or prune checkpoints, then retry; nothing was half-written."
    elif error.errno in READ_ONLY:
        kind, advice = ReadOnly, "Check the folder's permissions and mount; reading still works."
    else:
        kind, advice = StorageError, "The operation can be retried; nothing was half-written."
    return kind(f"{doing}: {reason}{where}. {advice}", errno=error.errno, filename=error.filename)

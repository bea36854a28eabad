"""The tree of errors is the one that is drawn; each carries its data, travels, and says what to do next."""

from __future__ import annotations

import builtins
import copy
import errno
import pickle
import re

import pytest

from coral import errors
from coral.errors import (
    AmbiguousRef,
    CoralError,
    CorruptObject,
    DiskFull,
    NotARepository,
    ReadOnly,
    SaveFailedError,
    StorageError,
    UnknownRef,
    UnsupportedValue,
    WeightsMismatch,
    from_os_error,
    storage_errors,
)

SAMPLES = [
    CoralError("plain"),
    SaveFailedError("no", step=3),
    UnsupportedValue("no", path="a/b"),
    WeightsMismatch(missing=["a"], unexpected=["b"], mismatched={"c": ("(1,)", "(2,)")}),
    UnknownRef("mian", ["main", "other"]),
    AmbiguousRef("abcdef", ["abcdef1", "abcdef2"]),
    errors.RefExists("there is one", ref="x"),
    errors.CommitPruned("gone", ref="x"),
    NotARepository("none", path="/x"),
    CorruptObject("bad", path="p", tensor="t", commits=["c"]),
    errors.MissingObject("gone", tensor="t"),
    from_os_error(OSError(errno.ENOSPC, "full", "file"), "saving"),
    from_os_error(OSError(errno.EROFS, "read-only", "file"), "saving"),
    from_os_error(OSError(errno.EIO, "broken", "file"), "saving"),
]


def drawn() -> list[tuple[str, str | None, str | None]]:
    """(name, parent, built-in) of each line of the tree in the docstring."""
    lines = (errors.__doc__ or "").split("```")[1].strip("\n").splitlines()
    found: list[tuple[str, str | None, str | None]] = []
    above: list[str] = []
    for line in lines:
        match = re.match(r"^([│├└─ ]*)(\w+)(?:\s+\((\w+)\))?", line)
        assert match, line
        depth = len(match[1]) // 4
        above[depth:] = [match[2]]
        found.append((match[2], above[depth - 1] if depth else None, match[3]))
    return found


def test_the_tree_is_the_one_that_is_drawn() -> None:
    tree = drawn()
    assert sorted(name for name, _, _ in tree) == sorted(errors.__all__)
    for name, parent, builtin in tree:
        kind = getattr(errors, name)
        bases = {base.__name__ for base in kind.__bases__}
        assert bases == {parent or "Exception"} | ({builtin} if builtin else set()), name
        assert builtin is None or hasattr(builtins, builtin)


def test_every_class_is_listed() -> None:
    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, CoralError)
    }
    assert classes == set(errors.__all__)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda e: type(e).__name__)
def test_an_error_travels_between_processes(error: CoralError) -> None:
    for found in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(found) is type(error)
        assert str(found) == str(error)
        assert vars(found) == vars(error)
        if isinstance(error, OSError) and isinstance(found, OSError):
            assert (found.errno, found.filename) == (error.errno, error.filename)


def test_messages_are_shown_as_they_are() -> None:
    assert str(UnknownRef("x", detail="no")) == "unknown ref 'x': no"
    assert str(errors.MissingObject("it's gone")) == "it's gone"
    assert str(StorageError("disk", errno=5, filename="f")) == "disk"
    assert str(CoralError()) == "CoralError"


def test_near_names() -> None:
    assert UnknownRef("mian", ["main", "xyz"]).near == ["main"]
    assert "'main'" in str(UnknownRef("mian", ["main"]))
    assert UnknownRef("zzz", []).near == []
    assert "There are: 'a', 'b'." in str(UnknownRef("zzzz", ["b", "a"]))


def test_a_mismatch_names_everything() -> None:
    text = str(WeightsMismatch(missing=["m"], unexpected=["u"], mismatched={"s": ("(2,)", "(3,)")}))
    for part in ("missing: m", "unexpected: u", "s: the model has (2,), the weights (3,)", "strict=False"):
        assert part in text


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EFBIG, DiskFull), (errno.EROFS, ReadOnly),
        (errno.EACCES, ReadOnly), (errno.EPERM, ReadOnly), (errno.EIO, StorageError), (errno.EMFILE, StorageError),
    ],
)  # fmt: skip
def test_refusals_of_the_system(code: int, kind: type[StorageError]) -> None:
    with pytest.raises(kind, match=r"saving: .*\(the/file\)") as caught, storage_errors("saving"):
        raise OSError(code, "reason", "the/file")
    assert type(caught.value) is kind
    assert (caught.value.errno, caught.value.filename) == (code, "the/file")
    assert isinstance(caught.value.__cause__, OSError)


def test_corals_own_errors_pass_through() -> None:
    own = NotARepository("x")
    with pytest.raises(NotARepository) as caught, storage_errors("saving"):
        raise own
    assert caught.value is own
    with pytest.raises(ZeroDivisionError), storage_errors("saving"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.UnknownRef("x"), KeyError),
        (errors.NotARepository("x"), FileNotFoundError),
        (errors.ReadOnly("x"), PermissionError),
        (errors.CorruptObject("x"), ValueError),
        (errors.UnsupportedValue("x"), TypeError),
        (errors.Conflict("x"), RuntimeError),
    ],
)
def test_a_caller_may_catch_the_builtin(error: CoralError, builtin: type[Exception]) -> None:
    with pytest.raises(builtin):
        raise error

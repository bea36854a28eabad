"""What must not be committed: one clear error each, and not a byte of it in the repository."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coral import Repository
from coral.errors import (
    CoralError,
    CorruptObject,
    EmptyCommit,
    LimitExceeded,
    UnknownRef,
    UnsafeInput,
    UnsupportedValue,
    WeightsMismatch,
)

ONE = {"a": np.ones(3)}


class Loop(dict[str, Any]):
    pass


LOOP = Loop()
LOOP["self"] = LOOP


@pytest.fixture(autouse=True)
def _committed(repo: Repository, unchanged: Callable[[], None]) -> None:
    """Each test begins with one commit, and must leave everything as it was."""
    repo.commit(ONE, "first", state={"m": np.ones(2)})
    unchanged()


def refused(repo: Repository, error: type[CoralError], weights: Any = None, **more: Any) -> CoralError:
    with pytest.raises(error) as caught:
        repo.commit(ONE if weights is None else weights, **more)
    assert type(caught.value) is error
    assert len(repo.log()) == 1
    return caught.value


def test_no_weights(repo: Repository) -> None:
    refused(repo, EmptyCommit, {})


@pytest.mark.parametrize(
    "weights", [[("a", np.ones(1))], np.ones(3), "a", 5, {1, 2}, iter(())], ids=lambda w: type(w).__name__
)
def test_weights_that_are_no_mapping(repo: Repository, weights: Any) -> None:
    refused(repo, UnsupportedValue, weights)


@pytest.mark.parametrize("name", ["a\0b", "", "\ud800", "x\udfffy", 1, None, b"a", ("a",), 1.5], ids=ascii)
def test_tensor_names(repo: Repository, name: Any) -> None:
    refused(repo, UnsafeInput, {"good": np.ones(1), name: np.ones(1)})


@pytest.mark.parametrize("name", ["x" * 1025, "π" * 513])
def test_tensor_names_have_a_limit(repo: Repository, name: str) -> None:
    refused(repo, LimitExceeded, {name: np.ones(1)})


@pytest.mark.parametrize(
    "data",
    [
        np.array([None, 1], object),
        np.array(["a"]),
        np.array([b"a"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(2, "m8[s]"),
        np.zeros(2, [("x", "f4")]),
        np.zeros(2, np.longdouble),
        np.zeros(2, np.clongdouble),
        [1.0, 2.0],
        "text",
        None,
        1.0,
    ],
    ids=lambda d: str(getattr(d, "dtype", d)),
)
def test_dtypes(repo: Repository, data: Any) -> None:
    error = refused(repo, UnsupportedValue, {"good": np.ones(1), "layer.bad": data})
    assert "layer.bad" in str(error)


@pytest.mark.parametrize("value", [None, "high", [1.0], object(), 1j, np.ones(3), 10**400], ids=lambda v: str(v)[:12])
def test_metrics_that_are_no_numbers(repo: Repository, value: Any) -> None:
    assert "'loss'" in str(refused(repo, UnsafeInput, metrics={"loss": value}))


@pytest.mark.parametrize("name", ["", "a\0", "\ud800"])
def test_names_of_metrics(repo: Repository, name: Any) -> None:
    refused(repo, UnsafeInput, metrics={name: 1.0})


@pytest.mark.parametrize("field", ["metadata", "training", "metrics"])
@pytest.mark.parametrize("value", [[1], "text", 5, {5: 1.0}, {None: 1.0}], ids=str)
def test_fields_that_are_no_mappings(repo: Repository, field: str, value: Any) -> None:
    refused(repo, UnsupportedValue, **{field: value})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (object(), UnsupportedValue),
        ({1, 2}, UnsupportedValue),
        (np.ones(2), UnsupportedValue),
        (np.float32(1), UnsupportedValue),
        ({1.5: 0}, UnsupportedValue),
        (lambda: 0, UnsupportedValue),
        (LOOP, LimitExceeded),
        ("x" * (17 << 20), LimitExceeded),
        ("\ud800", UnsafeInput),
    ],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("field", ["metadata", "training"])
def test_metadata_that_cannot_be_stored(repo: Repository, field: str, value: Any, error: type[CoralError]) -> None:
    refused(repo, error, **{field: {"key": value}})


@pytest.mark.parametrize("value", [object(), {"x": {1}}, {1.5: 0}, np.array([None])], ids=lambda v: type(v).__name__)
def test_state_that_cannot_be_stored(repo: Repository, value: Any) -> None:
    refused(repo, UnsupportedValue, state={"opt": value})
    with pytest.raises(UnsupportedValue):
        repo.annotate("HEAD", state={"opt": value})


@pytest.mark.parametrize(
    ("message", "error"), [("\ud800", UnsafeInput), (b"x", UnsupportedValue), (None, UnsupportedValue)]
)
def test_messages(repo: Repository, message: Any, error: type[CoralError]) -> None:
    refused(repo, error, message=message)


@pytest.mark.parametrize("reasons", [[1], [None], ["a", 1], [b"x"], "best", 5], ids=str)
def test_reasons(repo: Repository, reasons: Any) -> None:
    """A commit with such reasons could be written, and never be read again."""
    with pytest.raises((UnsafeInput, UnsupportedValue)):
        repo.commit(ONE, reasons=reasons)
    with pytest.raises((UnsafeInput, UnsupportedValue)):
        repo.annotate("HEAD", reasons=reasons)


def test_an_array_that_cannot_be_read_in_the_middle_of_a_commit(repo: Repository) -> None:
    from coral import WeightTensor

    def read() -> Any:
        raise CorruptObject("gone")

    broken = WeightTensor.stored("float64", (2,), 16, "0" * 64, read)
    refused(repo, CorruptObject, {"a": np.zeros(3), "b": broken, "c": np.zeros(3)}, state={"x": np.zeros(3)})


def test_refs_that_are_not_there(repo: Repository) -> None:
    for attempt in (
        lambda: repo.load("mian"),
        lambda: repo.load_state("mian"),
        lambda: repo.show("mian"),
        lambda: repo.log("mian"),
        lambda: repo.diff("mian"),
        lambda: repo.diff("HEAD", "mian"),
        lambda: repo.tree("mian"),
        lambda: repo.notes("mian"),
        lambda: repo.tag("t", "mian"),
        lambda: repo.branch("b", "mian"),
        lambda: repo.annotate("mian", reasons=["x"]),
        lambda: repo.checkout("mian"),
        lambda: list(repo.chain("mian")),
    ):
        with pytest.raises(UnknownRef, match="Did you mean 'main'") as caught:
            attempt()
        assert caught.value.near == ["main"]
        assert isinstance(caught.value, KeyError)


def test_names_that_are_not_there(repo: Repository) -> None:
    with pytest.raises(WeightsMismatch, match="missing: b"):
        repo.load(names=["a", "b"])


@pytest.mark.parametrize("branch", [5, None, b"main"])
def test_a_checkout_of_what_is_no_text(repo: Repository, branch: Any) -> None:
    with pytest.raises(CoralError):
        repo.checkout(branch)

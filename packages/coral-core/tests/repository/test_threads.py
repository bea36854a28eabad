"""One Repository object, used by several threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coral import Repository


@pytest.fixture
def _switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_switching")
def test_some_read_while_one_commits(repo: Repository, folder: Path) -> None:
    first = repo.commit({"a": np.zeros(3), "n": np.array(0)})
    done = threading.Event()
    errors: list[BaseException] = []
    reads = [0, 0]

    def read(number: int) -> None:
        try:
            while not done.is_set():
                assert repo.resolve(first[:12]) == first
                assert repo.show(first[:12]).id == first
                for ref in ("HEAD", first):
                    found = repo.load(ref)
                    assert found["a"].data.tolist() == [int(found["n"].data)] * 3
                reads[number] += 1
        except BaseException as error:  # noqa: BLE001 - the test's to show
            errors.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 151):
            repo.commit({"a": np.full(3, float(number)), "n": np.array(number)})
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert all(reads)
    assert len(repo.log()) == 151
    assert Repository(folder).fsck().ok

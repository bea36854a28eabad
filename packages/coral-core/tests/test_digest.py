"""The folded sum, the ids, the threads."""

from __future__ import annotations

import os
import threading
import zlib

import numpy as np
import pytest

from coral._digest import BLOCK, blocks_in, fold, object_id, pool, tensor_id

PAGE = 4096


@pytest.fixture(scope="module")
def block() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, 3 * PAGE, np.uint8)


def test_fold_is_part_of_the_format(block: np.ndarray) -> None:
    assert fold(np.arange(20_000, dtype=np.uint32).view(np.uint8)) == 0xB800C8B3
    assert fold(np.frombuffer(b"coral", np.uint8)) == zlib.crc32(b"coral")
    assert fold(np.empty(0, np.uint8)) == 0


def test_fold_is_what_its_description_says(block: np.ndarray) -> None:
    words = block.tobytes()[: 3 * 509 * 8]
    columns = [0] * 509
    for number in range(3 * 509):
        column = number % 509
        columns[column] = (columns[column] + int.from_bytes(words[number * 8 : number * 8 + 8], "little")) % 2**64
    crc = zlib.crc32(b"".join(total.to_bytes(8, "little") for total in columns))
    assert fold(block) == zlib.crc32(block.tobytes()[3 * 509 * 8 :], crc)


def test_every_flipped_bit_shows(block: np.ndarray) -> None:
    good, bad = fold(block), 0
    data = block.copy()
    for at in range(data.size):
        for bit in range(8):
            data[at] ^= 1 << bit
            bad += fold(data) == good
            data[at] ^= 1 << bit
    assert bad == 0
    assert fold(data) == good


def test_swapped_pages_show(block: np.ndarray) -> None:
    pages = block.reshape(3, PAGE)
    found = {fold(np.ascontiguousarray(pages[list(order)]).reshape(-1)) for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0))}
    assert len(found) == 3


@pytest.mark.parametrize("size", [0, 1, 7, 4071, 4072, 4073, 8144, BLOCK - 1, BLOCK])
def test_fold_sees_the_length(size: int) -> None:
    data = np.ones(size + 1, np.uint8)
    assert fold(data[:-1]) != fold(data)


def test_fold_takes_unaligned_bytes() -> None:
    data = np.random.default_rng(1).integers(0, 256, 10_001, np.uint8)
    assert fold(data[1:]) == fold(data[1:].copy())


@pytest.mark.parametrize(("nbytes", "blocks"), [(0, 0), (1, 1), (BLOCK, 1), (BLOCK + 1, 2), (5 * BLOCK, 5)])
def test_blocks_in(nbytes: int, blocks: int) -> None:
    assert blocks_in(nbytes) == blocks


def test_ids_tell_kinds_apart() -> None:
    assert len({object_id(kind, b"x") for kind in ("tree", "state", "commit")}) == 3
    assert tensor_id("float32", (1, 2), b"") != tensor_id("float32", (12,), b"")


def test_the_pool_keeps_order_and_passes_errors_on() -> None:
    assert list(pool().map(lambda n: n * n, range(100))) == [n * n for n in range(100)]

    def fail(_: int) -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(pool().map(fail, [1]))


def test_the_pool_is_shared_within_a_process() -> None:
    assert pool() is pool()
    assert list(pool().map(lambda _: threading.current_thread().name.startswith("coral"), [1])) == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    assert list(pool().map(abs, [-1])) == [1]
    pid = os.fork()
    if not pid:
        os._exit(0 if list(pool().map(abs, [-1, -2])) == [1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

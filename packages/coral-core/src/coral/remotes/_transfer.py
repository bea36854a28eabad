"""Sending packs: those that go as they are, and those that are made for the other side, side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress

import numpy as np

from coral.errors import CorruptObject
from coral.maintenance import Progress
from coral.maintenance._encoding import Unreadable, write_encoded
from coral.remotes._sending import Item, Plan, whole
from coral.remotes._side import THREADS, Side
from coral.store import Copies, Store, Stored
from coral.store._chain import verify_tensors
from coral.store._files import nonce, tag_of
from coral.store._pack import RAW, Directory, directory_of, path_of, pieces
from coral.store._pack_writer import PackWriter

__all__ = ["Counter", "send"]

_AHEAD = 4  # packs that were made and wait for the network: they take space


class Counter:
    """Counts bytes, from several threads, and tells of them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.sent = 0
        self._progress = progress
        self._done = 0
        self._total = total
        self._lock = threading.Lock()

    def add(self, expected: int, sent: int) -> None:
        """So many bytes were sent, of which that much was expected."""
        with self._lock:
            self.sent += sent
            self._done += expected
            if self._progress is not None:
                self._progress(min(self._done, self._total), self._total)


def send(
    ours: Store,
    side: Side,
    plan: Plan,
    copies: Copies,
    announce: Callable[[str], None],
    progress: Progress | None,
) -> int:
    """Put all packs of a plan on the other side; returns the bytes that this took.

    Those that are made get their names here, and are announced by them first; the others are announced already.
    """
    counter = Counter(progress, plan.nbytes)
    with ThreadPoolExecutor(THREADS, thread_name_prefix="coral-push") as threads:
        running: set[Future[None]] = set()
        try:
            for pack in plan.packs:
                running.add(threads.submit(_send_as_it_is, ours, side, pack, counter))
            made: set[Future[None]] = set()
            for items in plan.made:
                while len(made) >= _AHEAD:
                    done, made = wait(made, return_when=FIRST_COMPLETED)
                    for each in done:
                        each.result()
                path, directory = _make(ours, items, copies)
                try:
                    announce(directory.name)
                    expected = sum(item.estimate for item in items)
                    made.add(threads.submit(_send_made, ours, side, path, directory, expected, counter))
                except BaseException:
                    _remove(ours, path)
                    raise
                running |= made
            for each in running:
                each.result()
        except BaseException:
            for each in running:
                each.cancel()
            raise
    return counter.sent


def _send_as_it_is(ours: Store, side: Side, pack: str, counter: Counter) -> None:
    file = ours.open_pack(pack)
    try:
        for entry in directory_of(file, pack).entries():
            for _ in pieces(file, entry):  # what is damaged here is not spread
                pass
        data = file.view(0, file.size)
        if data is None:
            data = np.empty(file.size, np.uint8)
            file.read_into(data, 0)
        side.fs.put(path_of(pack), memoryview(data))
        counter.add(file.size, file.size)
    finally:
        file.close()


def _send_made(ours: Store, side: Side, path: str, directory: Directory, expected: int, counter: Counter) -> None:
    try:
        file = ours.fs.open(path)
        try:
            data = file.view(0, file.size)
            if data is None:
                data = np.empty(file.size, np.uint8)
                file.read_into(data, 0)
            side.fs.put(path_of(directory.name), memoryview(data))
            end = data[directory.end :].tobytes()
            counter.add(expected, file.size)
        finally:
            file.close()
        side.memory.remember_pack(directory.name, end)
    finally:
        _remove(ours, path)


def _remove(ours: Store, path: str) -> None:
    with suppress(OSError):
        ours.fs.unlink(path)


def _make(ours: Store, items: list[Item], copies: Copies) -> tuple[str, Directory]:
    """Write a pack for the other side, and decode what was encoded; its path and its directory."""
    path = f"tmp/{nonce()}-{tag_of(ours.fs.origin())}"
    file = ours.fs.create(path)
    try:
        writer = PackWriter(file)
        try:
            for _ in _write(items, copies, writer):
                pass
            directory = writer.finish()
        finally:
            writer.abandon()
            file.close()
        _check(ours, path, directory, {item.id for item in items if not item.as_stored}, copies)
    except Unreadable as error:
        _remove(ours, path)
        raise CorruptObject(f"tensor {error.id[:12]} cannot be sent: {error}. Run fsck.") from error
    except BaseException:
        _remove(ours, path)
        raise
    return path, directory


def _write(items: list[Item], copies: Copies, writer: PackWriter) -> Iterator[None]:
    encodings = [(None, item.encoding) for item in items if item.encoding is not None]
    for _ in write_encoded(writer, encodings):
        yield
    for item in items:
        if item.decoded is not None:
            entry = item.decoded.entry._replace(codec=RAW, params=0, base=None)
            writer.add_stored(entry, whole(item.decoded))
        elif item.encoding is None and item.id not in writer:
            file, pack = copies.open(item.copy.pack)
            entry = pack.checked(item.copy.number)
            writer.add_stored(entry, pieces(file, entry))
        yield


def _check(ours: Store, path: str, directory: Directory, ids: set[str], copies: Copies) -> None:
    if not ids:
        return
    file = ours.fs.open(path)
    try:
        made = [copies.chain(Stored(directory, file, entry)) for entry in directory.entries() if entry.id in ids]
        for chain, problem in verify_tensors(made):
            if problem is not None:
                raise Unreadable(chain.entry.id, problem) from problem
    finally:
        file.close()

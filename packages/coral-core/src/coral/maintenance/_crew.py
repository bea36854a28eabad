"""Encoding on all processors: by processes, as Python's threads would wait for one another.

Each process is given batches of tasks, one at a time, as a line of JSON, and answers each with what came of it. It
opens the repository by itself, announces what it writes by itself, and ends with its input. Where none can be had, or
one fails, the work is done here.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import IO, Any

from coral import _json
from coral._digest import alone, threads
from coral._process import coral_command
from coral.delta import DeltaConfig
from coral.errors import CoralError, CorruptObject
from coral.filesystem import LocalFileSystem
from coral.maintenance._encoding import Done, Encoder, Task
from coral.store import Store, intent

__all__ = ["Encode", "encoders", "serve"]

_log = logging.getLogger("coral")

_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_MMAP_THRESHOLD_": str(1 << 26)}
"""Has glibc keep what is freed for what is allocated next, as each block needs the same again."""
_WORTH = 128 << 20  # bytes of tensors from which starting processes pays


Encode = Callable[[Sequence[list[Task]], int], Iterator[Done]]
"""Encodes batches, of so many bytes of tensors in all, each into a pack of its own; what came of each, in turn."""


@contextmanager
def encoders(store: Store, config: DeltaConfig, *, aggressive: bool) -> Iterator[Encode]:
    """All that can encode, as one function; processes are started once there is enough to do, and kept."""
    with intent(store.fs, "repack", []) as operation, ExitStack() as stack:
        here = Encoder(store, config, operation, aggressive=aggressive)
        crew: _Crew | None = None

        def encode(batches: Sequence[list[Task]], nbytes: int) -> Iterator[Done]:
            nonlocal crew
            if crew is None and isinstance(store.fs, LocalFileSystem) and nbytes >= _WORTH and threads() > 1:
                crew = stack.enter_context(_Crew(store.fs.root, config, threads(), aggressive=aggressive))
            if crew is None or len(batches) < 2:
                yield from map(here.run, batches)
                return
            for batch, done in zip(batches, crew.run(batches), strict=True):
                yield here.run(batch) if done is None else done

        yield encode


class _Crew:
    """Some processes, and a thread for each that waits for it."""

    def __init__(self, root: str, config: DeltaConfig, count: int, *, aggressive: bool) -> None:
        self._root = root
        self._orders = {"config": asdict(config), "aggressive": aggressive}
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        self._all: list[subprocess.Popen[bytes]] = []
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="coral-crew")
        for _ in range(count):
            self._idle.put(None)  # to be started when it is needed

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:  # what is done is done; a pack without a name is nobody's
            process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._all:
            process.communicate()

    def run(self, batches: Sequence[list[Task]]) -> Iterator[Done | None]:
        """What came of each batch; None for one that has to be done by somebody else."""
        return self._threads.map(self._one, batches)

    def _one(self, batch: list[Task]) -> Done | None:
        process = self._idle.get()
        try:
            if process is None:
                process = self._start()
            return Done(**_ask(process, [task.to_json() for task in batch]))
        except (OSError, ValueError, TypeError, CoralError) as error:
            _log.info("%s: a process that helped to repack is gone: %s", self._root, error)
            if process is not None:
                process.kill()
                process = None
            return None
        finally:
            self._idle.put(process)

    def _start(self) -> subprocess.Popen[bytes]:
        command = coral_command("encode", self._root)
        env = {**os.environ, **_MEMORY}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        self._all.append(process)
        _tell(process.stdin, self._orders)
        return process


def _tell(stream: IO[bytes] | None, value: object) -> None:
    assert stream is not None
    stream.write(_json.dumps(value) + b"\n")
    stream.flush()


def _ask(process: subprocess.Popen[bytes], question: object) -> dict[str, Any]:
    _tell(process.stdin, question)
    assert process.stdout is not None
    answer = _json.loads(process.stdout.readline(), "the answer of a process")
    if not isinstance(answer, dict):
        raise CorruptObject("it did not answer")
    return answer


def serve(store: Store, questions: IO[bytes], answers: IO[bytes]) -> None:
    """Be one of a crew: encode what comes, until nothing more does."""
    orders = _json.loads(questions.readline(), "the orders")
    with alone(), intent(store.fs, "repack", []) as operation:
        encoder = Encoder(store, DeltaConfig(**orders["config"]), operation, aggressive=orders["aggressive"])
        for line in questions:
            tasks = [Task(**task) for task in _json.loads(line, "a batch")]
            _tell(answers, asdict(encoder.run(tasks)))

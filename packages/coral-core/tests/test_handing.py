"""Work for threads, where none can be started."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from coral._handing import hand


def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_what_no_thread_can_be_had_for_is_done_here_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor has it queued all the same, and does it as soon as there is a thread."""
    done: list[tuple[str, str]] = []

    def work(name: str) -> str:
        done.append((name, threading.current_thread().name))
        return name

    with ThreadPoolExecutor(1, thread_name_prefix="theirs") as executor:
        with monkeypatch.context() as patch:
            no_thread(patch)
            assert hand(executor, lambda: work("first")).result() == "first"
        assert hand(executor, lambda: work("second")).result() == "second"
    assert done == [("first", threading.current_thread().name), ("second", "theirs_0")]


def test_what_another_thread_has_begun_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def slow() -> int:
        calls.append(1)
        begun.set()
        assert go_on.wait(10)
        return 7

    class Refuses(ThreadPoolExecutor):
        def submit(self, work, /, *args, **options):  # type: ignore[no-untyped-def,override]
            super().submit(work, *args, **options)
            assert begun.wait(10)
            threading.Timer(0.05, go_on.set).start()
            raise RuntimeError("can't start new thread")

    with Refuses(1) as executor:
        assert hand(executor, slow).result() == 7
    assert calls == [1]


def test_after_the_end_it_is_done_here_and_its_error_is_the_futures() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    failed = hand(executor, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_an_interrupt_of_it_is_the_callers() -> None:
    calls = []

    def interrupted() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(KeyboardInterrupt):
        hand(executor, interrupted)
    assert calls == [1]

"""What the machine can do and what a process uses: SHA-256 and memcpy rates, page cache, resident memory."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import mmap
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

import numpy as np

__all__ = ["Peak", "cached_share", "describe", "drop_cache", "filesystem_of", "rates", "watch_memory"]

MIB = 1 << 20
PACKAGES = (
    "coral-core",
    "coral-torch",
    "numpy",
    "torch",
    "safetensors",
    "transformers",
    "pytorch-lightning",
    "zipnn",
    "backports.zstd",
)
"""Whose versions a reader of the figures needs to know."""


def rates(size: int = 256 * MIB) -> dict[str, float]:
    """Return GB/s of SHA-256 (1 MiB blocks) and of memcpy between warm buffers, on one thread and on two."""
    source = np.random.default_rng(0).integers(0, 1 << 62, size // 8)
    target = np.zeros_like(source)
    step = MIB // 8
    spans = [slice(at, at + step) for at in range(0, source.size, step)]
    halves = [spans[: len(spans) // 2], spans[len(spans) // 2 :]]

    def sha256(spans: list[slice]) -> None:
        for span in spans:
            hashlib.sha256(source[span]).digest()

    def memcpy(spans: list[slice]) -> None:
        for span in spans:
            np.copyto(target[span], source[span])

    found = {}
    with ThreadPoolExecutor(2) as two:
        for work in (sha256, memcpy):
            alone = _best(lambda work=work: work(spans))
            both = _best(lambda work=work: list(two.map(work, halves)))
            found |= {
                f"{work.__name__}, 1 thread": size / alone / 1e9,
                f"{work.__name__}, 2 threads": size / both / 1e9,
            }
    return found


def _best(work: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def describe(work: Path) -> dict[str, object]:
    """Return what a reader of the figures needs to know of the machine and of the versions measured."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return {
        "cpus": os.cpu_count(),
        "sha_instructions": "sha_ni" in flags or "sha2" in flags if flags else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "filesystem": filesystem_of(work),
        "packages": packages,
    }


def filesystem_of(path: Path) -> str:
    """Return the type of the filesystem that holds `path`, or "unknown"."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    lines = [line.split() for line in mounts.read_text().splitlines()]
    inside = [(len(at), kind) for _, at, kind, *_ in lines if path.resolve().is_relative_to(at)]
    return max(inside, default=(0, "unknown"))[1]


def drop_cache(paths: Iterable[Path]) -> str:
    """Drop these files from the page cache, by fadvise or else for the whole machine, and say how it was done."""
    gc.collect()  # a page that is still mapped cannot be dropped
    paths = list(paths)
    os.sync()
    if not hasattr(os, "posix_fadvise"):
        return "not dropped: no posix_fadvise here"
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    if cached_share(paths) < 0.01:
        return "posix_fadvise(DONTNEED)"
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
    except OSError:
        return "posix_fadvise(DONTNEED) only: /proc/sys/vm/drop_caches is not writable"
    return "/proc/sys/vm/drop_caches"


def cached_share(paths: Iterable[Path]) -> float:
    """Return the fraction of these files' pages that the page cache holds (mincore), or 1.0 where it cannot say."""
    held = pages = 0
    libc = ctypes.CDLL(None, use_errno=True)
    for path in paths:
        size = path.stat().st_size
        if not size:
            continue
        count = -(-size // mmap.PAGESIZE)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
            first = ctypes.c_char.from_buffer(view)
            vector = (ctypes.c_ubyte * count)()
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), vector)
            del first
        if failed:
            return 1.0
        held += sum(page & 1 for page in vector)
        pages += count
    return held / max(1, pages)


@dataclass(slots=True)
class Peak:
    """How far resident memory rose over a block, in bytes; `total` counts anonymous, file-backed and shared pages.

    `children` is the most that processes had which this one started, all together.
    """

    total: int = 0
    anonymous: int = 0
    children: int = 0
    how: str = ""


def _status(process: str = "self") -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[0].startswith(("Vm", "Rss"))}


def _children() -> int:
    resident = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread or a process that has just ended
            for child in (task / "children").read_text().split():
                resident += _status(child).get("VmRSS", 0)
    return resident


@contextmanager
def watch_memory() -> Iterator[Peak]:
    """Measure how far this process's resident memory rises above where it stood (Linux only)."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # or what was freed before would hide what is allocated now
    peak, done = Peak(), threading.Event()
    before = _status()
    highest = {"RssAnon": 0, "VmRSS": 0}

    def sample() -> None:
        for number in count():
            if done.wait(0.001):
                return
            now = _status()
            for name in highest:
                highest[name] = max(highest[name], now[name])
            if not number % 10:
                peak.children = max(peak.children, _children())

    try:
        Path("/proc/self/clear_refs").write_text("5\n")  # sets VmHWM back to VmRSS
        peak.how = "VmHWM over VmRSS before"
    except OSError:
        peak.how = "VmRSS sampled every ms"
    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    yield peak
    done.set()
    sampler.join()
    high = _status()["VmHWM"] if peak.how.startswith("VmHWM") else highest["VmRSS"]
    peak.total = max(0, high - before["VmRSS"])
    peak.anonymous = max(0, highest["RssAnon"] - before["RssAnon"])

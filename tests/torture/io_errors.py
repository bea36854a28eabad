"""T5: every filesystem operation of every operation fails, in every way that it can, once or from then on."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from crash import Journal
from memory import MemoryFileSystem
from oracle import Violation, check
from power_loss import Tally
from process_death import count_operations, in_child, scratch
from scenarios import Commit, Init, Scenario, World, build, limits, perform
from seam import Call, Seam

from coral import Repository
from coral.errors import DiskFull, StorageError
from coral.filesystem import LocalFileSystem

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EROFS", "EMFILE")
CHANGES = {"create", "write", "fsync", "close", "mkdir", "link", "replace", "fsync_file", "fsync_dir", "make_root"}
"""What keeps failing once it has begun to; files can be read and removed on a full disk."""


class Faulty:
    """Makes operation number `at` fail with an error, and those after it too where it `lasts`, until `armed` is off."""

    def __init__(self, at: int, error: str, *, lasts: bool = False) -> None:
        self.at, self.error, self.lasts = at, error, lasts
        self.count = 0
        self.armed = True

    def __call__(self, call: Call) -> Any:
        number = self.count
        self.count += 1
        if not self.armed or number < self.at or (number > self.at and not (self.lasts and call.kind in CHANGES)):
            return call.do()
        code = getattr(errno, self.error)
        if call.part:
            call.part()  # a short write: what fitted is there
        if call.lose:
            call.lose()
        if call.kind == "close":
            call.do()
        raise OSError(code, os.strerror(code), call.path)


def run(
    scenario: Scenario,
    *,
    errors: tuple[str, ...] = ERRORS,
    lasting: bool = True,
    afterwards: int = 0,
    thin: int = 1,
    seed: int = 0,
) -> Tally:
    """Let each operation of the scenario's one step fail; `thin` tries only every so manieth (operation, error).

    With `afterwards`, so many states of a power loss follow the retry that succeeded, if what failed was a change.
    """
    began, tally = time.perf_counter(), Tally()
    with limits(scenario):
        _run(tally, scenario, errors, lasting, afterwards, thin, seed)
    tally.seconds = time.perf_counter() - began
    return tally


def _run(
    tally: Tally, scenario: Scenario, errors: tuple[str, ...], lasting: bool, afterwards: int, thin: int, seed: int
) -> None:
    base = MemoryFileSystem()
    world = build(base, scenario.before)
    kinds = count_operations(base.copy(), scenario)
    cases = [
        (at, e, lasts) for at in range(len(kinds)) for e in errors for lasts in ((False, True) if lasting else (False,))
    ]
    for at, error, lasts in cases[seed % thin :: thin]:
        tally.cases += 1
        fs = base.copy()
        try:
            states = afterwards if kinds[at] in CHANGES else 0
            _fail(fs, base, world, scenario, Faulty(at, error, lasts=lasts), states, seed)
        except Violation as violation:
            often = " and all after" if lasts else ""
            tally.violations.append(f"{scenario.name}: {error} at op {at} ({kinds[at]}){often}: {violation}")


def _fail(
    fs: MemoryFileSystem,
    base: MemoryFileSystem,
    world: World,
    scenario: Scenario,
    fault: Faulty,
    afterwards: int,
    seed: int,
) -> None:
    step, repo, result, acknowledged = scenario.steps[0], None, None, False
    try:
        repo = Repository(Seam(fs, fault), init=isinstance(step, Init))
        result = perform(repo, step)
        acknowledged = True
    except StorageError as error:
        if error.errno != getattr(errno, fault.error):
            raise Violation(f"it is reported as {errno.errorcode.get(error.errno or 0)}: {error}") from error
    except Exception as error:
        raise Violation(f"it is reported as {type(error).__name__}: {error}") from error
    fault.armed = False
    if acknowledged:
        final = check(fs, world.after(step, result), None, same=repo)
    else:
        final = check(fs, world, step, same=repo)
    if not afterwards:
        return
    journal = Journal(base.tree())
    for op in fs.trace:
        journal.apply(op)
    for plan in journal.plans(random.Random(f"{seed} {fault.at} {fault.error}"), afterwards):
        state = MemoryFileSystem.of(journal.state(plan), clock=fs.clock + 1, boot="boot-2")
        try:
            check(state, final, None)
        except Violation as violation:
            raise Violation(f"retried, then power lost ({plan}): {violation}") from violation


# ---- limits of the operating system


def run_limit(scenario: Scenario, *, sizes: tuple[int, ...]) -> Tally:
    """RLIMIT_FSIZE: no file may grow beyond so many bytes; a real short write, then EFBIG."""
    began, tally = time.perf_counter(), Tally()
    folder = scratch()
    try:
        base = folder / "base"
        base.mkdir()
        status, world = in_child(lambda: build(LocalFileSystem(base), scenario.before))
        if status:
            return Tally(0, [f"{scenario.name}: it fails without a fault: {world}"])
        for size in sizes:
            here = folder / str(size)
            shutil.copytree(base, here)

            def limited(here: Path = here, size: int = size) -> tuple[bool, str | None]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
                return _attempt(here, scenario)

            _judge(tally, f"{scenario.name}: RLIMIT_FSIZE {size}", here, world, scenario, *in_child(limited))
            shutil.rmtree(here)
    finally:
        shutil.rmtree(folder)
    tally.seconds = time.perf_counter() - began
    return tally


def _attempt(folder: Path, scenario: Scenario) -> tuple[bool, str | None]:
    """(acknowledged?, commit id) of the step; only the error that says the disk is full may come out."""
    step = scenario.steps[0]
    try:
        return True, perform(Repository(LocalFileSystem(folder), init=isinstance(step, Init)), step)
    except DiskFull:
        return False, None


def _judge(tally: Tally, what: str, folder: Path, world: World, scenario: Scenario, status: int, result: Any) -> None:
    tally.cases += 1
    if status:
        tally.violations.append(f"{what}: {result}")
        return
    step = scenario.steps[0]
    acknowledged, id = result or (False, None)
    after, redo = (world.after(step, id), None) if acknowledged else (world, step)
    status, result = in_child(lambda: check(LocalFileSystem(folder), after, redo))
    if status:
        tally.violations.append(f"{what}: {result}")


def run_full_disk(*, pages: int = 24) -> tuple[Tally, str]:
    """A real tmpfs that is full but for so many pages, for each number; and why not, where none may be mounted."""
    began = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="coral-"))
    script = 'mount -t tmpfs -o size=8m coral "$1" && exec "$2" "$3" "$1" "$4"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    try:
        done = subprocess.run(
            [*command, str(folder), sys.executable, str(Path(__file__).resolve()), str(pages)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Tally(), f"no tmpfs of our own can be mounted here: {error}"
    finally:
        folder.rmdir()
    lines = done.stdout.splitlines()
    if not lines or not lines[0].startswith("cases "):
        return Tally(), f"no tmpfs of our own can be mounted here: {(done.stderr or done.stdout).strip()[-300:]}"
    return Tally(int(lines[0].split()[1]), lines[1:], time.perf_counter() - began), ""


def _full_disk(mount: Path, pages: int) -> Iterator[tuple[int, str]]:
    """(cases, violation or '') for each number of free pages: runs inside the mount's namespace."""
    scenarios = (
        Scenario("first commit", (Init(),), (Commit(1),)),
        Scenario("second commit", (Init(), Commit(1)), (Commit(2),)),
    )
    for scenario in scenarios:
        for free in range(pages):
            here = mount / "repo"
            here.mkdir()
            status, world = in_child(lambda here=here, s=scenario: build(LocalFileSystem(here), s.before))  # type: ignore[misc]
            assert status == 0, world
            filler = mount / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    file.truncate(max(0, file.tell() // 4096 - free) * 4096)
            tally = Tally()
            outcome = in_child(lambda here=here, s=scenario: _attempt(here, s))  # type: ignore[misc]
            filler.unlink()
            _judge(tally, f"{scenario.name}: tmpfs with {free} free pages", here, world, scenario, *outcome)
            yield tally.cases, "; ".join(tally.violations)
            shutil.rmtree(here)


if __name__ == "__main__":
    results = list(_full_disk(Path(sys.argv[1]), int(sys.argv[2])))
    print("cases", sum(n for n, _ in results))
    for _, found in results:
        if found:
            print(found.replace("\n", " "))

"""How much smaller differences are: pair by pair beside the peers, and whole repositories after a repack.

A pair is a checkpoint and the one before it, which is its base for every method. The sizes of a pair are those of
coral's codecs as `repack` would pick them. A repository holds all checkpoints of a series; its size is that of all its
files after `repack`, less the newest checkpoint, which stays whole, as a part of the raw bytes of all the others.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import histories
import numpy as np
import xor_peers
from cases import CASES, Case, Part, bits, part_of
from harness import Bench, Figure
from pairs import AGGRESSIVE, CORAL, DEFLATE, Pairs

from coral import DeltaConfig, Repository
from coral.delta import BLOCK_ELEMENTS, Deflate, GroupedDelta, PackDelta, Planes, Zstd

__all__ = ["run"]

ASKED_DEFLATE = 1.08
ASKED_RANDOM = 1.001
MAX_DEPTH = 2
COLUMNS: dict[str, Callable[[Part], bool]] = {
    "all": lambda part: True,
    "no embeddings": lambda part: not part.embeddings,
    "weights": lambda part: part.kind == "weights",
}
BOUND = "entropy of the difference, given the exponent of the base"


def run(bench: Bench) -> None:
    """Measure every series, then what random bits grow by."""
    for case in CASES:
        folder = case.folder(bench)
        print(f"\n  {case.name}", flush=True)
        measure_pairs(bench, case, folder)
        measure_repository(bench, case, folder)
    measure_random(bench)


# Pair by pair


def measure_pairs(bench: Bench, case: Case, folder: Path) -> None:
    """Print what each method makes of an early, a middle and a late pair, taken together, and judge coral by it."""
    pairs, last = Pairs(), min(bench.checkpoints, case.checkpoints)
    numbers = sorted({3, last // 2 + 1, last})
    for k in numbers:
        pairs.add(bits(case.read(folder, k - 1)), bits(case.read(folder, k)))
    rows = {name: [pairs.ratio(name, counts) for counts in COLUMNS.values()] for name in pairs.sizes}
    rows[BOUND] = [pairs.bound_ratio(counts) for counts in COLUMNS.values()]
    raw = sum(pairs.raw.values()) / len(numbers)
    named = ", ".join(f"{k - 1} to {k}" for k in numbers)
    bench.report.note("size", f"checkpoints {named}: {raw / 1e6:.0f} MB each")
    bench.report.table("size", "stored / raw, as a difference from the checkpoint before", list(COLUMNS), rows)
    asked = {
        (CORAL, xor_peers.BITX): case.pair,
        (AGGRESSIVE, xor_peers.BITX): case.grouped,
        (AGGRESSIVE, BOUND): case.bound,
        (DEFLATE, CORAL): ASKED_DEFLATE if case.pair else None,
    }
    short = {xor_peers.BITX: "BitX's way", BOUND: "entropy bound"}
    for (ours, theirs), most in asked.items():
        values = dict(zip(COLUMNS, (a / b for a, b in zip(rows[ours], rows[theirs], strict=True)), strict=True))
        beside = f"({values['no embeddings']:.3f} without word embeddings)"
        name = f"{case.name}: {ours} / {short.get(theirs, theirs)}"
        bench.report.figure(Figure("size", name, values["all"], most, note=beside))


# Repositories


def measure_repository(bench: Bench, case: Case, folder: Path) -> None:
    """Commit a whole series, repack it with zstd and, from the start again, with deflate, and judge what is left."""
    files = bench.folder("size")
    numbers = range(1, min(bench.checkpoints, case.checkpoints) + 1)
    ids = histories.build(files / "zstd", (case.read(folder, k) for k in numbers))
    histories.linked(files / "zstd", files / "deflate")
    found, deepest = {}, {}
    for entropy in ("zstd", "deflate"):
        repo = Repository(files / entropy)
        repo.repack(config=DeltaConfig(entropy=entropy))
        found[entropy], deepest[entropy] = _stored(bench, repo, ids)
        middle = len(ids) // 2
        histories.check(repo, ids[middle], case.read(folder, numbers[middle]))
    shutil.rmtree(files)
    zipnn = _zipnn(case, folder, numbers[:-1])
    rows = {f"coral, {entropy}": values for entropy, values in found.items()} | {"zipnn, each on its own": zipnn}
    columns = ("all", "no embeddings")
    bench.report.table(
        "size", f"stored / raw, {len(ids) - 1} checkpoints behind the newest of {len(ids)}", columns, rows
    )
    (stored, without), (deflate, _) = found["zstd"], found["deflate"]
    beside = f"(zipnn {zipnn[0]:.3f}; without word embeddings {without:.3f}, zipnn {zipnn[1]:.3f})"
    name = f"{case.name}: repository"
    bench.report.figure(Figure("size", f"{name} / raw", stored, case.stored, note=beside))
    most = ASKED_DEFLATE if case.stored else None
    bench.report.figure(Figure("size", f"{name}, deflate alone / zstd", deflate / stored, most))
    depth = max(deepest.values())
    bench.report.figure(Figure("size", f"{name}, differences to apply at most", depth, MAX_DEPTH, ""))


def _stored(bench: Bench, repo: Repository, ids: list[str]) -> tuple[tuple[float, float], int]:
    """Return the repository's share of the raw bytes, that of all tensors but word embeddings, and how deep any lies.

    The first counts every file: keyframes, directories, indexes, and what a collection would free.
    """
    stats = repo.stats()
    newest = stats.by_commit[-1].raw_bytes
    whole = (stats.stored_bytes - newest) / (stats.raw_bytes - newest)
    raw, stored = 0, {}
    found = [histories.chains(repo, id) for id in ids]
    depths: Counter[int] = Counter()
    for number, chains in enumerate(found):
        for name, chain in chains.items():
            depths[chain.depth] += chain.entry.nbytes
            if number < len(ids) - 1 and not part_of(name).embeddings:
                raw += chain.entry.nbytes
                stored[chain.entry.id] = chain.entry.size
    newest_too = {chain.entry.id for chain in found[-1].values()}
    without = sum(size for id, size in stored.items() if id not in newest_too)
    shares = ", ".join(f"{depths[depth] / sum(depths.values()):.1%} at {depth}" for depth in sorted(depths))
    bench.report.note(
        "size", f"depth: {shares}; {stats.reclaimable_bytes / stats.stored_bytes:.1%} could be freed still"
    )
    return (whole, without / raw), max(depths)


def _zipnn(case: Case, folder: Path, numbers: range) -> tuple[float, float]:
    """Return what zipnn makes of these checkpoints, each on its own: of all, and of all but word embeddings."""

    def sizes(k: int) -> tuple[Counter[Part], Counter[Part]]:
        raw, stored = Counter[Part](), Counter[Part]()
        parts: dict[Part, list[np.ndarray]] = {}
        for name, block in bits(case.read(folder, k)).items():
            parts.setdefault(part_of(name), []).append(block)
        for part, blocks in parts.items():
            raw[part] = sum(block.nbytes for block in blocks)
            stored[part] = xor_peers.zipnn_raw(np.concatenate(blocks))
        return raw, stored

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = list(threads.map(sizes, numbers))
    raw, stored = (sum(counted, Counter[Part]()) for counted in zip(*found, strict=True))
    rest = [part for part in raw if not part.embeddings]
    return stored.total() / raw.total(), sum(stored[p] for p in rest) / sum(raw[p] for p in rest)


# What cannot be compressed


def measure_random(bench: Bench) -> None:
    """Judge what three tensors of random bits grow by: repacked, and by each codec, picked or not."""
    random = np.random.default_rng(0)
    size = 16 * BLOCK_ELEMENTS + 1000
    found = [random.integers(0, 1 << 32, size, np.uint32) for _ in range(3)]
    path = bench.folder("size") / "random"
    shutil.rmtree(path, ignore_errors=True)
    repo = Repository(path, init=True, durability="fast")
    for number, block in enumerate(found):
        repo.commit({"noise": block.view(np.float32)}, f"random {number}")
    repo.repack()
    commits = repo.stats().by_commit
    grown = sum(commit.stored_bytes for commit in commits) / sum(commit.raw_bytes for commit in commits)
    shutil.rmtree(path.parent)
    worst = 0.0
    for codec in (kind(entropy) for kind in (PackDelta, GroupedDelta, Planes) for entropy in (Zstd(), Deflate())):
        for block, base in zip(found[1:], found, strict=False):
            parts = (slice(at, at + BLOCK_ELEMENTS) for at in range(0, size, BLOCK_ELEMENTS))
            encoded = sum(len(codec.encode(block[part], base[part])) for part in parts)
            worst = max(worst, encoded / block.nbytes)
    assert grown <= ASKED_RANDOM, f"tensors of random bits grew to {grown:.4f} of their size"
    bench.report.figure(Figure("size", "random bits: stored / raw after a repack", grown, ASKED_RANDOM))
    bench.report.figure(Figure("size", "random bits: encoded / raw by the worst of the codecs", worst, ASKED_RANDOM))

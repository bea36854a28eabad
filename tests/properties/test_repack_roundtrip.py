"""Any history, pruned, repacked and collected in any order, loads as it was, and within the depth asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coral import DeltaConfig, Repository, WeightTensor
from coral.errors import CommitPruned
from coral.weights import DTYPES

NAMES = ("a", "b", "c")


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, WeightTensor]]:
    """Versions of a few tensors: moved a little, replaced, kept, renamed; in any dtype."""
    kinds = [(draw(st.sampled_from(list(DTYPES))), draw(st.sampled_from([(), (7,), (40, 33), (0, 4)]))) for _ in NAMES]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits: dict[str, Any] = {}
    versions = []
    for _ in range(draw(st.integers(2, 7))):
        for name, (dtype, shape) in zip(NAMES, kinds, strict=True):
            match draw(st.sampled_from(["near", "near", "keep", "random", "swap"])):
                case "keep" if name in bits:
                    continue
                case "near" if name in bits and dtype != "bool":
                    bits[name] = bits[name] + rng.integers(0, 9, bits[name].shape).astype(bits[name].dtype)
                case "swap" if name in bits and {"a", "b"} <= bits.keys() and kinds[0] == kinds[1]:
                    bits["a"], bits["b"] = bits["b"], bits["a"]
                case _:
                    raw = rng.integers(0, 256, (*shape, DTYPES[dtype].itemsize), np.uint8)
                    bits[name] = (raw & 1 if dtype == "bool" else raw).reshape(-1)
        versions.append(
            {
                name: WeightTensor(bits[name].copy().view(DTYPES[dtype].numpy).reshape(shape), dtype=dtype)
                for name, (dtype, shape) in zip(NAMES, kinds, strict=True)
            }
        )
    return versions


CONFIGS = st.builds(
    DeltaConfig,
    codec=st.sampled_from(["auto", "raw", "planes", "pack", "grouped"]),
    entropy=st.sampled_from(["deflate", "auto"]),
    level=st.sampled_from([None, 1, 6]),
    similarity_threshold=st.floats(0, 1),
    group_size=st.integers(2, 5),
    max_depth=st.integers(1, 2),
    min_size=st.sampled_from([0, 100]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("repack"), CONFIGS, st.booleans(), st.booleans()),
        st.tuples(st.just("prune"), st.integers(0, 6)),
        st.tuples(st.just("gc")),
        st.tuples(st.just("branch"), st.integers(0, 6)),
    ),
    min_size=1,
    max_size=4,
)


def facts(weights: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (t.dtype, t.shape, t.bytes().tobytes()) for name, t in weights.items()}


@settings(max_examples=settings().max_examples // 2)
@given(histories(), STEPS)
def test_a_history_survives_its_upkeep(versions: list[dict[str, WeightTensor]], steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repo = Repository(Path(folder) / "repo", init=True, durability="fast")
        made: dict[str, dict[str, WeightTensor]] = {}
        pruned: set[str] = set()
        for number, version in enumerate(versions):
            made[repo.commit(version, str(number))] = version
        for step in steps:
            match step:
                case ("repack", config, aggressive, patient):
                    repo.repack(aggressive, config=config, patient=patient)
                case ("prune", number):
                    commit = list(made)[number % len(made)]
                    if commit not in repo.held():
                        repo.prune([commit])
                        pruned.add(commit)
                case ("branch", number):
                    commit = list(made)[number % len(made)]
                    if commit not in pruned:
                        repo.branch(f"b{len(repo.branches())}", commit)
                case _:
                    repo.gc()
            _all_is_there(Repository(repo.path), made, pruned)


def _all_is_there(repo: Repository, made: dict[str, dict[str, WeightTensor]], pruned: set[str]) -> None:
    assert repo.fsck().ok
    for commit, version in made.items():
        try:
            loaded = repo.load(commit)
        except CommitPruned:
            assert commit in pruned
            continue
        assert commit not in pruned
        assert facts(loaded) == facts(version)
        assert all(chain.depth <= 2 for chain in loaded._stored.values())

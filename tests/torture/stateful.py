"""T15: random sequences of everything that a repository does, against a dict that cannot lose anything."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.reporting import with_reporter
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from memory import MemoryFileSystem
from oracle import Violation, _differs
from power_loss import Tally
from scenarios import CONFIG, Commit, Scenario, limits, same_names, state, weights

from coral import Repository
from coral.errors import CommitInUse, CommitPruned, RefExists, UnknownRef

NAMES = st.sampled_from(["main", "dev", "Dev", "exp/1", "exp", "a.b"])
TAGS = st.sampled_from(["v1", "V1", "v/1"])
KEYS = st.integers(1, 6)


class Machine(RuleBasedStateMachine):
    """A repository, and what it should hold: commits by id, where each ref points, what was pruned."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        self.fs = MemoryFileSystem()
        self.repo = Repository(self.fs, init=True)
        self.commits: dict[str, Commit] = {}
        self.parents: dict[str, tuple[str, ...]] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.metrics: dict[str, dict[str, float]] = {}
        self.pruned: set[str] = set()
        self.head = "main"

    @rule(key=KEYS, onto=st.none() | NAMES, state=st.booleans())
    def commit(self, key: int, onto: str | None, state: bool) -> None:
        self.fs.clock += 1
        made, branch = Commit(key, state=state), onto or self.head
        id = self.repo.commit(weights(made), made.message, branch=onto, state=_state(made))
        base = self.branches.get(branch, self.branches.get(self.head))
        self.parents[id] = (base,) if base else ()
        self.commits[id] = made
        self.branches[branch] = id

    @precondition(lambda self: self.branches)
    @rule(name=NAMES, data=st.data())
    def branch(self, name: str, data: Any) -> None:
        at = data.draw(st.sampled_from(sorted(self.branches)))
        if name in self.branches and self.branches[name] != self.branches[at]:
            _raises(RefExists, lambda: self.repo.branch(name, at=at))
        else:
            self.repo.branch(name, at=at)
            self.branches[name] = self.branches[at]

    @precondition(lambda self: self.branches)
    @rule(name=TAGS, force=st.booleans(), data=st.data())
    def tag(self, name: str, force: bool, data: Any) -> None:
        id = data.draw(st.sampled_from(sorted(self.branches.values())))
        if not force and self.tags.get(name, id) != id:
            _raises(RefExists, lambda: self.repo.tag(name, id))
        else:
            self.repo.tag(name, id, force=force)
            self.tags[name] = id

    @rule(name=TAGS)
    def delete_tag(self, name: str) -> None:
        if name in self.tags:
            self.repo.delete_tag(name)
            del self.tags[name]
        else:
            _raises(UnknownRef, lambda: self.repo.delete_tag(name))

    @rule(name=NAMES)
    def checkout(self, name: str) -> None:
        if name in self.branches:
            self.repo.checkout(name)
            self.head = name
        else:
            _raises(UnknownRef, lambda: self.repo.checkout(name))

    @rule(name=NAMES)
    def delete_branch(self, name: str) -> None:
        if name == self.head:
            _raises(RefExists, lambda: self.repo.delete_branch(name))
        elif name not in self.branches:
            _raises(UnknownRef, lambda: self.repo.delete_branch(name))
        else:
            self.repo.delete_branch(name)
            del self.branches[name]

    @precondition(lambda self: self.reachable())
    @rule(data=st.data())
    def prune(self, data: Any) -> None:
        id = data.draw(st.sampled_from(sorted(self.reachable())))
        if id in (*self.branches.values(), *self.tags.values()):
            _raises(CommitInUse, lambda: self.repo.prune(id))
        else:
            self.repo.prune(id)
            self.pruned.add(id)

    @precondition(lambda self: self.reachable())
    @rule(value=st.floats(allow_nan=False, allow_infinity=False), data=st.data())
    def annotate(self, value: float, data: Any) -> None:
        id = data.draw(st.sampled_from(sorted(self.reachable())))
        self.fs.clock += 1
        self.repo.annotate(id, metrics={"loss": value})
        self.metrics.setdefault(id, {})["loss"] = value

    @rule(aggressive=st.booleans())
    def repack(self, aggressive: bool) -> None:
        self.repo.repack(aggressive, config=CONFIG)

    @rule()
    def gc(self) -> None:
        self.repo.gc()

    @rule()
    def open_again(self) -> None:
        self.repo = Repository(self.fs)

    def reachable(self) -> set[str]:
        """The commits that refs lead to."""
        found: set[str] = set()
        waiting = [*self.branches.values(), *self.tags.values()]
        while waiting:
            if (id := waiting.pop()) not in found:
                found.add(id)
                waiting += self.parents[id]
        return found

    @invariant()
    def refs_are_where_they_should_be(self) -> None:
        got = (dict(self.repo.branches()), dict(self.repo.tags()), self.repo.head)
        assert got == (self.branches, self.tags, self.head)

    def teardown(self) -> None:
        """In the end everything that refs lead to is as it was made, by a process that opens it anew."""
        repo = Repository(self.fs)
        for id in self.reachable():
            assert repo.show(id).metrics == self.metrics.get(id, {})
            assert tuple(repo.show(id).parents) == self.parents[id]
            if id in self.pruned:
                _raises(CommitPruned, lambda id=id: repo.load(id))  # type: ignore[misc]
                continue
            loaded = repo.load(id)
            for name, want in weights(self.commits[id]).items():
                assert not _differs(loaded[name], want), f"SILENTLY WRONG: {name} of {id}"
            assert not _differs(repo.load_state(id), _state(self.commits[id])), f"SILENTLY WRONG: state of {id}"
        for name, tip in self.branches.items():
            assert {commit.id for commit in repo.log(name)} == self._above(tip)
        report = repo.fsck()
        assert report.ok, str(report)

    def _above(self, id: str) -> set[str]:
        found = {id}
        for parent in self.parents[id]:
            found |= self._above(parent)
        return found


_state = state


def _raises(kind: type[Exception], work: Any) -> None:
    try:
        work()
    except kind:
        return
    raise Violation(f"no {kind.__name__}")


def run(*, sequences: int, steps: int = 12, seed: int = 0) -> Tally:
    """So many sequences of up to so many steps each."""
    began, tally = time.perf_counter(), Tally()
    Machine.runs = 0
    options = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    said: list[str] = []  # the steps that fail, made short
    with limits(Scenario("", (), ())), same_names(), with_reporter(said.append):
        try:
            run_state_machine_as_test(seeded(seed)(Machine), settings=options)
        except Exception as error:  # noqa: BLE001 - whatever it is, it should not be
            steps = "\n".join([*said, *getattr(error, "__notes__", ())])
            tally.violations.append(f"seed {seed}: {type(error).__name__}: {error}\n{steps}")
    tally.cases, tally.seconds = Machine.runs, time.perf_counter() - began
    return tally

"""T9: the protocol of writers, repacks and garbage collections as a model, all of whose states are looked at.

Two tensors X and K, stored whole or as differences from each other, in packs of several objects. Writers reuse X, which
nothing leads to at first, or only something that is about to be pruned. Everybody may die between any two steps. In
every state, whatever refs lead to must be readable, from packs or from a trash; and once all is quiet, a last
collection must find it in packs. Nobody may be told that something is missing.

`python tests/torture/model.py [--full]` prints how many states there are, and the shortest way to lose something once a
step of the protocol is taken out.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

X, K = "X", "K"
Copy = tuple[str, str | None]  # what it is of, and what it is a difference from
Pack = frozenset[Copy]
Names = frozenset[str]
Packs = frozenset[Pack]

NOTHING: Names = frozenset()
NONE: Packs = frozenset()


def pack(*copies: Copy | str) -> Pack:
    """A pack; its name is what it holds, so that two of the same content are one."""
    return frozenset((copy, None) if isinstance(copy, str) else copy for copy in copies)


class Look(NamedTuple):
    """What a collection has read so far of one look around."""

    candidates: Packs = NONE
    needed: Names = NOTHING
    announced: Packs = NONE
    alive: Names = NOTHING


class Actor(NamedTuple):
    """Somebody at work: what it is, what comes next (None: it is over), and what it knows."""

    kind: str
    at: str | None
    number: int
    needs: Names = NOTHING  # announced objects
    packs: Packs = NONE  # announced packs
    look: Look = Look()
    mine: Packs = NONE  # in its trash
    todo: Packs = NONE  # condemned, or the copies that a writer relies on
    tries: int = 0
    dead: bool = False

    @property
    def over(self) -> bool:
        return self.at is None


class State(NamedTuple):
    packs: Packs
    refs: Names
    actors: tuple[Actor, ...]


@dataclass(frozen=True, slots=True)
class Protocol:
    """Which steps are taken; each is one that a mutant leaves out."""

    intent: bool = True  # objects are announced
    announce: bool = True  # packs are announced
    verify: bool = True  # a writer looks for what it reuses once more
    order: bool = True  # intents are read before refs
    remark: bool = True  # a second look
    put_back: bool = True  # what came alive is put back
    abandoned: bool = True  # what the dead left in the trash is put back
    own_trash: bool = True  # each collection has its own
    bases: bool = True  # bases of what is alive are alive
    again: bool = True  # announced packs in the trash are put back
    recall: bool = True  # from the trash of others, too
    fallback: bool = True  # trash is read
    taken: bool = True  # only what got its second name loses the first


@dataclass(frozen=True, slots=True)
class Setting:
    """Who is at work on what."""

    name: str
    packs: Packs
    refs: Names
    kinds: tuple[str, ...]


def settle(ids: Names, packs: Packs) -> tuple[dict[str, Pack], Names]:
    """The pack to go by for each of these, differences first, and what there is no way to."""
    return _settle(ids, packs)


@lru_cache(maxsize=1 << 16)
def _settle(ids: Names, packs: Packs) -> tuple[dict[str, Pack], Names]:
    copies = sorted(
        ((c, p) for p in packs for c in p), key=lambda found: (found[0][1] is None, str(sorted(found[1], key=str)))
    )
    settled: dict[str, Pack] = {}

    def find(id: str, path: tuple[str, ...]) -> bool:
        if id in settled:
            return True
        if id in path:
            return False
        for (of, base), where in copies:
            if of == id and (base is None or find(base, (*path, id))):
                settled[id] = where
                return True
        return False

    lost = frozenset(id for id in sorted(ids) if not find(id, ()))
    return settled, lost


def leads_to(refs: Names) -> Names:
    """All that refs lead to: a writer's commit to X."""
    return refs | {X} if any(ref.startswith("c") for ref in refs) else refs


@dataclass(slots=True)
class Model:
    protocol: Protocol
    setting: Setting
    states: int = 0
    problem: str = ""
    path: tuple[str, ...] = ()
    _seen: dict[State, tuple[State | None, str]] = field(default_factory=dict)

    def explore(self, *, track: bool = True) -> Model:
        """Look at every state that can be reached, or stop at the first that is bad; unless `track`, in less memory."""
        actors = tuple(Actor(kind, "start", n) for n, kind in enumerate(self.setting.kinds))
        start = State(self.setting.packs, self.setting.refs, actors)
        known = {hash(start)}
        self._seen[start] = (None, "")
        waiting = deque([start])
        while waiting:
            state = waiting.popleft() if track else waiting.pop()
            self.states += 1
            if problem := self._judge(state):
                self.problem, self.path = problem, self._way(state) if track else ()
                return self
            for what, after in self._after(state):
                after = _same(after)
                if hash(after) not in known:  # 64 bits: two of a million are the same once in 30 million runs
                    known.add(hash(after))
                    waiting.append(after)
                    if track:
                        self._seen[after] = (state, what)
        return self

    def _way(self, state: State) -> tuple[str, ...]:
        steps = []
        at: State | None = state
        while at is not None:
            at, what = self._seen[at]
            steps.append(what)
        return tuple(reversed(steps[:-1]))

    def _judge(self, state: State) -> str:
        wanted = leads_to(state.refs)
        seen = state.packs.union(*(actor.mine for actor in state.actors)) if self.protocol.fallback else state.packs
        if lost := settle(wanted, seen)[1]:
            return f"{', '.join(sorted(lost))} cannot be read"
        if any(actor.at == "refused" for actor in state.actors):
            return "a collection was told that something is missing"
        if all(actor.over for actor in state.actors):
            put_back = (
                state.packs.union(*(actor.mine for actor in state.actors)) if self.protocol.abandoned else state.packs
            )
            if lost := settle(wanted, put_back)[1]:
                return f"{', '.join(sorted(lost))} is in no pack once all is quiet"
        return ""

    def _after(self, state: State) -> list[tuple[str, State]]:
        found = []
        for number, actor in enumerate(state.actors):
            if actor.over:
                continue
            what = f"{actor.kind}{actor.number} {actor.at}"
            after = self._step(state, actor)
            found.append((what, _with(state, number, after)))
            dead = actor._replace(at=None, needs=NOTHING, packs=NONE, look=Look(), todo=NONE, tries=0, dead=True)
            found.append((f"{actor.kind}{actor.number} dies", state._replace(actors=_put(state.actors, number, dead))))
        return found

    def _step(self, state: State, actor: Actor) -> tuple[Actor, Packs, Names, Actor | None]:
        """The actor, the packs, the refs and the trash of another one after the actor's next step."""
        match actor.kind:
            case "W" | "A":
                return (*self._writer(state, actor), None)
            case "R" | "S" if actor.at in ("start", "publish"):
                return (*self._repack(state, actor), None)
            case "P" if actor.at == "start":  # the note, and then it collects
                return actor._replace(at=self._first()), state.packs, state.refs - {K}, None
            case _:
                return self._collect(state, actor)

    # -- a writer: reuses X, or has it written

    def _writer(self, state: State, actor: Actor) -> tuple[Actor, Packs, Names]:
        packs, refs, rule = state.packs, state.refs, self.protocol
        commit = f"c{actor.number if actor.kind == 'W' else ''}"  # A does again what one that died has done
        match actor.at:
            case "start":
                settled, _ = settle(frozenset({X}), packs.union(*(other.mine for other in state.actors)))
                chain = frozenset(settled.values()) if X in settled else NONE
                mine = pack(commit) if chain else pack(commit, X)
                announced = frozenset({mine}) if rule.announce else NONE
                at = "announce" if chain else "ref"
                return actor._replace(at=at, todo=chain, packs=announced), packs | {mine}, refs
            case "announce":
                return actor._replace(at="verify", needs=frozenset({X} if rule.intent else ())), packs, refs
            case "verify":
                if actor.todo <= packs or not rule.verify:
                    return actor._replace(at="ref"), packs, refs
                again = frozenset({pack(X)}) if rule.announce else NONE
                return actor._replace(at="write", packs=actor.packs | again), packs, refs
            case "write":
                return actor._replace(at="ref"), packs | {pack(X)}, refs
            case "ref":
                return actor._replace(at="done"), packs, refs | {commit}
            case _:
                return actor._replace(at=None, needs=NOTHING, packs=NONE, todo=NONE), packs, refs

    # -- a repack: R stores X as a difference from K, S K as one from X; then they collect

    def _repack(self, state: State, actor: Actor) -> tuple[Actor, Packs, Names]:
        of, base = (X, K) if actor.kind == "R" else (K, X)
        new = pack((of, base))
        if actor.at == "start":
            readable = state.packs.union(*(other.mine for other in state.actors))
            wanted = {of, base} <= leads_to(state.refs)
            if not wanted or settle(frozenset({of, base}), readable)[1]:
                return actor._replace(at=self._first()), state.packs, state.refs
            needs = frozenset({base}) if self.protocol.intent else NOTHING
            packs = frozenset({new}) if self.protocol.announce else NONE
            return actor._replace(at="publish", needs=needs, packs=packs), state.packs, state.refs
        return actor._replace(at=self._first(), needs=NOTHING, packs=NONE), state.packs | {new}, state.refs

    # -- a collection

    def _collect(self, state: State, actor: Actor) -> tuple[Actor, Packs, Names, Actor | None]:
        packs, refs, rule, look = state.packs, state.refs, self.protocol, actor.look
        again = actor.at.startswith("again") if actor.at else False
        prefix, first, second = ("again ", "again intents", "again refs") if again else ("", "intents", "refs")
        if not rule.order:
            first, second = second, first
        match actor.at:
            case "start":  # what is abandoned is put back
                left = [other for other in state.actors if other.mine and (other.over or not rule.own_trash)]
                if rule.abandoned and left and rule.own_trash:
                    other = left[0]
                    return actor, packs | other.mine, refs, other._replace(mine=NONE)
                return actor._replace(at=first), packs, refs, None
            case "intents" | "again intents":
                needed = NOTHING.union(*(other.needs for other in state.actors))
                announced = NONE.union(*(other.packs for other in state.actors))
                look = look._replace(candidates=NONE if again else packs, needed=needed, announced=announced)
                return (
                    actor._replace(at=second if first == actor.at else f"{prefix}settle", look=look),
                    packs,
                    refs,
                    None,
                )
            case "refs" | "again refs":
                look = look._replace(alive=leads_to(refs))
                return (
                    actor._replace(at=second if first == actor.at else f"{prefix}settle", look=look),
                    packs,
                    refs,
                    None,
                )
            case "settle":
                return self._plan(state, actor)
            case "move":
                # what lives in packs that go is written anew, in the form that it has
                settled, _ = self._settled(look.alive | look.needed, look.candidates)
                moved = frozenset(copy for old in actor.todo for copy in old if settled.get(copy[0]) == old)
                new = frozenset({moved}) if moved else NONE
                after = actor._replace(
                    at="link", packs=new if rule.announce else NONE, todo=actor.todo - new, look=Look()
                )
                return after, packs | new, refs, None
            case "link":
                taken = actor.todo & packs if rule.taken else actor.todo
                return (
                    actor._replace(at="unlink", mine=actor.mine | (actor.todo & packs), todo=taken),
                    packs,
                    refs,
                    None,
                )
            case "unlink":
                at = self._first("again ") if rule.remark else "remove"
                return actor._replace(at=at, tries=0, todo=NONE), packs - actor.todo, refs, None
            case "again settle":
                return self._restore(state, actor)
            case "back":
                return (
                    actor._replace(at=self._first("again "), mine=actor.mine - actor.todo, todo=NONE),
                    packs | actor.todo,
                    refs,
                    None,
                )
            case _:
                over = actor._replace(at=None, mine=NONE, packs=NONE, look=Look(), todo=NONE, tries=0)
                if not rule.own_trash:
                    other = next((o for o in state.actors if o.mine and o.number != actor.number), None)
                    return over, packs, refs, other and other._replace(mine=NONE)
                return over, packs, refs, None

    def _first(self, prefix: str = "") -> str:
        return prefix + ("intents" if self.protocol.order else "refs")

    def _settled(self, ids: Names, packs: Packs) -> tuple[dict[str, Pack], Names]:
        settled, lost = settle(ids, packs)
        return (settled if self.protocol.bases else {id: p for id, p in settled.items() if id in ids}), lost

    def _plan(self, state: State, actor: Actor) -> tuple[Actor, Packs, Names, Actor | None]:
        packs, refs, look = state.packs, state.refs, actor.look
        settled, lost = self._settled(look.alive | look.needed, packs)
        if lost and actor.tries < 2:
            back = self._recalled(state, lost)
            return actor._replace(at=self._first(), tries=actor.tries + 1, look=Look()), packs | back, refs, None
        if lost & look.alive:
            return actor._replace(at="refused"), packs, refs, None
        used = {(id, where) for id, where in settled.items()}
        go = frozenset(
            p for p in look.candidates & packs if p not in look.announced and any((of, p) not in used for of, _ in p)
        )
        if not go:
            return actor._replace(at="remove", look=Look(), tries=0), packs, refs, None
        if any(p in go for _, p in used):
            return actor._replace(at="move", todo=go, look=look._replace(candidates=packs), tries=0), packs, refs, None
        return actor._replace(at="link", todo=go, look=Look(), tries=0), packs, refs, None

    def _recalled(self, state: State, lost: Names) -> Packs:
        if not self.protocol.recall:
            return NONE
        others = NONE.union(*(other.mine for other in state.actors))
        return frozenset(p for p in others if any(of in lost for of, _ in p))

    def _restore(self, state: State, actor: Actor) -> tuple[Actor, Packs, Names, Actor | None]:
        packs, refs, look = state.packs, state.refs, actor.look
        _, lost = self._settled(look.alive | look.needed, packs)
        living = frozenset(
            p for p in actor.mine if any(of in lost for of, _ in p) or (self.protocol.again and p in look.announced)
        )
        if living and self.protocol.put_back:
            return actor._replace(at="back", todo=living, look=Look()), packs, refs, None
        if lost & look.alive and self.protocol.put_back:
            if actor.tries < 2:
                back = self._recalled(state, lost)
                return (
                    actor._replace(at=self._first("again "), tries=actor.tries + 1, look=Look()),
                    packs | back,
                    refs,
                    None,
                )
            return actor._replace(at="refused"), packs | actor.mine, refs, None
        return actor._replace(at="remove", look=Look(), tries=0), packs, refs, None


def _put(actors: tuple[Actor, ...], number: int, actor: Actor) -> tuple[Actor, ...]:
    return (*actors[:number], actor, *actors[number + 1 :])


def _with(state: State, number: int, after: tuple[Actor, Packs, Names, Actor | None]) -> State:
    actor, packs, refs, other = after
    actors = _put(state.actors, number, actor)
    if other is not None:
        actors = _put(actors, next(n for n, a in enumerate(actors) if a.number == other.number), other)
    return State(packs, refs, actors)


def _same(state: State) -> State:
    """The same state for all in which collections have changed places."""
    free = [n for n, actor in enumerate(state.actors) if actor.kind == "G"]
    if len(free) < 2:
        return state
    actors = list(state.actors)
    order = sorted((actors[n] for n in free), key=lambda actor: (str(actor.at), hash(actor[3:])))
    for n, actor in zip(free, order, strict=True):
        actors[n] = actor._replace(number=n)
    return state._replace(actors=tuple(actors))


APART, TOGETHER = frozenset({pack(X), pack(K)}), frozenset({pack(X, K)})
DIFFERENCE = frozenset({pack((X, K)), pack(K)})
BOTH: Names = frozenset({X, K})
ONE: Names = frozenset({K})

SETTINGS = (
    Setting("writer, gc", APART, ONE, ("W", "G")),
    Setting("writer, gc; one pack", TOGETHER, ONE, ("W", "G")),
    Setting("writer, gc; a difference", DIFFERENCE, ONE, ("W", "G")),
    Setting("again what died, gc", frozenset({pack(X), pack("c"), pack(K)}), ONE, ("A", "G")),
    Setting("repack, gc", APART, BOTH, ("R", "G")),
    Setting("repack, prune; a difference", DIFFERENCE, BOTH, ("R", "P")),
    Setting("repack, the other way round", APART, BOTH, ("R", "S")),
    Setting("writer, gc, gc", APART, ONE, ("W", "G", "G")),
    Setting("writer, repack, prune", APART, BOTH, ("W", "R", "P")),
)
LARGE = (
    Setting("2 writers, 2 gc", APART, ONE, ("W", "W", "G", "G")),
    Setting("2 writers, 2 gc; one pack", TOGETHER, ONE, ("W", "W", "G", "G")),
    Setting("2 writers, 2 gc; a difference", DIFFERENCE, ONE, ("W", "W", "G", "G")),
    Setting("2 repacks, 1 gc", APART, BOTH, ("R", "S", "G")),
    Setting("2 repacks, 1 gc; one pack", TOGETHER, BOTH, ("R", "S", "G")),
    Setting("1 writer, 1 repack, 1 gc", APART, BOTH, ("W", "R", "G")),
    Setting("1 writer, 1 repack, 1 gc; one pack", TOGETHER, ONE, ("W", "R", "G")),
    Setting("1 writer, 1 repack, 1 prune; one pack", TOGETHER, BOTH, ("W", "R", "P")),
)

MUTANTS = {
    "no intent": Protocol(intent=False),
    "packs are not announced": Protocol(announce=False),
    "no verify": Protocol(verify=False),
    "refs before intents": Protocol(order=False),
    "no second look": Protocol(remark=False),
    "nothing is put back": Protocol(put_back=False),
    "the abandoned is not put back": Protocol(abandoned=False),
    "one trash for all": Protocol(own_trash=False),
    "bases are not kept": Protocol(bases=False),
    "announced packs stay in the trash": Protocol(again=False),
    "nothing is recalled from others": Protocol(recall=False),
    "the trash is not read": Protocol(fallback=False),
    "unlinked though it could not be linked": Protocol(taken=False),
}


def killed(protocol: Protocol) -> Model | None:
    """The first of the small settings in which a mutant loses something."""
    for setting in SETTINGS:
        model = Model(protocol, setting).explore()
        if model.problem:
            return model
    return None


def main() -> int:
    failed = False
    for setting in SETTINGS + (LARGE if "--full" in sys.argv else ()):
        began = time.perf_counter()
        model = Model(Protocol(), setting).explore(track=setting in SETTINGS)
        failed = failed or bool(model.problem)
        print(
            f"{setting.name:45} {model.states:9,} states {time.perf_counter() - began:7.1f} s  "
            f"{model.problem or 'nothing found'}"
        )
        if model.problem:
            print("   ", "; ".join(model.path))
    for name, protocol in MUTANTS.items():
        found = killed(protocol)
        failed = failed or found is None
        print(
            f"{'killed' if found else 'SURVIVED':8} {name}: "
            + (f"{found.setting.name}: {found.problem}" if found else "")
        )
        if found:
            print("   ", "; ".join(found.path))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

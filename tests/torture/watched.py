"""What a check of a state has looked at, so that states which differ in nothing of that are checked once.

A check is deterministic: what it asks next depends on the answers it got so far, and on nothing else. So the questions
that one check asked of the state it was given, with the answers, decide how it goes in every state that gives the same
answers. Most of the states that a loss of power can leave differ in files of `tmp/` alone, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from memory import ROOT, MemoryFileSystem, MemoryReadFile, Tree, _File, _Folder

from coral.filesystem import FileStat

Question = tuple[str, str]
"""`all`: everything at a path; `names`: of a folder; `size`: of all files; `kind`: whether it is a file or a folder."""


class Watched(MemoryFileSystem):
    """A filesystem that writes down what is asked of the tree it was made `of`, each question once.

    What it was changed to meanwhile is not the tree's: what is asked about a path is written down all the same.
    """

    def __init__(self, *, clock: float = 1_700_000_000.0, boot: str = "boot-1") -> None:
        super().__init__(clock=clock, boot=boot)
        self.questions: dict[Question, None] = {}
        self._whole: set[str] = set()

    def ask(self, kind: str, path: str) -> None:
        """Write a question down, unless all that there is above its path has been asked for."""
        if (kind, path) in self.questions:
            return
        at = path
        while at not in self._whole:
            if not at:
                self.questions[kind, path] = None
                if kind == "all":
                    self._whole.add(path)
                return
            at = at.rpartition("/")[0]

    def _node(self, path: str) -> _File | _Folder:
        self.ask("kind", path)
        return super()._node(path)

    def _place(self, path: str) -> tuple[_Folder, str]:
        self.ask("kind", path)
        return super()._place(path)

    def open(self, path: str) -> MemoryReadFile:
        self.ask("all", path)
        return super().open(path)

    def read(self, path: str, limit: int) -> bytes:
        self.ask("all", path)
        return super().read(path, limit)

    def data(self, path: str) -> bytes:
        self.ask("all", path)
        return super().data(path)

    def stat(self, path: str) -> FileStat:
        self.ask("size", path)
        return super().stat(path)

    def usage(self) -> int:
        self.ask("size", "")
        return sum(len(data) for data in super().tree().files.values())

    def link(self, source: str, target: str) -> None:
        self.ask("all", source)
        super().link(source, target)

    def list(self, path: str) -> list[str]:
        self.ask("names", path)
        return super().list(path)

    def rmdir(self, path: str) -> None:
        self.ask("names", path)
        super().rmdir(path)

    def replace(self, source: str, target: str) -> None:
        self.ask("all", source)
        self.ask("all", target)
        super().replace(source, target)

    def tree(self) -> Tree:
        self.ask("all", "")
        return super().tree()

    def fingerprint(self, *folders: str) -> int:
        for folder in folders:
            self.ask("all", folder)
        return super().fingerprint(*folders)


class Digests:
    """A tree, and a number for all that lies at each of its inodes: equal ones hold the same, by names and bytes.

    A file with several names differs from one with one: a rename from one of them to another does nothing.
    """

    def __init__(self, tree: Tree) -> None:
        self._folders, self._files = tree
        self._known: dict[int, int] = {}
        self._names: dict[int, list[str]] = {}
        self._walk("", ROOT)

    def _walk(self, at: str, folder: int) -> None:
        for name, inode in self._folders[folder].items():
            if inode in self._folders:
                self._walk(f"{at}{name}/", inode)
            else:
                self._names.setdefault(inode, []).append(at + name)

    def of(self, inode: int = ROOT) -> int:
        """The number of a file or a folder."""
        if inode not in self._known:
            if inode in self._folders:
                entries = self._folders[inode].items()
                self._known[inode] = hash(frozenset((name, self.of(child)) for name, child in entries))
            else:
                names = self._names[inode]
                self._known[inode] = hash((self._files[inode], frozenset(names) if len(names) > 1 else None))
        return self._known[inode]

    def answer(self, question: Question) -> Hashable:
        """What the tree has to say to a question."""
        kind, path = question
        inode, above = ROOT, path.split("/") if path else []
        while above:
            if inode not in self._folders:
                return "not a folder"
            found = self._folders[inode].get(above.pop(0))
            if found is None:
                return "no folder" if above else "nothing"
            inode = found
        folder = self._folders.get(inode)
        match kind:
            case "all":
                return self.of(inode)
            case "size":
                return (folder is None, self._size(inode))
            case "names" if folder is not None:
                return frozenset(folder)
        return "file" if folder is None else "folder"

    def _size(self, inode: int) -> int:
        return sum(len(self._files[each]) for each in self._below(inode))

    def _below(self, inode: int) -> set[int]:
        """The inodes of all files from one on: a file with two names is there once."""
        if inode not in self._folders:
            return {inode}
        return set().union(*(self._below(each) for each in self._folders[inode].values()))


@dataclass(slots=True)
class _Asked:
    """The question that every check asks at this point, and how each went on by the answer; None: it ended well."""

    question: Question | None = None
    then: dict[Hashable, _Asked] = field(default_factory=dict)


class Judged:
    """The states that were found good, as the questions that the check asked of them."""

    def __init__(self) -> None:
        self._first: dict[Hashable, _Asked] = {}

    def knows(self, case: Hashable, state: Digests) -> bool:
        """Whether a state gives the same answers as one that was found good in the same case."""
        at = self._first.get(case)
        while at is not None and at.question is not None:
            at = at.then.get(state.answer(at.question))
        return at is not None

    def add(self, case: Hashable, state: Digests, questions: Iterable[Question]) -> None:
        """Note that a state was found good, and what was asked of it for that."""
        path = list(_needed(state, questions))
        at = self._first.setdefault(case, _Asked(path[0] if path else None))
        for question, after in zip(path, [*path[1:], None], strict=True):
            assert at.question == question, f"the check does not do the same again: {question}, not {at.question}"
            at = at.then.setdefault(state.answer(question), _Asked(after))
        assert at.question is None, f"the check does not do the same again: it ends, and does not ask {at.question}"


def _needed(state: Digests, questions: Iterable[Question]) -> Iterator[Question]:
    """The questions but for those about what a listing of its folder has shown not to be there."""
    listed: set[str] = set()
    for kind, path in questions:
        parts = path.split("/") if path else []
        above = [("/".join(parts[:n]), "/".join(parts[: n + 1])) for n in range(len(parts))]
        if any(folder in listed and state.answer(("kind", at)) == "nothing" for folder, at in above):
            continue
        if kind == "names":
            listed.add(path)
        yield kind, path

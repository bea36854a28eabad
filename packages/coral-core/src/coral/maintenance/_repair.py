"""Repairing: what is whole is gathered from wherever it is, what is derived is made anew, the rest is set aside.

1. every damaged pack gets a second name in the quarantine; what is whole in it is written into a new pack; then it
   loses its first name
2. packs that an interrupted collection left in the trash are put back; index files that are damaged are set aside
3. what is lost still is looked for in the quarantine, which may hold what an interrupted repair had set aside, and
   then asked of other copies of the repository: remotes
4. notes and refs are mended from other copies, or as far as what is left of them says
5. all is checked again, until nothing gets better

Nothing is deleted, and at no moment has anything that is whole less than one name: it may be interrupted anywhere. What
the disk cannot read now may be whole later: it stays where it is, and so do the refs that may lead to it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

from coral import _json
from coral.errors import CorruptObject, NewerFormat
from coral.filesystem import FileSystem
from coral.maintenance._fsck import Examined, examine
from coral.maintenance._gathering import Gathered, Source
from coral.maintenance._mending import mend_refs
from coral.maintenance._quarantine import Quarantine
from coral.maintenance._report import FsckReport, Problem
from coral.maintenance._salvage import is_intact
from coral.maintenance._scrubbing import unreadable_in
from coral.maintenance._trash import Trash
from coral.objects import Note, decode_tree
from coral.store import Operation, Store, intent, intents
from coral.store._files import LIMIT, make_folder, put_if_absent, seal, unseal
from coral.store._format import FOLDERS, FORMAT
from coral.store._pack import directory_of
from coral.store._partial import made_here, partial_content

__all__ = ["repair", "restore_format"]

_log = logging.getLogger("coral")

_ROUNDS = 8
_NAMED = 8  # files that an action names


def repair(store: Store, sources: Sequence[Source] = ()) -> FsckReport:
    """Check a repository, and mend what can be mended; the report says what was, and what is left.

    Damaged files go to quarantine/, and stay there. It may be interrupted at any time, and called again.
    """
    with intent(store.fs, "fsck", []) as operation:
        work = _Repair(store, operation, sources)
        now = first = examine(store)
        seen = list(now.report.problems)
        for _ in range(_ROUNDS):  # what is mended may lead to more that is lost
            if now.report.ok:
                break
            came = work.round(now)
            unreadable_in(store).clear()
            before, now = now, examine(store)
            seen += now.report.problems
            if not came and now.report.problems == before.report.problems:
                break
    report = now.report
    if left_alone := sorted(unreadable_in(store)):
        some = ", ".join(left_alone[:_NAMED])
        work.actions.append(f"{len(left_alone)} files cannot be read, and were left alone: {some}")
    if now is not first:
        left = set(report.problems)
        report.repaired = [problem for problem in dict.fromkeys(seen) if problem not in left]
        report.actions = list(dict.fromkeys(work.actions))
        report.quarantined = work.quarantine.paths
        _log.info("%s: repaired: %s", store.fs.root, report)
    return report


def restore_format(fs: FileSystem) -> bool:
    """Write the file that says which format a repository has, where that is lost or damaged; whether it did.

    There is one format so far: a repository whose packs this coral reads has it.
    """
    content = seal(_json.dumps({"format": FORMAT}))
    for folder in FOLDERS:  # empty ones get lost together with it
        make_folder(fs, folder, durable=True)
    try:
        unseal(fs.read("format", 4096), "format")
        return False
    except FileNotFoundError:
        return put_if_absent(fs, "format", content, durable=True)
    except CorruptObject:
        Quarantine(fs).replace("format", content)
        return True


class _Repair:
    def __init__(self, store: Store, operation: Operation, sources: Sequence[Source]) -> None:
        self._store = store
        self._fs = store.fs
        self._operation = operation
        self.quarantine = Quarantine(store.fs)
        self.actions: list[str] = []
        self._gathered = Gathered(store, operation, sources, self.actions)

    def round(self, examined: Examined) -> bool:
        """Mend what can be mended of what was found; whether something came, which what is left has to wait for."""
        unreadable, before = unreadable_in(self._store), len(self._gathered)
        # an index is only derived, and goes in any case
        problems = [p for p in examined.report.problems if p.path not in unreadable or p.path.startswith("index/")]
        if any(problem.path == "format" for problem in problems) and restore_format(self._fs):
            self.actions.append("format: written anew")
        packs = {p.path for p in problems if p.path.startswith(("packs/", "trash/"))}
        self._mend_packs(sorted(packs))
        self._put_back(examined)
        self._set_aside(problems)
        self._store.index.refresh()
        self._store.index.cover()
        lost = [p.object for p in examined.report.problems if p.object and not examined.found.has(p.object)]
        self._gathered.bring(lost, examined)
        blind = any(not path.startswith("index/") for path in unreadable)  # nobody can tell what is lost
        if any(problem.path == "partial" for problem in problems) and not blind:
            self._mend_partial(examined)
        if len(self._gathered) != before:  # notes and refs, once it is known what has come
            return True
        self._mend_notes(problems, examined)
        damaged = [p.path for p in problems if p.path.startswith("refs/")]
        if damaged and not blind:
            self.actions += mend_refs(self._store, self.quarantine, examined, damaged, self._gathered)
        return False

    # -- packs ------------------------------------------------------------------------------------------------------

    def _mend_packs(self, paths: list[str]) -> None:
        """Set damaged packs aside, once what is whole in them is elsewhere.

        All of them have their second names before the first is written: they may have changed places.
        """
        kept: dict[str, str] = {}
        for path in paths:
            try:
                better_left = not path.endswith(".pack") or self._is_better_left(path)
                if not better_left and path not in unreadable_in(self._store):
                    kept[path] = self.quarantine.keep(path)
            except FileNotFoundError:
                continue
            except CorruptObject:  # a folder, a link, a pipe
                with suppress(FileNotFoundError):
                    if path not in unreadable_in(self._store):
                        self.quarantine.take(path)
        written = {name for path, second in kept.items() if (name := self._gathered.rescue(second, _name_of(path)))}
        for path, second in kept.items():
            if second in unreadable_in(self._store):
                continue
            if not (path.startswith("packs/") and _name_of(path) in written):
                with suppress(FileNotFoundError):
                    self._fs.unlink(path)
                self.actions.append(f"{path}: set aside")
            self._store.index.forget(_name_of(path))
        for folder in {path.rpartition("/")[0] for path in kept}:
            with suppress(FileNotFoundError):  # the trash of a collection that has ended
                self._fs.fsync_dir(folder)
        for path in paths:  # what is no pack at all
            if not path.endswith(".pack"):
                with suppress(FileNotFoundError):
                    self.quarantine.take(path)

    def _is_better_left(self, path: str) -> bool:
        """Whether a pack is itself whole: what is wrong is elsewhere, or a newer coral's."""
        file = self._fs.open(path)
        try:
            directory = directory_of(file, _name_of(path))
            return all(is_intact(directory, file, entry) for entry in directory.entries())
        except NewerFormat:
            return True
        except (CorruptObject, EOFError):
            return False
        finally:
            file.close()

    def _put_back(self, examined: Examined) -> None:
        """Give packs that an interrupted collection left in the trash their names back, as the next one would."""
        folders = self._fs.list("trash")  # before the intents: each has one before it has a folder
        alive = {found.name for found in intents(self._fs) if found.alive}
        for name in folders:
            if name not in alive:
                trash = Trash(self._fs, name)
                there = set(self._fs.list("packs"))
                packs = [pack for pack in trash.packs() if f"{pack}.pack" not in there]
                if packs and not examined.report.ok:
                    trash.put_back(packs)
                    self.actions.append(f"trash/{name}: {len(packs)} packs put back")

    # -- small files ------------------------------------------------------------------------------------------------

    def _set_aside(self, problems: list[Problem]) -> None:
        """Index files are only derived; what a file of its own says, and is damaged, has to be said again."""
        for path in [p.path for p in problems]:
            if path.startswith(("index/", "remotes/", "pushes/")):
                with suppress(FileNotFoundError):
                    self.quarantine.take(path)
                    self.actions.append(f"{path}: set aside")
                if path.startswith("remotes/"):
                    self.actions.append(f"the remote of {path} is not known any more: add it again, with add_remote")

    def _mend_partial(self, examined: Examined) -> None:
        """Say of a clone of some weights again which these are: those that it has of all that was fetched."""
        held, lacking, found = set[str](), set[str](), examined.found
        for id in set(examined.report.whole) - found.pruned - made_here(self._fs):
            tree = decode_tree(self._store.read_object("tree", found.commits[id].tree), f"the tree of {id}")
            for name, entry in tree.items():
                (held if found.has(entry.id) else lacking).add(name)
        held -= lacking
        if held:
            self.quarantine.replace("partial", partial_content(held))
            self.actions.append(f"partial: the weights of this clone are {', '.join(sorted(held))}")

    def _mend_notes(self, problems: list[Problem], examined: Examined) -> None:
        for path in [p.path for p in problems if p.path.startswith("notes/")]:
            commit = path.split("/")[1]
            content = self._gathered.note(path, commit)
            if content is not None:
                self.quarantine.replace(path, content)
                self.actions.append(f"{path}: restored")
                continue
            said = b""
            with suppress(OSError, CorruptObject):
                said = self._fs.read(path, LIMIT)
            if b'"pruned":true' in said and commit not in examined.report.whole:
                self._store.add_note(commit, Note(pruned=True, time=self._fs.now(), local=self._is_local(said, commit)))
            with suppress(FileNotFoundError):
                self.quarantine.take(path)
                self.actions.append(f"{path}: set aside; what it said of commit {commit[:12]} is lost")

    def _is_local(self, said: bytes, commit: str) -> bool:
        """Whether a damaged note said of this copy alone that it lacks a commit.

        In doubt it did, where there are remotes: they may hold what a push of the other kind of note would free.
        """
        as_prune_says = f'{{"commit":"{commit}","pruned":true,'.encode() in said
        return b'"local":true' in said or (not as_prune_says and bool(self._fs.list("remotes")))


def _name_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".pack")

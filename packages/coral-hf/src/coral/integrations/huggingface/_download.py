"""Bringing a model into the cache with as few bytes as can be, and none that is not checked.

1. a file whose SHA-256 is that of one that was here before: nothing is fetched
2. a tensor that `coral.json` gives the id of one that is here: nothing is fetched
3. a tensor that the delta pack has, and whose base is here: the pack is fetched, if that is shorter
4. any other tensor that `coral.json` names: its range of the file
5. the whole file, where there is no `coral.json`, it is about other files, or what it led to was wrong

What is put together by 2 to 4 is the file again: its header is fetched, too, and compared with `coral.json`, and then
header and tensors with the file's SHA-256. So whatever is known by a SHA-256 (1) was compared with it as a whole.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from coral import Commit, WeightTensor
from coral.errors import (
    CorruptObject,
    LimitExceeded,
    MissingExtra,
    NewerFormat,
    UnsafeInput,
    UnsupportedValue,
    printable,
    storage_errors,
)
from coral.integrations.huggingface._cache import Cache
from coral.integrations.huggingface._deltas import admit
from coral.integrations.huggingface._models import DownloadStats, HubFile, Snapshot
from coral.integrations.huggingface._safetensors import Place, as_tensor, read_header
from coral.integrations.huggingface._sidecar import LARGEST, NAME, Claimed, Sidecar
from coral.integrations.huggingface._transfer import NoRanges, Transfer
from coral.objects import TensorEntry
from coral.store import Operation, intent

__all__ = ["download", "read_sidecar"]

_log = logging.getLogger("coral")


def download(
    cache: Cache, snapshot: Snapshot, transfer: Transfer, sidecar: Sidecar | None, *, asked: str | None
) -> tuple[Commit, DownloadStats]:
    """Bring a model into the cache; its commit there, and what that took."""
    files = [snapshot.files[path] for path in snapshot.info.weight_files]
    with (
        storage_errors(f"downloading {snapshot.info.repo_id}"),
        TemporaryDirectory(dir=cache.incoming) as folder,
        intent(cache.repo.store.fs, "fetch", []) as operation,
    ):
        work = _Work(cache, snapshot, transfer, operation, Path(folder))
        work.bring(files, sidecar)
        names = {file.sha256: work.of_file[file.path] for file in files if file.sha256}
        commit = cache.keep(work.weights, snapshot.info.repo_id, snapshot.info.revision, asked=asked, files=names)
        stats = DownloadStats.of(
            len(work.weights),
            work.full,
            work.delta,
            transferred=transfer.fetched,
            whole=sum(file.size for file in files),
        )
        work.weights.clear()  # they are maps of files in the folder
    return commit, stats


def read_sidecar(snapshot: Snapshot, transfer: Transfer, folder: Path) -> Sidecar | None:
    """coral.json, if there is one, it can be read, and it is about the weight files that are there.

    Raises StorageError.
    """
    if NAME not in snapshot.files:
        return None
    try:
        if (size := snapshot.files[NAME].size) > LARGEST:
            raise LimitExceeded(f"{NAME} has {size} bytes; {LARGEST} is the limit")
        with storage_errors(f"downloading {NAME}"), TemporaryDirectory(dir=folder) as inner:
            path = Path(inner) / NAME
            transfer.whole(snapshot.files[NAME], path)
            found = Sidecar.of(path.read_bytes())
    except (UnsafeInput, CorruptObject) as error:
        _log.warning("%s: %s: what could be saved by it is fetched", snapshot.info.repo_id, error)
        return None
    files = {path: snapshot.files[path].sha256 for path in snapshot.info.weight_files}
    if found.files != files:
        _log.info("%s: %s is about other weight files than are there", snapshot.info.repo_id, NAME)
        return None
    return found


@dataclass(slots=True)
class _Work:
    """A download under way."""

    cache: Cache
    snapshot: Snapshot
    transfer: Transfer
    operation: Operation
    folder: Path
    weights: dict[str, WeightTensor] = field(default_factory=dict)
    of_file: dict[str, list[str]] = field(default_factory=dict)
    full: int = 0
    delta: int = 0

    def bring(self, files: list[HubFile], sidecar: Sidecar | None) -> None:
        """Have the tensors of all files in `weights`."""
        known = self.cache.files()
        left = []
        for file in files:
            equal = known.get(file.sha256 or "")
            if equal is not None:
                self.operation.needs([equal[0].id])
                self._add(file, self.cache.load(*equal))
            else:
                left.append(file)
        claims: dict[str, dict[str, Claimed]] = {file.path: {} for file in left}
        for name, claimed in (sidecar.tensors if sidecar else {}).items():
            if claimed.file in claims:
                claims[claimed.file][name] = claimed
        wanted = {claimed.id: claimed for of_file in claims.values() for claimed in of_file.values()}
        here, came = self.cache.holds(wanted), set[str]()
        if sidecar:
            self.operation.needs(here)
            came = self._deltas(sidecar, {id: claimed for id, claimed in wanted.items() if id not in here})
        for file in left:
            self._file(file, claims[file.path], here, came)

    def _add(self, file: HubFile, weights: Mapping[str, WeightTensor]) -> None:
        for name in weights:
            if name in self.weights:
                raise UnsafeInput(
                    f"{self.snapshot.info.repo_id}: tensor {name!r} is in {file.path} and in another file"
                )
        self.weights.update(weights)
        self.of_file[file.path] = list(weights)

    def _deltas(self, sidecar: Sidecar, lost: Mapping[str, Claimed]) -> set[str]:
        """Fetch the delta pack if it is shorter than what it stands for; the ids of what came with it."""
        delta = sidecar.delta
        if delta is None or delta.file not in self.snapshot.files:
            return set()
        pack = self.snapshot.files[delta.file]
        bases = self.cache.holds({base for id, base in delta.tensors.items() if id in lost and base})
        usable = {id for id, base in delta.tensors.items() if id in lost and (base is None or base in bases)}
        if sum(lost[id].place.nbytes for id in usable) <= pack.size:
            return set()
        self.operation.needs(bases)
        path = self.folder / "pack"
        try:
            self.transfer.whole(pack, path)
            return admit(self.cache.repo.store, self.operation, path, delta.pack, usable)
        except (CorruptObject, MissingExtra, NewerFormat) as error:
            _log.warning("%s: the delta pack is of no use: %s", self.snapshot.info.repo_id, error)
            return set()

    def _file(self, file: HubFile, claims: Mapping[str, Claimed], here: set[str], came: set[str]) -> None:
        """Bring the tensors of one file."""
        if claims:
            try:
                self._parts(file, claims, here | came)
                self.delta += sum(claimed.id in came for claimed in claims.values())
                return
            except (NoRanges, CorruptObject) as error:
                name = printable(file.path, lines=False)
                _log.warning("%s of %s is fetched whole: %s", name, self.snapshot.info.repo_id, error)
        path = self.folder / file.path
        self.transfer.whole(file, path)
        places = read_header(path, f"{file.path} of {self.snapshot.info.repo_id}")
        self._add(file, self._mapped(path, places))
        self.full += len(places)

    def _parts(self, file: HubFile, claims: Mapping[str, Claimed], here: set[str]) -> None:
        """Fetch a file's header, and those of its tensors that are not here; CorruptObject if that is not the file."""
        if any(claimed.place.begin + claimed.place.nbytes > file.size for claimed in claims.values()):
            raise CorruptObject(f"{NAME} names bytes that {file.path} does not have")
        start = min(claimed.place.begin for claimed in claims.values())
        lost = {name: claimed.place for name, claimed in claims.items() if claimed.id not in here}
        path = self.folder / file.path
        spans = [(place.begin, place.begin + place.nbytes) for place in lost.values()]
        self.transfer.ranges(file, [(0, start), *spans], path)
        places = self._claimed_places(file, claims, path)
        fetched = self._mapped(path, {name: place for name, place in places.items() if name in lost})
        for name, tensor in fetched.items():
            if tensor.id != claims[name].id:
                raise CorruptObject(f"the bytes of tensor {name!r} are not those that {NAME} names", tensor=name)
        stored = self.cache.stored(
            {
                name: TensorEntry(place.dtype, place.shape, place.nbytes, claims[name].id)
                for name, place in places.items()
                if name not in lost
            }
        )
        digest = hashlib.sha256()
        with path.open("rb") as data:
            digest.update(data.read(start))
        for name in places:  # one at a time: `stored` reads them anew each time it is asked
            digest.update((fetched[name] if name in fetched else stored[name]).bytes())
        if digest.hexdigest() != file.sha256:
            raise CorruptObject(f"the tensors that {NAME} names are not those of {file.path}", path=file.path)
        found = {**stored, **fetched}
        self._add(file, {name: found[name] for name in claims})
        self.full += len(lost)

    def _claimed_places(self, file: HubFile, claims: Mapping[str, Claimed], path: Path) -> Mapping[str, Place]:
        """Where the tensors lie by the header that was fetched, in its order; CorruptObject if `claims` differ."""
        try:
            places = read_header(path, f"{file.path} of {self.snapshot.info.repo_id}")
        except (UnsafeInput, UnsupportedValue) as error:  # the header may be longer than what was fetched of it
            raise CorruptObject(f"{NAME} does not fit its header: {error}", path=file.path) from error
        if places != {name: claimed.place for name, claimed in claims.items()}:
            raise CorruptObject(f"{NAME} names other tensors, or other places of them, than its header", path=file.path)
        return places

    @staticmethod
    def _mapped(path: Path, places: Mapping[str, Place]) -> dict[str, WeightTensor]:
        if not path.stat().st_size:
            return {}
        data = np.memmap(path, np.uint8, mode="r")
        return {name: as_tensor(data, place) for name, place in places.items()}

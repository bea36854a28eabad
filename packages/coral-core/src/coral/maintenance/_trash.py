"""The trash: where a collection puts packs before they go for good, and readers find them until then."""

from __future__ import annotations

from contextlib import suppress

from coral.filesystem import FileSystem
from coral.objects import is_id
from coral.store import Store
from coral.store._pack import path_of

__all__ = ["Trash"]


class Trash:
    """A collection's own folder of packs that are to go."""

    def __init__(self, fs: FileSystem, name: str) -> None:
        self._fs = fs
        self._folder = f"trash/{name}"

    def packs(self) -> list[str]:
        """The packs in it."""
        names = (name.removesuffix(".pack") for name in self._fs.list(self._folder) if name.endswith(".pack"))
        return [name for name in names if is_id(name)]

    def ids(self, store: Store, pack: str) -> set[str]:
        """What a pack in it holds."""
        file = self._fs.open(self._at(pack))
        try:
            return set(store.directory(pack, file).ids)
        finally:
            file.close()

    def take(self, packs: list[str]) -> None:
        """Move packs here."""
        self._fs.mkdir(self._folder)
        self._fs.fsync_dir("trash")
        taken = []
        for pack in packs:
            with suppress(FileNotFoundError):  # another collection was faster
                with suppress(FileExistsError):  # NFS lost the reply, and sent it again: nobody else links here
                    self._fs.link(path_of(pack), self._at(pack))
                taken.append(pack)
        self._fs.fsync_dir(self._folder)
        for pack in taken:
            with suppress(FileNotFoundError):
                self._fs.unlink(path_of(pack))

    def put_back(self, packs: list[str]) -> None:
        """Move packs back to where they are looked for."""
        self.recall(packs)
        for pack in packs:
            with suppress(FileNotFoundError):
                self._fs.unlink(self._at(pack))

    def recall(self, packs: list[str]) -> None:
        """Give packs their names back, and leave those that they have here to whoever gave them."""
        for pack in packs:
            with suppress(FileExistsError, FileNotFoundError):
                self._fs.link(self._at(pack), path_of(pack))
        if packs:
            self._fs.fsync_dir("packs")

    def remove(self, pack: str) -> int:
        """Remove a pack for good; its size in bytes: 0 where a repair has just set it aside."""
        try:
            size = self._fs.stat(self._at(pack)).size
            self._fs.unlink(self._at(pack))
        except FileNotFoundError:
            return 0
        return size

    def close(self) -> None:
        """Remove the folder, which is empty."""
        with suppress(OSError):
            self._fs.rmdir(self._folder)

    def _at(self, pack: str) -> str:
        return f"{self._folder}/{pack}.pack"

"""A repository on the Hub as a remote needs it: its files at a commit, read by ranges, and commits to it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    hf_hub_url,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # both are public

from coral.errors import RemoteError, RemoteNotFound, RemoteUnreachable
from coral.integrations.huggingface._errors import hub_errors

__all__ = ["HubRepository", "Operation", "upload"]

Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
"""A part of a commit."""

_SECONDS = 30  # that an answer of the Hub's API may take
_MOVED = {409, 412}  # what a commit is answered with whose parent is no branch's tip any more
_PAUSE = 0.2  # seconds before one who was not first looks again; some of it by chance


class HubRepository:
    """A repository's `main`. What goes wrong is a RemoteError."""

    def __init__(self, repo_id: str) -> None:
        self.id = repo_id
        self._api = HfApi(library_name="coral")

    def head(self) -> str:
        """The commit that it is at now."""
        with hub_errors(f"asking for {self.id}", self.id):
            found = self._api.model_info(self.id, expand=["sha"], timeout=_SECONDS).sha
        if found is None:
            raise RemoteNotFound(
                f"{self.id} on the Hub has no commit yet: commit something to it, as a README.md", remote=self.id
            )
        return found

    def files(self, revision: str, folder: str = "", *, below: bool = True) -> dict[str, int]:
        """The paths of the files in a folder at a commit, and below it, with their sizes; none where there is none."""
        with hub_errors(f"listing {self.id}", self.id):
            try:
                found = self._api.list_repo_tree(self.id, folder or None, recursive=below, revision=revision)
                return {entry.path: entry.size for entry in found if isinstance(entry, RepoFile)}
            except EntryNotFoundError:
                return {}

    def read(self, revision: str, path: str, offset: int, size: int) -> bytes:
        """Bytes of a file at a commit, or as many as there are. FileNotFoundError where there is no such file."""
        url = hf_hub_url(self.id, path, revision=revision, endpoint=self._api.endpoint)
        headers = build_hf_headers(token=self._api.token, library_name="coral")
        headers |= {"Accept-Encoding": "identity", "Range": f"bytes={offset}-{offset + size - 1}"}
        if not size:
            return b""
        with hub_errors(f"reading {path} of {self.id}", self.id):
            seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with get_session().stream("GET", url, headers=headers, timeout=seconds) as response:
                if response.status_code == 416:  # it ends before
                    return b""
                try:
                    hf_raise_for_status(response)
                except EntryNotFoundError as error:
                    raise FileNotFoundError(2, f"{self.id} has no such file", path) from error
                said, found = response.headers.get("Content-Range", ""), bytearray()
                if response.status_code == 206 and not said.startswith(f"bytes {offset}-"):
                    raise RemoteUnreachable(f"{self.id} answered with another range of {path}: {said[:80]!r}")
                skip = 0 if response.status_code == 206 else offset  # a server may give it from its beginning on
                for chunk in response.iter_raw():
                    found += chunk
                    if len(found) >= skip + size:
                        break
        return bytes(found[skip : skip + size])

    def upload(self, add: CommitOperationAdd) -> None:
        """Have the bytes of a file there before it is committed; where the Hub keeps it as a large file."""
        with hub_errors(f"uploading {add.path_in_repo} to {self.id}", self.id):
            upload(self._api, self.id, [add], free_memory=True)

    def commit(self, operations: Iterable[Operation], message: str, *, parent: str) -> str | None:
        """Make a commit that follows `parent`, and return it; None where that is not the newest any more.

        Raises RemoteError, and makes none, where a .gitignore over there leaves out one of the files.
        """
        wanted = list(operations)
        with hub_errors(f"committing to {self.id}", self.id):
            upload(self._api, self.id, [operation for operation in wanted if isinstance(operation, CommitOperationAdd)])
            try:
                done = self._api.create_commit(self.id, wanted, commit_message=message, parent_commit=parent)
            except HfHubHTTPError as error:
                if error.response.status_code not in _MOVED:
                    raise
                time.sleep(_PAUSE * random.random())
                return None
        return str(done.oid)


def upload(api: HfApi, repo_id: str, adds: Sequence[CommitOperationAdd], *, free_memory: bool = False) -> None:
    """Upload what is large of some files; RemoteError where the repository's .gitignore leaves one out of a commit.

    huggingface_hub would leave it out, say so in its log alone, and commit the rest.
    """
    api.preupload_lfs_files(repo_id, adds, free_memory=free_memory)
    ignored = [add.path_in_repo for add in adds if add._should_ignore]
    if ignored:
        raise RemoteError(
            f"{ignored[0]} cannot be put on {repo_id}: the .gitignore of that repository leaves it out of commits. "
            "Nothing was committed; take the pattern out of .gitignore on the Hub, and try again.",
            remote=f"hf://{repo_id}",
        )

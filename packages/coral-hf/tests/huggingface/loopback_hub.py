"""A Hub on loopback: as much of its HTTP as huggingface_hub uses, its repositories in memory, its answers counted.

Tests start it in their process, and point clients, or the subprocesses that these are in, at `url`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from coral.integrations.huggingface import HubRemote, _transfer
from coral.remotes import _opening, _patient

if TYPE_CHECKING:
    import pytest

LARGE = (".safetensors", ".pack", ".bin")
PAGE = 7
"""Files in one answer of a listing; the Hub gives 1,000."""


@dataclass
class Model:
    """A repository: the files of each commit, oldest first, its tags, and what it refuses."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision in ("main", "HEAD"):
            return self.commits[-1]
        sha = self.tags.get(revision, revision)
        return next((found for found in self.commits if found[0] == sha), None)


class Hub:
    """The server. `sent` counts the bytes of files it sent, `requests` lists (method, path, range) of those for files;
    `calls` lists (method, path) of all requests, `received` and `answered` count the bytes of all their bodies.

    `refuse` may give a status, or a body, to answer a path with. `fault`, if one is set, is asked before each answer
    to a request for a file: it may return a status to answer with,
    "cut" (half of what was asked for comes), "whole" (ranges are ignored) or "wrong" (a bit is flipped).
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.large: dict[str, bytes] = {}
        self.sent = 0
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.fault: Callable[[str], int | str | None] = lambda path: None
        self.api_status = 0
        self.refuse: Callable[[str], int | bytes | None] = lambda path: None
        self.retry_after = "0"
        self.calls: list[tuple[str, str]] = []
        self.received = 0
        self.answered = 0
        self.lock = threading.Lock()
        self.counting = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes]) -> str:
        """Make a commit with exactly these files."""
        return self.models.setdefault(repo_id, Model()).commit(files)

    def files(self, repo_id: str) -> dict[str, bytes]:
        return self.models[repo_id].commits[-1][1]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            with self.hub.counting:
                self.hub.answered += len(data)
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code, Retry_After=self.hub.retry_after)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _serve(self) -> None:
        body = self._body()
        url = urllib.parse.urlparse(self.path)
        path = urllib.parse.unquote(url.path)
        self.hub.tokens.add(self.headers.get("Authorization"))
        self.hub.calls.append((self.command, path))
        with self.hub.counting:
            self.hub.received += len(body)
        self._query = dict(urllib.parse.parse_qsl(url.query))
        repo = r"((?:[^/]+/)?[^/]+)"
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", lambda: self._answer(200, {"errors": [], "warnings": []})),
            ("PUT", r"/large/(\w+)", self._put_large),
            ("GET", rf"/api/models/{repo}/revision/(.+)", self._info),
            ("GET", rf"/api/models/{repo}/tree/([^/]+)(?:/(.+))?", self._tree),
            ("POST", rf"/api/models/{repo}/preupload/(.+)", self._preupload),
            ("POST", rf"/api/models/{repo}/commit/(.+)", self._commit),
            ("POST", rf"/{repo}\.git/info/lfs/objects/batch", self._batch),
            ("GET", rf"/api/models/{repo}", self._info),
            ("GET", rf"/{repo}/resolve/([^/]+)/(.+)", self._file),
            ("HEAD", rf"/{repo}/resolve/([^/]+)/(.+)", self._file),
        ]
        self._given = body
        if self.hub.api_status and path.startswith("/api/"):
            return self._refuse(self.hub.api_status, "")
        if answer := self.hub.refuse(path):
            return self._answer(200, answer) if isinstance(answer, bytes) else self._refuse(answer, "")
        for method, pattern, serve in routes:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                return serve(*match.groups())
        return self._refuse(404, "EntryNotFound")

    do_GET = do_POST = do_HEAD = do_PUT = _serve  # noqa: N815

    def _model(self, repo_id: str) -> Model | None:
        model = self.hub.models.get(repo_id)
        if model is None or (model.private and not self.headers.get("Authorization")):
            self._refuse(404, "RepoNotFound")
            return None
        return model

    def _info(self, repo_id: str, revision: str = "main") -> None:
        model = self._model(repo_id)
        if model is None:
            return None
        found = model.at(revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        sha, files = found
        if "expand" in self._query:
            return self._answer(200, {"_id": "1", "id": repo_id, "sha": sha})
        siblings = []
        for name, data in files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data)}
            entry["blobId"] = _git_id(data)
            if name.endswith(LARGE):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        card = re.findall(r"^base_model: (\S+)$", files.get("README.md", b"").decode(), re.MULTILINE)
        answer = {"_id": "1", "id": repo_id, "sha": sha, "siblings": siblings, "tags": [], "private": model.private}
        return self._answer(200, {**answer, "cardData": {"base_model": card[0]} if card else {}})

    def _tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        """Files, and folders, a page at a time: the link to the next one is in a header."""
        model = self._model(repo_id)
        if model is None:
            return None
        found = model.at(revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        begin = f"{folder}/" if folder else ""
        below = sorted(name for name in found[1] if name.startswith(begin))
        if folder and not below:
            return self._refuse(404, "EntryNotFound")
        entries: dict[str, dict[str, Any]] = {}
        for name in below:
            inner, deeper, _ = name.removeprefix(begin).partition("/")
            if deeper:
                entries[begin + inner] = {"type": "directory", "path": begin + inner, "oid": "0" * 40, "size": 0}
            if not deeper or self._query.get("recursive", "").lower() == "true":
                size = len(found[1][name])
                entries[name] = {"type": "file", "path": name, "oid": "0" * 40, "size": size}
        page = int(self._query.get("cursor", 0))
        shown = list(entries.values())[page * PAGE : (page + 1) * PAGE]
        if len(entries) <= (page + 1) * PAGE:
            return self._answer(200, shown)
        query = urllib.parse.urlencode({**self._query, "cursor": page + 1})
        path = urllib.parse.urlparse(self.path).path
        return self._answer(200, shown, Link=f'<http://{self.headers["Host"]}{path}?{query}>; rel="next"')

    def _create(self) -> None:
        asked = json.loads(self._given)
        repo_id = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
        answer = {"url": f"{self.hub.url}/{repo_id}", "id": repo_id}
        if repo_id in self.hub.models:
            return self._answer(409, {"error": "exists", **answer})
        self.hub.models[repo_id] = Model(private=asked.get("private", False) or asked.get("visibility") == "private")
        self.hub.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._answer(200, answer)

    def _preupload(self, repo_id: str, revision: str) -> None:
        model = self._model(repo_id)
        if model is None:
            return
        there, files = model.commits[-1][1], []
        for path in (file["path"] for file in json.loads(self._given)["files"]):
            large = path.endswith(LARGE)
            ignored = _ignored(path, there.get(".gitignore", b"").decode())
            entry = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": ignored}
            if path in there:  # what has not changed the client leaves out of its commit
                data = there[path]
                entry["oid"] = hashlib.sha256(data).hexdigest() if large else _git_id(data)
            files.append(entry)
        self._answer(200, {"files": files})

    def _batch(self, repo_id: str) -> None:
        objects = []
        for asked in json.loads(self._given)["objects"]:
            entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.large:
                entry["actions"] = {"upload": {"href": f"http://{self.headers['Host']}/large/{asked['oid']}"}}
            objects.append(entry)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _put_large(self, digest: str) -> None:
        if hashlib.sha256(self._given).hexdigest() != digest:
            return self._refuse(422, "BadDigest")
        self.hub.large[digest] = self._given
        return self._answer(200)

    def _commit(self, repo_id: str, revision: str) -> None:
        model = self._model(repo_id)
        if model is None:
            return None
        with self.hub.lock:
            return self._commit_to(model, repo_id)

    def _commit_to(self, model: Model, repo_id: str) -> None:
        head, files = model.commits[-1]
        files = dict(files)
        for line in self._given.decode().splitlines():
            key, value = (parsed := json.loads(line))["key"], parsed["value"]
            if key == "header" and value.get("parentCommit") not in (None, head):
                return self._refuse(412, "ParentCommitMismatch")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.large:
                    return self._refuse(422, "LfsFileNotFound")
                files[value["path"]] = self.hub.large[value["oid"]]
            elif key == "deletedFile":
                if value["path"] not in files:
                    return self._refuse(404, "EntryNotFound")
                del files[value["path"]]
        sha = model.commit(files)
        return self._answer(
            200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"}
        )

    def _file(self, repo_id: str, revision: str, path: str) -> None:
        model = self._model(repo_id)
        if model is None:
            return None
        found = model.at(revision)
        if model.gated:
            return self._refuse(403, "GatedRepo")
        if found is None or path not in found[1]:
            return self._refuse(404, "RevisionNotFound" if found is None else "EntryNotFound")
        data, asked = found[1][path], self.headers.get("Range")
        self.hub.requests.append((self.command, path, asked))
        fault = self.hub.fault(path)
        if isinstance(fault, int):
            return self._refuse(fault, "")
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X_Repo_Commit": found[0]}
        status = 200
        if asked and fault != "whole":
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())  # type: ignore[union-attr]
            if first >= len(data):
                return self._answer(416, b"", Content_Range=f"bytes */{len(data)}")
            last = min(last, len(data) - 1)
            headers["Content_Range"], status = f"bytes {first}-{last}/{len(data)}", 206
            data = data[first : last + 1]
        if fault == "wrong":
            data = bytes([data[0] ^ 1]) + data[1:]
        if fault == "cut":
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.hub.sent += len(data) // 2
            self.close_connection = True
            return None
        self.hub.sent += len(data) if self.command == "GET" else 0
        self._answer(status, data, **headers)
        return None


def _ignored(path: str, gitignore: str) -> bool:
    """Whether a .gitignore names a path, a part of it, or a folder that it is in; `!` is not known."""
    parts = path.split("/")
    names = {*parts, *("/".join(parts[:end]) for end in range(1, len(parts) + 1))}
    patterns = [line.strip().strip("/") for line in gitignore.splitlines() if not line.startswith("#")]
    return any(fnmatchcase(name, pattern) for pattern in patterns if pattern for name in names)


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub out, and have all that fails tried again without a pause."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(_transfer, "_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(_patient, "_PAUSES", (0.0, 0.0, 0.0))


def reach(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have huggingface_hub take a URL for the Hub's, and `hf://` lead there."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template[template.index("/{repo_id}") :])
    if "hf" not in _opening.schemes():  # coral-hf is on the path, but not installed
        monkeypatch.setattr(_opening, "_entry_points", lambda: {"hf": lambda: HubRemote})

"""What is fuzzed: each parser of untrusted bytes, sound examples for it, and how what was changed is sealed again.

Without its checksums made anew, hardly a change would come further than to these.
"""

from __future__ import annotations

import json
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from coral import DeltaConfig, Repository, WeightTensor
from coral._digest import sha256
from coral.delta import Deflate, PackDelta, Planes
from coral.errors import CoralError
from coral.filesystem import LocalFileSystem
from coral.objects import Note, State, decode_commit, decode_tree
from coral.remotes._filesystem import MemoryFile
from coral.state import unflatten
from coral.store import Chain, Stored
from coral.store._files import seal
from coral.store._index import _Segment
from coral.store._pack import directory_of, read_object
from coral.store._refs import RefEntry

A = "a" * 64
TOKENS = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-1", b"1e999", b"NaN", b'"\\ud800"', b"\\u0000",
    bytes(8), b"\xff" * 8, A.encode(), b'{"$int":"ff"}', b'{"$tuple":[]}', b'{"$dict":[[1,2]]}', b'{"$bytes":"YQ=="}',
    b'{"$float":"7ff0000000000000"}', b'{"$array":"x"}', b'"shape":[4294967296,4294967296]', b"[[[[[[[[", b"CORALDR\n",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """A parser: `parse` may raise a CoralError and nothing else."""

    name: str
    examples: tuple[bytes, ...]
    parse: Callable[[bytes], object]
    sealed: Callable[[bytes], bytes] = bytes


class _OneMoment(LocalFileSystem):
    """A filesystem whose clock stands still: the same files each time, so that a seed says which inputs there were."""

    def now(self) -> float:
        return 1_800_000_000.0


@cache
def _repository() -> dict[str, list[bytes]]:
    """Files of a small repository by the folder that they are in, and its objects by kind."""
    found: dict[str, list[bytes]] = {"packs": [], "commit": [], "tree": [], "state": [], "index": []}
    with tempfile.TemporaryDirectory() as folder:
        repo = Repository(_OneMoment(Path(folder) / "r"), init=True, durability="fast")
        rng = np.random.default_rng(0)
        weight = rng.standard_normal(600).astype(np.float32)
        for step in range(4):
            state = {"m": weight[:9], 1: (step, 0.5, float("inf"), b"x", None, True, 1 << 70), "names": ["a"]}
            training = {"step": step, "epoch": 0, "run": "r", "experiment": "e"}
            weights = {"w": weight * np.float32(1 + step / 1e4), "b": np.arange(step), "e": np.zeros((0, 2))}
            repo.commit(weights, "m", state=state, training=training, metrics={"loss": 0.5}, reasons=["step"])
        fs = repo.store.fs
        found["packs"] += [fs.read(f"packs/{name}", 1 << 20) for name in sorted(fs.list("packs"))]
        repo.repack(config=DeltaConfig(min_size=0, entropy="deflate"))
        found["packs"] += [fs.read(f"packs/{name}", 1 << 20) for name in sorted(fs.list("packs"))]
        for commit in repo.log():
            found["commit"].append(repo.store.read_object("commit", commit.id))
            found["tree"].append(repo.store.read_object("tree", commit.tree))
            found["state"].append(repo.store.read_object("state", commit.state or ""))
        rows = np.zeros(3, [("key", "<u8"), ("rest", "V24"), ("pack", "<u4"), ("entry", "<u4")])
        found["index"] += [_Segment.encode([A, "b" * 64], rows), _Segment.encode([A], rows[:0])]
    return found


def _parse_pack(data: bytes) -> None:
    """As fsck reads it, but for bases in other packs."""
    name = data[-40:-8].hex() if len(data) > 64 else A
    file = MemoryFile(data)
    directory = directory_of(file, name)
    entries = {}
    for number in range(len(directory)):
        try:
            entry = directory.checked(number)
        except CoralError:
            continue
        entries[entry.id] = entry
    for entry in entries.values():
        try:
            if entry.kind != "tensor":
                read_object(file, entry)
                continue
            links = [entry]
            while links[-1].base in entries and len(links) < 4:
                links.append(entries[links[-1].base])
            if links[-1].base is None and all(link.nbytes == entry.nbytes for link in links):
                Chain([Stored(directory, file, link) for link in links]).verify()
        except (CoralError, EOFError):  # what a reader takes for damage
            continue


def _sealed_pack(data: bytes) -> bytes:
    """With a trailer that fits: the directory begins where it did, or at the last place where one may."""
    body = data[:-64]
    at = body.rfind(b"CORALDR\n")
    if at < 0:
        return data
    directory = body[at:]
    trailer = struct.pack("<8sQQ32sI", b"CORALTR\n", at, len(directory), sha256(directory), 0)
    return body + trailer + struct.pack("<I", zlib.crc32(trailer))


def _parse_index(data: bytes) -> None:
    segment = _Segment.decode("x.idx", data)
    for _ in segment.by_pack():
        pass
    list(segment.find(A))
    list(segment.with_prefix("aaaaaa"))


def _parse_commit(data: bytes) -> None:
    commit = decode_commit(data, A).annotated([])
    _shown(commit.step, commit.epoch, commit.run, commit.previous, commit.exact, commit.nbytes, commit.time)
    _shown(*map(float, commit.metrics.values()))


def _shown(*values: object) -> str:
    return " ".join(map(str, values))


def _parse_state(data: bytes) -> None:
    state = State.decode(data, "state x")
    tensor = WeightTensor(np.zeros(1))
    unflatten(state.value, lambda name: tensor, "state x")


def _parse_ref(data: bytes) -> None:
    entry = RefEntry.decode("refs/heads/main", 2, data, "refs/x")
    _shown(entry.value, entry.time, entry.why)


def _sealed_text(data: bytes) -> bytes:
    return seal(data[:-66])


def _parse_block(data: bytes) -> None:
    for codec in (PackDelta(Deflate()), Planes(Deflate())):
        try:
            codec.decode(data, np.zeros(600, np.uint32), np.empty(600, np.uint32))
        except CoralError:
            continue


def _parse_header(data: bytes) -> None:
    module = import_module("coral.integrations.huggingface._safetensors")
    module.parse_header(data, 8 + len(data) + 24, "model.safetensors")


def targets() -> list[Target]:
    """Every parser that is installed."""
    repo = _repository()
    note = Note(metrics={"a": 1.0}, reasons=frozenset({"best"}), pruned=True, state=A, training={"step": 1})
    entry = RefEntry("refs/heads/main", 2, A, A[:32], A[32:], 1_800_000_000.0, "commit: m", synced=False)
    zeros, ones = np.zeros(600, np.uint32), np.arange(600, dtype=np.uint32)
    blocks = (bytes(PackDelta(Deflate()).encode(ones, zeros)), bytes(Planes(Deflate()).encode(ones, zeros)))
    found = [
        Target("pack", tuple(repo["packs"]), _parse_pack, _sealed_pack),
        Target(
            "index",
            tuple(repo["index"]),
            _parse_index,
            lambda data: data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little"),
        ),
        Target("commit", tuple(repo["commit"]), _parse_commit),
        Target("tree", tuple(repo["tree"]), lambda data: decode_tree(data, "tree x")),
        Target("state", tuple(repo["state"]), _parse_state),
        Target("note", (note.encode(A),), lambda data: Note.decode(data, A, "notes/x")),
        Target("ref", (entry.encode(),), _parse_ref, _sealed_text),
        Target("block", blocks, _parse_block),
    ]
    if find_spec("coral.integrations") and find_spec("coral.integrations.huggingface"):
        tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        header = {
            "__metadata__": {"format": "pt"},
            "x": tensor,
            "y": {"dtype": "I8", "shape": [16], "data_offsets": [8, 24]},
        }
        found.append(Target("safetensors", (json.dumps(header).encode(),), _parse_header))
    return found

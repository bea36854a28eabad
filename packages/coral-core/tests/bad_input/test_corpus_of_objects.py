"""The corpus of bad input, bytes for each parser. CASES: name -> (parser, bytes, error, part of its message)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coral import _json
from coral._digest import fold, sha256
from coral.errors import CoralError, CorruptObject, LimitExceeded, NewerFormat, UnsafeInput
from coral.filesystem import LocalFileSystem
from coral.objects import Note, State, decode_commit, decode_tree
from coral.state import unflatten
from coral.store._files import seal, unseal
from coral.store._format import check_format
from coral.store._index import _Segment
from coral.store._pack import Directory
from coral.store._partial import partial_names
from coral.store._refs import RefEntry
from coral.weights import check_shape

A, B = "a" * 64, "b" * 64
REF = "refs/heads/main"
RLO, ESC = "\u202e", "\x1b[2J"

COMMIT = {
    "message": "m", "metadata": {}, "metrics": {}, "nbytes": 8, "parents": [], "reasons": [], "state": None,
    "time": 1.5, "training": {}, "tree": A,
}  # fmt: skip
TENSOR = {"dtype": "float32", "id": A, "shape": [2]}
NOTE = {"commit": A, "time": 1.0}
ENTRY = {"ref": REF, "seq": 1, "value": A, "prev": "", "nonce": "0" * 32, "time": 1.0, "why": ""}


def commit(**changes: Any) -> bytes:
    return _json.dumps({**COMMIT, **changes})


def without(fields: dict[str, Any], name: str) -> bytes:
    return _json.dumps({key: value for key, value in fields.items() if key != name})


def tree(entry: Any = None, name: str = "w", **changes: Any) -> bytes:
    return _json.dumps({"tensors": {name: {**TENSOR, **changes} if entry is None else entry}})


def note(**changes: Any) -> bytes:
    return _json.dumps({**NOTE, **changes})


def entry(**changes: Any) -> bytes:
    return seal(_json.dumps({**ENTRY, **changes}))


def state(value: Any) -> bytes:
    return _json.dumps({"tensors": {}, "value": value})


def directory(
    *,
    magic: bytes = b"CORALDR\n",
    version: int = 1,
    count: int = 1,
    behind: bytes = b"",
    shape: Any = (2,),
    **fields: int,
) -> bytes:
    """The directory of a pack of one tensor of 8 bytes at byte 64, in its parts."""
    data = np.arange(8, dtype=np.uint8)
    row = {"kind": 1, "codec": 0, "dtype": 2, "rank": len(shape), "params": 0, "offset": 64, "size": 8, "nbytes": 8}
    row |= fields
    base = bytes.fromhex(B) if row.pop("base", 0) else bytes(32)
    packed = struct.pack("<32s32sBBBBIQQQ", bytes.fromhex(A), base, *row.values())
    head = struct.pack("<8sIIII", magic, version, 0, count, 0)
    sums = struct.pack("<I", fold(data)) * min(-(-row["size"] // (1 << 20)), 9)
    digests = sha256(data) * (min(-(-row["nbytes"] // (1 << 20)), 9) if row["kind"] == 1 else 0)
    return head + packed + struct.pack(f"<{len(shape)}Q", *shape) + digests + sums + behind


def index(
    *, magic: bytes = b"CORALIX\n", version: int = 1, packs: int = 1, rows: int = 0, body: bytes = bytes(32)
) -> bytes:
    data = magic + struct.pack("<IIQ", version, packs, rows) + body
    return data + struct.pack("<I", zlib.crc32(data))


PARSERS: dict[str, Callable[[bytes], object]] = {
    "commit": lambda data: decode_commit(data, A),
    "tree": lambda data: decode_tree(data, "tree x"),
    "state": lambda data: unflatten(State.decode(data, "state x").value, lambda name: None, "state x"),  # type: ignore[arg-type,return-value]
    "note": lambda data: Note.decode(data, A, "notes/x"),
    "ref": lambda data: RefEntry.decode(REF, 1, data, "refs/x"),
    "sealed": lambda data: unseal(data, "file x"),
    "pack": lambda data: [*Directory(A, data, 72).entries()],
    "index": lambda data: _Segment.decode("x.idx", data),
    "json": lambda data: _json.loads(data, "file x"),
    "shape": lambda data: check_shape(_json.loads(data, "x")[0], _json.loads(data, "x")[1]),
}

DEEP = b"[" * 100_000 + b"]" * 100_000
DIGITS = b"1" * 5000
Case = tuple[str, bytes, type[CoralError], str]

CASES: dict[str, Case] = {
    # commits
    **{f"commit without {f}": ("commit", without(COMMIT, f), CorruptObject, "has not the fields") for f in COMMIT},
    **{
        f"commit whose {f} is {value!r}": ("commit", commit(**{f: value}), CorruptObject, f"{f!r} has the wrong type")
        for f, value in [
            ("message", 1), ("message", None), ("metadata", []), ("metrics", "x"), ("nbytes", "8"), ("nbytes", True),
            ("nbytes", 1.5), ("parents", {}), ("reasons", "best"), ("state", 5), ("time", "now"), ("time", None),
            ("training", [1]), ("tree", None), ("time", False),
        ]
    },
    "commit with a field more": ("commit", commit(extra=1), CorruptObject, "has not the fields"),
    "commit that is a list": ("commit", b"[]", CorruptObject, "has not the fields"),
    "commit that is null": ("commit", b"null", CorruptObject, "has not the fields"),
    "commit of no bytes": ("commit", b"", CorruptObject, "not valid JSON"),
    "commit whose tree is no id": ("commit", commit(tree="a" * 63), CorruptObject, "is not an id"),
    "commit whose tree is in capitals": ("commit", commit(tree="A" * 64), CorruptObject, "is not an id"),
    "commit whose tree has a line end": ("commit", commit(tree=A + "\n"), CorruptObject, "is not an id"),
    "commit whose parent is no id": ("commit", commit(parents=[A, "x"]), CorruptObject, "is not an id"),
    "commit whose parent is a number": ("commit", commit(parents=[1]), CorruptObject, "is not an id"),
    "commit whose state is no id": ("commit", commit(state="../../etc"), CorruptObject, "is not an id"),
    "commit at the end of time": ("commit", commit(time=1e300), CorruptObject, "its time is not a time"),
    "commit at infinity": (
        "commit", commit().replace(b"1.5", b"1e999"), CorruptObject, "its time is not a time"
    ),
    "commit of fewer than no bytes": ("commit", commit(nbytes=-1), CorruptObject, "nbytes"),
    "commit of 10^4000 bytes": ("commit", commit(nbytes=10**4000), CorruptObject, "nbytes"),
    "commit whose step has a million digits": (
        "commit", commit(training={"step": {"$int": "f" * 1_000_000}}), CorruptObject, "too large"
    ),
    "commit whose metric has a million digits": (
        "commit", commit(metrics={"loss": {"$int": "f" * 1_000_000}}), CorruptObject, "too large"
    ),
    "commit whose metadata has a million digits": (
        "commit", commit(metadata={"x": [{"$int": "f" * 1_000_000}]}), CorruptObject, "too large"
    ),
    "commit whose training has 4,301 digits": (
        "commit", commit(training={"x": {"$int": f"-{10**4300:x}"}}), CorruptObject, "too large"
    ),
    "commit whose metadata has a key of 4,301 digits": (
        "commit", commit(metadata={"x": {"$dict": [[{"$int": f"{10**4300:x}"}, 1]]}}), CorruptObject, "too large"
    ),
    "commit whose metric is a word": ("commit", commit(metrics={"loss": "low"}), CorruptObject, "not a number"),
    "commit whose metric is true": ("commit", commit(metrics={"loss": True}), CorruptObject, "metric is not a number"),
    "commit whose metric is a tensor": ("commit", commit(metrics={"loss": {"$array": "x"}}), CorruptObject, "KeyError"),
    "commit whose reason is a number": ("commit", commit(reasons=[1]), CorruptObject, "list of words"),
    "commit whose metadata has an unknown tag": ("commit", commit(metadata={"a": {"$py": "os"}}), CorruptObject, "tag"),
    "commit whose training is a tuple": ("commit", commit(training={"$tuple": []}), CorruptObject, "not a mapping"),
    # JSON
    "JSON that is nested deeply": ("json", DEEP, CorruptObject, "RecursionError"),
    "JSON with a number of 5,000 digits": ("json", DIGITS, CorruptObject, "4300 digits"),
    "JSON with NaN": ("json", b"[NaN]", CorruptObject, "NaN is not JSON"),
    "JSON with -Infinity": ("json", b"-Infinity", CorruptObject, "-Infinity is not JSON"),
    "JSON with a key twice": ("json", b'{"a":1,"a":2}', CorruptObject, "stands there twice"),
    "JSON with half a character": ("json", b'"\\ud800"', CorruptObject, "not valid JSON"),
    "JSON that is no UTF-8": ("json", b'"\xff"', CorruptObject, "UnicodeDecodeError"),
    "JSON in UTF-16": ("json", '{"a":1}'.encode("utf-16"), CorruptObject, "not valid JSON"),
    "JSON with a byte order mark": ("json", b"\xef\xbb\xbf{}", CorruptObject, "not valid JSON"),
    "JSON that goes on": ("json", b"{} {}", CorruptObject, "Extra data"),
    "JSON that ends early": ("json", b'{"a":', CorruptObject, "not valid JSON"),
    "JSON with a control character": ("json", b'"\x00"', CorruptObject, "not valid JSON"),
    "JSON with a comment": ("json", b"{}//", CorruptObject, "not valid JSON"),
    "JSON of 17 MiB": ("json", b" " * (17 << 20), CorruptObject, "is the limit"),
    "pickle for JSON": ("json", b"\x80\x04K\x01.", CorruptObject, "not valid JSON"),
    # trees
    **{
        f"tree whose tensor has {what}": ("tree", tree(**change), CorruptObject, part)
        for what, change, part in [
            ("no known dtype", {"dtype": "float31"}, "unknown dtype 'float31'"),
            ("a numpy dtype", {"dtype": "<f4"}, "unknown dtype"),
            ("an object dtype", {"dtype": "object"}, "unknown dtype"),
            ("a dtype that is a number", {"dtype": 1}, "unknown dtype"),
            ("a dtype that turns writing", {"dtype": RLO}, "unknown dtype '\\u202e'"),
            ("an id that is none", {"id": "x"}, "has not a dtype"),
            ("a path for an id", {"id": "../" * 21 + "x"}, "has not a dtype"),
            ("a negative size", {"shape": [-1]}, "sizes of 0 or more"),
            ("a size that is true", {"shape": [True]}, "sizes of 0 or more"),
            ("a size that is 2.0", {"shape": [2.0]}, "sizes of 0 or more"),
            ("a size that is text", {"shape": ["2"]}, "sizes of 0 or more"),
            ("a size that is null", {"shape": [None]}, "sizes of 0 or more"),
            ("a shape that is a number", {"shape": 2}, "a list of at most 64"),
            ("a shape that is text", {"shape": "22"}, "a list of at most 64"),
            ("a shape that is an object", {"shape": {}}, "a list of at most 64"),
            ("a rank of 65", {"shape": [1] * 65}, "a list of at most 64"),
            ("2^64 elements, which wrap to none", {"shape": [1 << 32, 1 << 32]}, "larger than 2^63"),
            ("more than 2^63 bytes", {"shape": [1 << 62]}, "larger than 2^63"),
            ("a huge size beside none", {"shape": [0, 1 << 63]}, "larger than 2^63"),
            ("a size of 4,000 digits", {"shape": [10**4000]}, "larger than 2^63"),
            ("64 sizes of 4,000 digits", {"shape": [10**4000] * 64}, "larger than 2^63"),
            ("a field more", {"more": 1}, "has not a dtype"),
        ]
    },
    "tree whose tensor is null": ("tree", _json.dumps({"tensors": {"w": None}}), CorruptObject, "has not a dtype"),
    "tree whose tensor is a list": ("tree", tree([]), CorruptObject, "has not a dtype"),
    "tree whose tensor lacks its id": ("tree", tree({"dtype": "int8", "shape": []}), CorruptObject, "has not a dtype"),
    "tree of pieces": ("tree", tree({"pieces": []}), NewerFormat, "newer coral"),
    "tree with an empty name": ("tree", tree(name=""), CorruptObject, "is empty"),
    "tree with a NUL in a name": ("tree", tree(name="a\0b"), CorruptObject, "NUL"),
    "tree with a name of 1,025 bytes": ("tree", tree(name="x" * 1025), CorruptObject, "1024 is the limit"),
    "tree with a name of 513 Greek letters": ("tree", tree(name="π" * 513), CorruptObject, "1024 is the limit"),
    "tree with half a character in a name": (
        "tree", tree(name="zz").replace(b'"zz"', b'"\\udfff"'), CorruptObject, "not valid JSON"
    ),
    "tree with a name twice": (
        "tree", tree()[:-2] + b"," + tree()[len(b'{"tensors":{') :], CorruptObject, "twice"
    ),
    "tree whose tensors are a list": ("tree", b'{"tensors":[]}', CorruptObject, "wrong type"),
    "tree without tensors": ("tree", b"{}", CorruptObject, "has not the fields"),
    "tree whose bad tensor's name clears the screen": ("tree", tree([], name=ESC), CorruptObject, "'\\x1b[2J'"),
    "tree whose bad tensor's name turns writing": ("tree", tree([], name=RLO), CorruptObject, "'\\u202e'"),
    # states
    **{
        f"state with {what}": ("state", state(value), CorruptObject, part)
        for what, value, part in [
            ("an unknown tag", {"$eval": "1"}, "a tag that is not known"),
            ("a tag and a key", {"$tuple": [], "a": 1}, "a tag that is not known"),
            ("a tuple that is no list", {"$tuple": 1}, "a tag that is not known"),
            ("an int that is no hexadecimal", {"$int": "0x1"}, "a tag that is not known"),
            ("an int that is a number", {"$int": 5}, "a tag that is not known"),
            ("an int with spaces", {"$int": " 1"}, "a tag that is not known"),
            ("a float of too few digits", {"$float": "00"}, "error"),
            ("a float that is no hexadecimal", {"$float": "zz" * 8}, "ValueError"),
            ("bytes that are no base64", {"$bytes": "a"}, "Error"),
            ("bytes with junk between", {"$bytes": "YQ=\n="}, "Error"),
            ("a dict whose key is a list", {"$dict": [[[], 1]]}, "dict key"),
            ("a dict whose key is null", {"$dict": [[None, 1]]}, "dict key"),
            ("a dict whose key is true", {"$dict": [[True, 1]]}, "dict key"),
            ("a dict of single things", {"$dict": [[1]]}, "ValueError"),
            ("a dict of numbers", {"$dict": [1]}, "TypeError"),
            ("a dict of a text", {"$dict": "ab"}, "a tag that is not known"),
            ("a tag that clears the screen", {"$" + ESC: 1}, "\\x1b[2J"),
        ]
    },
    "state without a value": ("state", b'{"tensors":{}}', CorruptObject, "has not the fields"),
    "state that is a number": ("state", b"1", CorruptObject, "has not the fields"),
    # notes
    "note of another commit": ("note", note(commit=B), CorruptObject, "not a note"),
    "note of no commit": ("note", without(NOTE, "commit"), CorruptObject, "not a note"),
    "note without a time": ("note", without(NOTE, "time"), CorruptObject, "not a note"),
    "note whose time is true": ("note", note(time=True), CorruptObject, "not a note"),
    "note whose time is far": ("note", note(time=1e18), CorruptObject, "not a note"),
    "note that is pruned by a number": ("note", note(pruned=1), CorruptObject, "not a note"),
    "note whose state is no id": ("note", note(state="x"), CorruptObject, "not a note"),
    "note whose metrics are a list": ("note", note(metrics=[]), CorruptObject, "not a mapping"),
    "note whose metric is text": ("note", note(metrics={"a": "1"}), CorruptObject, "metric is not a number"),
    "note whose metric is huge": ("note", note(metrics={"a": {"$int": "f" * 5000}}), CorruptObject, "too large"),
    "note whose training is huge": ("note", note(training={"a": {"$int": "f" * 5000}}), CorruptObject, "too large"),
    "note whose reasons are a word": ("note", note(reasons="best"), CorruptObject, "list of words"),
    "note whose training is text": ("note", note(training="x"), CorruptObject, "not a mapping"),
    "note that is a list": ("note", b"[]", CorruptObject, "not a note"),
    # refs
    **{
        f"ref entry whose {f} is {value!r}": ("ref", entry(**{f: value}), CorruptObject, "is not a ref entry")
        for f, value in [
            ("value", 5), ("value", [A]), ("prev", None), ("nonce", 1), ("time", "now"), ("time", 1e300), ("why", None),
            ("ref", 5), ("seq", "1"), ("seq", None), ("time", True),
        ]
    },
    "ref entry of another ref": ("ref", entry(ref="refs/heads/x"), CorruptObject, "out of place"),
    "ref entry of another number": ("ref", entry(seq=2), CorruptObject, "is entry 2 of refs/heads/main"),
    "ref entry whose ref clears the screen": ("ref", entry(ref=ESC), CorruptObject, "\\x1b[2J"),
    "ref entry without a nonce": ("ref", seal(without(ENTRY, "nonce")), CorruptObject, "is not a ref entry"),
    "ref entry that is a list": ("ref", seal(b"[]"), CorruptObject, "is not a ref entry"),
    "ref entry without a seal": ("ref", _json.dumps(ENTRY), CorruptObject, "torn or was changed"),
    "ref entry of no bytes": ("ref", b"", CorruptObject, "torn or was changed"),
    "ref entry of git": ("ref", A.encode() + b"\n", CorruptObject, "torn or was changed"),
    "sealed file that is longer": ("sealed", seal(b"{}") + b"\n", CorruptObject, "checksum does not fit"),
    "sealed file with another line end": ("sealed", seal(b"{}")[:-1] + b"\r", CorruptObject, "checksum does not fit"),
    "sealed file of zeros": ("sealed", bytes(200), CorruptObject, "checksum does not fit"),
    # packs
    "pack directory of no bytes": ("pack", b"", CorruptObject, "too short"),
    "pack directory of another magic": ("pack", directory(magic=b"CORALXX\n"), CorruptObject, "malformed"),
    "pack directory of version 2": ("pack", directory(version=2), NewerFormat, "Upgrade coral-core"),
    "pack directory of version 0": ("pack", directory(version=0), NewerFormat, "version 0"),
    "pack directory of 2^32 - 1 entries": ("pack", directory(count=(1 << 32) - 1), CorruptObject, "malformed"),
    "pack directory of an entry more": ("pack", directory(count=2), CorruptObject, ""),
    "pack directory of an entry less": ("pack", directory(count=0), CorruptObject, "has not the size"),
    "pack directory with more behind": ("pack", directory(behind=b"x"), CorruptObject, "has not the size"),
    "pack entry of an unknown kind": ("pack", directory(kind=9), CorruptObject, "unknown kind"),
    "pack entry of kind 0": ("pack", directory(kind=0), CorruptObject, "unknown kind"),
    "pack entry of rank 65": ("pack", directory(shape=(1,) * 65), CorruptObject, "rank"),
    "pack entry of a rank without sizes": ("pack", directory(rank=9), CorruptObject, ""),
    "pack entry of an unknown dtype": ("pack", directory(dtype=250), NewerFormat, "dtype code 250"),
    "pack entry of an unknown codec": ("pack", directory(codec=99), NewerFormat, "codec 99"),
    "pack entry behind the end": ("pack", directory(offset=65), CorruptObject, "outside the pack"),
    "pack entry at 2^63": ("pack", directory(offset=1 << 63), CorruptObject, "outside the pack"),
    "pack entry whose end wraps around": ("pack", directory(offset=(1 << 64) - 4), CorruptObject, "outside the pack"),
    "pack entry of 2^64 - 1 bytes": ("pack", directory(nbytes=(1 << 64) - 1), CorruptObject, "outside the pack"),
    "pack entry that says 2^62 bytes": ("pack", directory(nbytes=1 << 62), CorruptObject, ""),
    "pack entry of more bytes than it has": ("pack", directory(nbytes=16), CorruptObject, "has 8 bytes, not 16"),
    "pack entry of fewer bytes than it has": ("pack", directory(nbytes=4), CorruptObject, "has 8 bytes, not 4"),
    "pack entry of another shape": ("pack", directory(shape=(3,)), CorruptObject, "dtype and shape"),
    "pack entry whose shape wraps around": (
        "pack", directory(shape=(1 << 32, 1 << 32)), CorruptObject, "dtype and shape"
    ),
    "pack entry whole, with a base": ("pack", directory(base=1), CorruptObject, "codec, or a base"),
    "pack entry the same as nothing": ("pack", directory(codec=1, size=0), CorruptObject, ""),
    "pack entry the same, with bytes": ("pack", directory(codec=1, base=1), CorruptObject, ""),
    # indexes
    "index of no bytes": ("index", b"", CorruptObject, "not an index"),
    "index of another magic": ("index", index(magic=b"CORALXX\n"), CorruptObject, "not an index"),
    "index of version 2": ("index", index(version=2), CorruptObject, "not an index"),
    "index of 2^32 - 1 packs": ("index", index(packs=(1 << 32) - 1), CorruptObject, "torn or was changed"),
    "index of 2^64 - 1 rows": ("index", index(rows=(1 << 64) - 1), CorruptObject, "torn or was changed"),
    "index of a pack more": ("index", index(packs=2), CorruptObject, "torn or was changed"),
    "index of a row more": ("index", index(rows=1), CorruptObject, "torn or was changed"),
    "index of another sum": ("index", index()[:-1] + b"x", CorruptObject, "torn or was changed"),
    "index cut off": ("index", index()[:-1], CorruptObject, "torn or was changed"),
    "index with more behind": ("index", index() + b"\0", CorruptObject, "torn or was changed"),
    # shapes that are nothing a pack or a tree could hold
    "shape that is nested": ("shape", b"[" + b"[" * 900 + b"]" * 900 + b',"int8"]', UnsafeInput, "a shape holds"),
    "shape of a million sizes": ("shape", b"[[" + b"1," * 999_999 + b'1],"int8"]', UnsafeInput, "at most 64"),
    "shape of 2^63 bytes": ("shape", b'[[9223372036854775808],"int8"]', LimitExceeded, "2^63 - 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bytes_that_are_not_what_they_should_be(name: str) -> None:
    parser, data, error, part = CASES[name]
    with pytest.raises(CoralError) as caught:
        PARSERS[parser](data)
    assert type(caught.value) is error
    said = str(caught.value)
    assert part in said
    assert said.isprintable()
    assert len(said) < 1000


@pytest.mark.parametrize("parser", PARSERS)
def test_what_is_sound_is_read(parser: str) -> None:
    """The cases differ from these in one thing each."""
    sound = {
        "commit": commit(), "tree": tree(), "state": state({"a": [1]}), "note": note(), "ref": entry(),
        "sealed": seal(b"{}"), "pack": directory(), "index": index(), "json": b"{}", "shape": b'[[2],"int8"]',
    }  # fmt: skip
    PARSERS[parser](sound[parser])


SMALL: dict[str, tuple[bytes, type[CoralError], str]] = {
    "format that is empty": (b"", CorruptObject, "format"),
    "format that is text": (b"coral 1\n", CorruptObject, "torn or was changed"),
    "format of too many bytes": (b"x" * 5000, CorruptObject, "is the limit"),
    "format 0": (seal(b'{"format":0}'), CorruptObject, "does not say which format"),
    "format true": (seal(b'{"format":true}'), CorruptObject, "does not say which format"),
    "format 1.0": (seal(b'{"format":1.0}'), CorruptObject, "does not say which format"),
    "format of text": (seal(b'{"format":"1"}'), CorruptObject, "does not say which format"),
    "format without a number": (seal(b"{}"), CorruptObject, "does not say which format"),
    "format that is a list": (seal(b"[1]"), CorruptObject, "does not say which format"),
    "format 2": (seal(b'{"format":2}'), NewerFormat, "Upgrade coral-core"),
    "format of 4,000 digits": (seal(b'{"format":1' + b"0" * 3900 + b"}"), NewerFormat, "Upgrade coral-core"),
}


@pytest.mark.parametrize("name", SMALL)
def test_files_that_say_what_a_repository_is(fs: LocalFileSystem, name: str) -> None:
    data, error, part = SMALL[name]
    with open(f"{fs.root}/format", "wb") as file:
        file.write(data)
    with pytest.raises(CoralError, match="format") as caught:
        check_format(fs)
    assert type(caught.value) is error
    assert part in str(caught.value)
    assert len(str(caught.value)) < 1000


PARTIAL: dict[str, tuple[bytes, str]] = {
    "partial that is torn": (b"{", "torn or was changed"),
    "partial without names": (seal(b"{}"), "does not say which tensors"),
    "partial with names that are numbers": (seal(b'{"names":[1]}'), "does not say which tensors"),
    "partial whose names are text": (seal(b'{"names":"w"}'), "does not say which tensors"),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_files_that_say_what_a_partial_clone_has(fs: LocalFileSystem, name: str) -> None:
    data, part = PARTIAL[name]
    with open(f"{fs.root}/partial", "wb") as file:
        file.write(data)
    with pytest.raises(CorruptObject, match="partial") as caught:
        partial_names(fs)
    assert part in str(caught.value)


CORPUS = {**CASES, **SMALL, **PARTIAL}

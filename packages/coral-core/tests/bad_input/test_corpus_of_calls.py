"""The corpus of bad input, calls and files of a repository. CASES: name -> (what is done, error, part of it)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coral import DeltaConfig, Repository, WeightTensor, _json
from coral.delta import Deflate, PackDelta, Planes, Raw, Same, codec_of
from coral.errors import (
    ConfigError,
    CoralError,
    CorruptObject,
    LimitExceeded,
    NewerFormat,
    NotARepository,
    UnknownRef,
    UnknownRemote,
    UnsafeInput,
    UnsupportedValue,
    WeightsMismatch,
)
from coral.remotes import check_remote_name
from coral.remotes._opening import check_url
from coral.store import check_ref_name
from coral.store._files import seal

RLO, ESC = "\u202e", "\x1b[2J"
ONE = {"a": np.ones(3)}
Do = Callable[[Repository, Path], object]
Case = tuple[Do, type[CoralError], str]


def branch(name: Any) -> Do:
    return lambda repo, folder: repo.branch(name)


def tensor(name: Any, data: Any = None) -> Do:
    return lambda repo, folder: repo.commit({name: np.ones(1) if data is None else data})


def put(path: str, content: bytes, then: Do) -> Do:
    def do(repo: Repository, folder: Path) -> object:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        return then(Repository(folder), folder)

    return do


def entry(ref: str, value: Any, seq: int = 1) -> bytes:
    fields = {"nonce": "0" * 32, "prev": "", "ref": ref, "seq": seq, "time": 1.0, "value": value, "why": ""}
    return seal(_json.dumps(fields))


def instead(kind: str, path: str, then: Do) -> Do:
    """Put a link, a pipe, a socket or a folder where a file should be."""

    def do(repo: Repository, folder: Path) -> object:
        for file in [folder / path] if "*" not in path else [*folder.glob(path)]:
            outside = folder.parent / "outside"
            file.rename(outside)
            match kind:
                case "link":
                    file.symlink_to(outside)
                case "dangling link":
                    file.symlink_to(folder.parent / "nowhere")
                case "pipe":
                    os.mkfifo(file)
                case "socket":
                    here = os.open(file.parent, os.O_RDONLY)
                    with socket.socket(socket.AF_UNIX) as made:
                        made.bind(f"/proc/self/fd/{here}/{file.name[:60]}")
                    os.close(here)
                    if file.name[60:]:
                        (file.parent / file.name[:60]).rename(file)
        return then(Repository(folder), folder)

    return do


def load(repo: Repository, folder: Path) -> object:
    return {name: found.data for name, found in repo.load().items()}


def url(text: str) -> Do:
    return lambda repo, folder: repo.add_remote("origin", text)


def decoded(codec: Any, data: bytes, base: bool = True, size: int = 1000) -> Do:
    def do(repo: Repository, folder: Path) -> object:
        out = np.empty(size, np.uint16)
        return codec.decode(data, np.zeros(size, np.uint16) if base else None, out)

    return do


def bomb(size: int) -> bytes:
    """A stream of noughts that says it holds fewer: the deflate coder's, as a constant would not do."""
    return Deflate().compress(bytes(size))


CASES: dict[str, Case] = {
    # names of branches, tags, remotes
    **{
        f"branch named {name!r:.40}": (branch(name), error, part)
        for name, error, part in [
            ("", UnsafeInput, "non-empty"), (5, UnsafeInput, "non-empty"), (None, UnsafeInput, "non-empty"),
            (b"x", UnsafeInput, "non-empty"), ("a b", UnsafeInput, "letters, digits"),
            ("..", UnsafeInput, "no '..'"), ("../../../pwned", UnsafeInput, "no '..'"), ("a/../b", UnsafeInput, "'..'"),
            ("/etc/passwd", UnsafeInput, "'//'"), ("a//b", UnsafeInput, "'//'"), ("a/", UnsafeInput, "'/'"),
            ("-x", UnsafeInput, "leading '-'"), (".x", UnsafeInput, "leading"), ("a/.git", UnsafeInput, "leading"),
            ("x.lock", UnsafeInput, ".lock"), ("a.lock/b", UnsafeInput, ".lock"), ("HEAD", UnsafeInput, "HEAD"),
            ("best", UnsafeInput, "best"), ("last", UnsafeInput, "last"), ("refs/heads/x", UnsafeInput, "cannot name"),
            ("a" * 64, UnsafeInput, "no whole id"), ("x" * 201, LimitExceeded, "200 is the limit"),
            ("X" * 120, LimitExceeded, "too long for a file"), ("é", UnsafeInput, "letters, digits"),
            ("a\\b", UnsafeInput, "letters, digits"), ("a\0b", UnsafeInput, "\\x00"), ("a\n", UnsafeInput, "\\n"),
            (ESC, UnsafeInput, "\\x1b[2J"), (RLO + "x", UnsafeInput, "\\u202e"), ("\ud800", UnsafeInput, "\\ud800"),
            ("a:b", UnsafeInput, "letters"), ("a~1", UnsafeInput, "letters"), ("a^", UnsafeInput, "letters"),
            ("a@best", UnsafeInput, "letters"), ("%2e%2e", UnsafeInput, "letters"), ("$(id)", UnsafeInput, "letters"),
        ]
    },
    "tag with '..'": (lambda r, f: r.tag("../x"), UnsafeInput, "cannot name a tag"),
    "remote with a slash": (lambda r, f: r.add_remote("a/b", f), UnsafeInput, "no '/'"),
    "remote that is not there": (lambda r, f: r.fetch("nowhere"), UnknownRemote, "Add it with add_remote"),
    "ref name that is a tuple": (lambda r, f: check_ref_name(("a",)), UnsafeInput, "non-empty"),
    **{
        f"file of a remote named {name!r:.40}": (lambda r, f, name=name: check_remote_name(name), UnsafeInput, "cannot")
        for name in ["../x", "/etc/passwd", "a//b", "", ".", "a/.b", "a b", "a\0", "x" * 1100, "packs\\x"]
    },
    # refs that are asked for
    **{
        f"ref {ref!r:.40}": (lambda r, f, ref=ref: r.load(ref), UnknownRef, part)
        for ref, part in [
            ("mian", "Did you mean 'main'"), ("", "non-empty"), (None, "non-empty"), ("HEAD~9", "has no parent"),
            ("../main", "unknown ref"), ("step:5", "unknown ref"), ("f" * 64, "unknown ref"), ("x" * 400, "non-empty"),
            ("main@{1}", "unknown ref"), (ESC, "\\x1b"), (RLO, "\\u202e"), ("a\0b", "\\x00"),
        ]
    },
    # tensors
    **{
        f"tensor named {name!r:.40}": (tensor(name), error, part)
        for name, error, part in [
            ("", UnsafeInput, "is empty"), ("a\0b", UnsafeInput, "NUL"), ("\ud800", UnsafeInput, "lone surrogate"),
            (1, UnsafeInput, "must be a str"), (None, UnsafeInput, "must be a str"), (b"a", UnsafeInput, "a str"),
            ("x" * 1025, LimitExceeded, "1024 is the limit"), ("π" * 600, LimitExceeded, "1024 is the limit"),
        ]
    },
    **{
        f"tensor of dtype {data.dtype}": (tensor("w", data), UnsupportedValue, "tensor 'w'")
        for data in [
            np.array([None]), np.array(["a"]), np.array([b"a"]), np.zeros(1, "M8[s]"), np.zeros(1, "m8[s]"),
            np.zeros(1, [("x", "f4")]), np.zeros(1, np.longdouble),
        ]
    },
    "tensor that is a list": (tensor("w", [1.0]), UnsupportedValue, "not list"),
    "tensor whose bad value's name clears the screen": (tensor(ESC, "x"), UnsupportedValue, "\\x1b[2J"),
    "tensor whose bad value's name turns writing": (tensor(RLO, "x"), UnsupportedValue, "\\u202e"),
    "tensor of a dtype that is carried by another": (
        lambda r, f: WeightTensor(np.ones(2), "bfloat16"), UnsupportedValue, "carried as uint16"
    ),
    "tensor of a dtype that is none": (lambda r, f: WeightTensor(np.ones(2), "f4"), UnsupportedValue, "unknown dtype"),
    "tensors that are no mapping": (lambda r, f: r.commit([np.ones(1)]), UnsupportedValue, "a mapping"),  # type: ignore[arg-type]
    "weights that are not there": (lambda r, f: r.load(names=["a", RLO]), WeightsMismatch, "\\u202e"),
    "weights with a line end": (lambda r, f: r.load(names=["b\nmissing: c"]), WeightsMismatch, "b\\nmissing"),
    **{
        f"{what} by names {names!r}": (call, ConfigError, "names ")
        for names in ("a", b"a", 5, [1], ["a", b"x"], [[]])
        for what, call in {
            "load": lambda r, f, names=names: r.load(names=names),
            "clone": lambda r, f, names=names: Repository.clone(r.path, f / "clone", names=names),
        }.items()
    },
    # state
    "state with an object": (lambda r, f: r.commit(ONE, state={"x": [object()]}), UnsupportedValue, "x/0"),
    "state with a function": (lambda r, f: r.commit(ONE, state=print), UnsupportedValue, "without pickle"),
    "state with a float for a key": (lambda r, f: r.commit(ONE, state={1.5: 0}), UnsupportedValue, "float"),
    "metadata with a tensor": (lambda r, f: r.commit(ONE, metadata={"x": np.ones(1)}), UnsupportedValue, "plain"),
    "metadata of 4,301 digits": (
        lambda r, f: r.commit(ONE, metadata={"x": [10**4300]}), UnsupportedValue, "an int at x/0"
    ),
    "metadata with a key of 4,301 digits": (
        lambda r, f: r.commit(ONE, metadata={"x": {-(10**4300): 1}}), UnsupportedValue, "an int at x"
    ),
    "metric that is text": (lambda r, f: r.commit(ONE, metrics={"loss": "1"}), UnsafeInput, "'loss'"),
    "metric beyond floats": (lambda r, f: r.commit(ONE, metrics={"loss": 10**400}), UnsafeInput, "'loss'"),
    "message with half a character": (lambda r, f: r.commit(ONE, "\udc80"), UnsafeInput, "surrogate"),
    "message of 17 MiB": (lambda r, f: r.commit(ONE, "x" * (17 << 20)), LimitExceeded, "is the limit"),
    # URLs
    **{
        f"URL {text!r:.40}": (url(text), error, part)
        for text, error, part in [
            ("s3://me:secret@b/x", UnsafeInput, "no credentials"), ("s3://secret@b/x", UnsafeInput, "no credentials"),
            ("az://c/x?sig=secret", UnsafeInput, "no credentials"), ("s3://b/x#secret", UnsafeInput, "no credentials"),
            ("simplecache::s3://b/secret", UnsafeInput, "chained"), ("s3://b/x::zip://secret", UnsafeInput, "'::'"),
            ("ftp://host/x", ConfigError, "not a kind of remote"), ("http://host/x", ConfigError, "not a kind"),
            ("javascript://x", ConfigError, "not a kind"), ("file://host/x", ConfigError, "no host"),
            ("file://x", ConfigError, "absolute path"), ("s3://", ConfigError, "bucket"), ("", UnsafeInput, "is a str"),
            ("a\nb", UnsafeInput, "printable"), (ESC, UnsafeInput, "printable"), ("/x" + RLO, UnsafeInput, "printable"),
            ("s3://" + "x" * 3000, UnsafeInput, "long"), ("a\0b", UnsafeInput, "printable"),
        ]
    },
    "URL that is bytes": (lambda r, f: check_url(b"/x"), UnsafeInput, "is a str"),  # type: ignore[arg-type]
    # files of a repository that say what cannot be
    "HEAD on a tag": (put("refs/HEAD/0000000001", entry("refs/HEAD", "refs/tags/x"), load), CorruptObject, "no branch"),
    "HEAD out of the repository": (
        put("refs/HEAD/0000000001", entry("refs/HEAD", "refs/heads/../../x"), load), CorruptObject, "HEAD names"
    ),
    "HEAD that clears the screen": (
        put("refs/HEAD/0000000001", entry("refs/HEAD", "refs/heads/" + ESC), load), CorruptObject, "\\x1b[2J"
    ),
    "branch on a path": (
        put("refs/heads/x/0000000001", entry("refs/heads/x", "../../etc"), lambda r, f: r.load("x")),
        CorruptObject, "no commit",
    ),
    "branch on what turns writing": (
        put("refs/heads/x/0000000001", entry("refs/heads/x", RLO), lambda r, f: r.branches()),
        CorruptObject, "\\u202e",
    ),
    "branch on a commit that is not there": (
        put("refs/heads/x/0000000001", entry("refs/heads/x", "0" * 64), lambda r, f: r.load("x")),
        CorruptObject, "is missing: no pack holds it. Run fsck",
    ),
    "tag that is torn": (
        put("refs/tags/t/0000000001", b"{", lambda r, f: r.load("t")), CorruptObject, "torn or was changed"
    ),
    "branch with another's entry": (
        put("refs/heads/x/0000000001", entry("refs/heads/y", "0" * 64), lambda r, f: r.load("x")),
        CorruptObject, "out of place",
    ),
    "gc with a branch on a path": (
        put("refs/heads/x/0000000001", entry("refs/heads/x", "../x"), lambda r, f: r.gc()), CorruptObject, "no commit"
    ),
    "remote of a URL with credentials": (
        put("remotes/o/remote", seal(_json.dumps({"name": "o", "url": "s3://a:b@c/d", "single_writer": False})),
            lambda r, f: r.fetch("o")),
        UnsafeInput, "no credentials",
    ),
    "remote of another name": (
        put("remotes/o/remote", seal(_json.dumps({"name": "p", "url": "/x", "single_writer": False})),
            lambda r, f: r.fetch("o")),
        CorruptObject, "not the record of the remote o",
    ),
    "remote of a list": (
        put("remotes/o/remote", seal(b"[]"), lambda r, f: r.fetch("o")), CorruptObject, "not the record"
    ),
    "format of a newer coral": (put("format", seal(b'{"format":9}'), load), NewerFormat, "Upgrade"),
    "no repository": (lambda r, f: Repository(f.parent), NotARepository, "init=True"),
    "path that is empty": (lambda r, f: Repository("", init=True), ConfigError, "is empty"),
    "clone to a path that is empty": (lambda r, f: Repository.clone(f, ""), ConfigError, "is empty"),
    "path with a NUL": (lambda r, f: Repository("a\0b"), UnsafeInput, "NUL"),
    "path that turns writing": (lambda r, f: Repository(f / RLO), NotARepository, "\\u202e"),
    "path that clears the screen": (lambda r, f: Repository(f / ESC), NotARepository, "\\x1b[2J"),
    # links, pipes, sockets in it
    **{
        f"{kind} for {path}": (instead(kind, path, load), CorruptObject, "")
        for kind in ("link", "dangling link", "pipe")
        for path in ("format", "packs/*", "refs/heads/main/0000000001")
    },
    "socket for the format": (instead("socket", "format", load), CoralError, ""),
    "link for a note": (
        put("notes/x", b"", instead("link", "notes/x", lambda r, f: r.store.fs.read("notes/x", 9))),
        CorruptObject, "is a link, not a file",
    ),
    # bombs, and streams that lie
    "codec of an unknown code": (lambda r, f: codec_of(77, 0), NewerFormat, "77"),
    "same without a base": (decoded(Same(), b"x"), CorruptObject, ""),
    "raw of too few bytes": (decoded(Raw(), b"x" * 1999), CorruptObject, ""),
    "raw of too many bytes": (decoded(Raw(), b"x" * 2001), CorruptObject, ""),
    "planes of no bytes": (decoded(Planes(Deflate()), b"", base=False), CorruptObject, "ends early"),
    "planes of junk": (decoded(Planes(Deflate()), b"\xff" * 50, base=False), CorruptObject, ""),
    "difference of no bytes": (decoded(PackDelta(Deflate()), b""), CorruptObject, "ends early"),
    "difference of junk": (decoded(PackDelta(Deflate()), b"\xff" * 5000), CoralError, ""),
    "deflate that holds 1 GiB": (
        lambda r, f: Deflate().decompress(bomb(1 << 30), 1000), CorruptObject, "exactly the 1000 bytes"
    ),
    "deflate that holds too little": (
        lambda r, f: Deflate().decompress(bomb(10), 1 << 40), CorruptObject, "does not hold exactly"
    ),
    "deflate that goes on": (lambda r, f: Deflate().decompress(bomb(10) + b"x", 10), CorruptObject, "behind the end"),
    "deflate of junk": (lambda r, f: Deflate().decompress(b"\xff" * 9, 10), CorruptObject, "cannot be decoded"),
    "deflate that ends early": (lambda r, f: Deflate().decompress(bomb(9)[:-1], 9), CorruptObject, "exactly"),
    # options
    "durability that is none": (lambda r, f: Repository(f, durability="most"), ConfigError, "'most'"),  # type: ignore[arg-type]
    "grace before the beginning": (lambda r, f: r.gc(-1), ConfigError, "0 or more"),
    "grace that is NaN": (lambda r, f: r.gc(float("nan")), ConfigError, "0 or more"),
    "delta of a negative size": (lambda r, f: DeltaConfig(min_size=-1), ConfigError, "min_size"),
    "delta of an unknown coder": (lambda r, f: DeltaConfig(entropy="lzma"), ConfigError, "entropy"),  # type: ignore[arg-type]
    "pull with an unknown merge": (lambda r, f: r.pull(merge="both"), ConfigError, '"ours", "theirs"'),  # type: ignore[arg-type]
    "clone of depth 0": (lambda r, f: Repository.clone(f, f / "x", depth=0), ConfigError, "1 or more"),
    "clone of nothing": (lambda r, f: Repository.clone(f / "x", f / "y"), NotARepository, "Correct the URL"),
    "metric of a note that is text": (lambda r, f: r.annotate("HEAD", metrics={"a": "b"}), UnsafeInput, "'a'"),
    "reason that is a number": (lambda r, f: r.annotate("HEAD", reasons=[1]), UnsafeInput, "reason"),
}  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_is_one_clear_error(repo: Repository, folder: Path, name: str) -> None:
    do, error, part = CASES[name]
    repo.commit(ONE, "first")
    before = sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(CoralError) as caught:
        do(repo, folder)
    assert isinstance(caught.value, error)
    assert error is CoralError or type(caught.value) is error or error is CorruptObject
    said = str(caught.value)
    assert part in said
    assert said.replace("\n", "").isprintable()
    assert "secret" not in said
    assert len(said) < 1000
    assert {path.name for path in folder.parent.iterdir()} - set(before) <= {"outside"}


CORPUS = CASES

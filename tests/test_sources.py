"""No file of the packages runs what it reads: no pickle, no eval, no loading of arrays that may hold objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(ROOT.glob("packages/*/src/**/*.py"))
PICKLERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
RUNNING = {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen"}
LOADING = {"np.load", "numpy.load", "np.fromstring", "yaml.load", "yaml.unsafe_load", "pandas.read_pickle"}


def dotted(node: ast.AST) -> str:
    match node:
        case ast.Name(id=id):
            return id
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
    return "?"


def faults(source: str) -> Iterator[str]:
    """What in a file could run what it reads, each with its line."""
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', '?')}"
        match node:
            case ast.Import(names=names):
                found = {alias.name.partition(".")[0] for alias in names} & PICKLERS
            case ast.ImportFrom(module=module, names=names):
                found = {(module or "").partition(".")[0]} & PICKLERS
                found |= {f"{module}.{alias.name}" for alias in names} & {"numpy.load", "torch.load"}
            case ast.Call(func=func, keywords=keywords):
                called = dotted(func)
                found = {called} & (RUNNING | LOADING)
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in keywords)
                if called.endswith("torch.load") and not safe:
                    found |= {"torch.load without weights_only=True"}
                if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in keywords):
                    found |= {"allow_pickle"}
                if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in keywords):
                    found |= {"shell"}
                if any(k.arg == "trust_remote_code" and ast.unparse(k.value) != "False" for k in keywords):
                    found |= {"trust_remote_code"}
            case _:
                continue
        yield from (f"{where}: {each}" for each in sorted(found))


def test_all_four_packages_are_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[1] for path in FILES} == {
        "coral-core",
        "coral-torch",
        "coral-lightning",
        "coral-hf",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "packages")))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert list(faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "import os, marshal", "from pickle import loads", "import dill.source", "eval('1')",
        "def f():\n    exec(x)", "np.load(f)", "from numpy import load", "x.load(f, allow_pickle=True)",
        "torch.load(f)", "torch.load(f, weights_only=False)", "from torch import load", "__import__('x')",
        "subprocess.run(x, shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_what_would_is_seen(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize("source", ["torch.load(f, weights_only=True)", "re.compile(x)", "np.frombuffer(x)"])
def test_what_would_not_is_let_be(source: str) -> None:
    assert not list(faults(source))

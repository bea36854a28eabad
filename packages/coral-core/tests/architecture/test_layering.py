"""Every arrow points down, there are no circles, and only the filesystem talks to the operating system."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import coral

SOURCE = Path(coral.errors.__file__).parent

FLOORS = [
    {"coral._version", "coral._fork", "coral._handing", "coral._process", "coral._unreadable", "coral.errors",
     "coral.training._events"},
    {"coral._digest", "coral._json", "coral.training._config"},
    {"coral._local_files"},
    {"coral.weights", "coral.filesystem", "coral.training._now", "coral.training._policy",
     "coral.training._policy_state", "coral.training._retention"},
    {"coral.state"},
    {"coral.objects", "coral.delta", "coral._summaries"},
    {"coral.store"},
    {"coral.maintenance", "coral._resolve", "coral._loading"},
    {"coral.remotes"},
    {"coral._naming"},
    {"coral._reading", "coral._remoting"},
    {"coral.repository"},
    {"coral"},
    {"coral.training"},
    {"coral.cli", "coral.testing"},
    {"coral.__main__"},
]  # fmt: skip
"""Ground floor first. A package stands for all in it that is not named itself. Those of one floor may not know each
other, but for the modules within one of the packages that _WITHIN names."""

_WITHIN = {
    "coral.store",
    "coral.delta",
    "coral.maintenance",
    "coral.remotes",
    "coral.training",
    "coral.cli",
    "coral.testing",
}

POLICY = {"_policy", "_policy_state", "_retention", "_now", "_events", "_config"}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["coral", *path.relative_to(SOURCE).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not name.startswith("coral.integrations"):
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The modules of coral that a module imports, wherever in it."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "coral")
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            assert not node.level, f"{name} imports relatively"
            if package.partition(".")[0] == "coral":
                for alias in node.names:
                    full = f"{package}.{alias.name}"
                    yield full if full in MODULES else package


def home(name: str) -> str:
    """The entry of FLOORS that a module belongs to."""
    every = set().union(*FLOORS)
    while name not in every:
        assert name != "coral", "a module that stands on no floor"
        name = name.rpartition(".")[0]
    return name


def floor(name: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if home(name) in names)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_stands_on_a_floor(name: str) -> None:
    assert home(name) != "coral" or name == "coral", f"{name} has no floor of its own: add it to FLOORS"


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_down(name: str) -> None:
    for target in imports(name):
        within = any(name.startswith(p) and target.startswith(p) for p in _WITHIN)
        assert within or floor(target) < floor(name), f"{name} imports {target}, which does not stand below it"


def test_there_are_no_circles() -> None:
    graph = {name: {t for t in imports(name) if t != name} for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize("name", sorted(f"coral.training.{part}" for part in POLICY))
def test_the_policy_stands_on_the_ground(name: str) -> None:
    allowed = {"coral.errors", *(f"coral.training.{part}" for part in POLICY)}
    assert set(imports(name)) <= allowed
    outside: set[str] = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            outside |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            outside.add((node.module or "").partition(".")[0])
    assert not outside & {
        "os",
        "io",
        "time",
        "datetime",
        "random",
        "pathlib",
        "numpy",
        "socket",
        "threading",
        "logging",
    }


def test_the_events_and_the_config_know_nothing_of_the_policy() -> None:
    assert set(imports("coral.training._events")) == set()
    assert set(imports("coral.training._config")) == {"coral.errors"}


def test_the_kits_stand_apart_and_use_what_third_parties_can() -> None:
    kits = {name for name in MODULES if name.startswith("coral.testing")}
    assert kits
    for name in MODULES:
        used = {target for target in imports(name) if target.startswith("coral.testing")}
        assert name in kits or not used, f"{name} imports a kit, which needs pytest"
    for name in kits:
        private = {target for target in imports(name) if "._" in target and not target.startswith("coral.testing")}
        assert not private, f"{name} imports {private}: a kit proves what is public"


@pytest.mark.parametrize("name", MODULES)
def test_only_the_kits_know_the_tools_of_tests(name: str) -> None:
    nodes = list(ast.walk(MODULES[name]))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    tools = {module.partition(".")[0] for module in named} & {"pytest", "hypothesis", "unittest"}
    assert not tools or name.startswith("coral.testing"), f"{name} imports {tools}"


# -- what only the seam may do -----------------------------------------------------------------------------------------

HARMLESS = {
    "os.urandom": "bytes at random; nothing is read or written",
    "os.getpid": "which process this is, for its threads and the run",
    "os.PathLike": "a type",
    "os.fspath": "a path as text",
    "os.sched_getaffinity": "how many cores there are",
    "os.cpu_count": "how many cores there are",
    "os.register_at_fork": "new locks for a forked process",
}
ELSEWHERE = {
    "coral.filesystem", "coral._local_files", "coral._process", "coral.training._memory", "coral.training._upkeep",
    "coral.training._pushing", "coral.maintenance._crew",
}  # fmt: skip
"""The seam itself, the reading of how much memory is free, and the starting of processes that repack or push."""

IO_MODULES = {"os", "io", "shutil", "tempfile", "mmap", "glob", "fcntl", "subprocess", "socket", "pathlib", "ctypes"}
PATH_IO = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "unlink", "mkdir", "rmdir", "rename",
           "replace", "touch", "exists", "is_file", "is_dir", "iterdir", "glob", "rglob", "stat", "lstat",
           "symlink_to", "hardlink_to"}  # fmt: skip


def dotted(node: ast.AST) -> str:
    match node:
        case ast.Name(id=id):
            return id
        case ast.Attribute(value=value, attr=attr):
            return f"{dotted(value)}.{attr}"
    return "?"


SEALED = [
    name for name in MODULES
    if name not in ELSEWHERE and not name.startswith(("coral.cli", "coral.testing", "coral.__main__", "coral.remotes"))
]  # fmt: skip


@pytest.mark.parametrize("name", SEALED)
def test_only_the_seam_talks_to_the_system(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Attribute) and dotted(node).partition(".")[0] in IO_MODULES - {"socket"}:
            assert dotted(node) in HARMLESS, f"{name}:{node.lineno} uses {dotted(node)}"
        if isinstance(node, ast.ImportFrom) and node.module in IO_MODULES:
            assert {alias.name for alias in node.names} <= {"Path"}, f"{name}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open", f"{name}:{node.lineno} opens a file"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATH_IO:
            owner = node.func.value
            assert not (isinstance(owner, ast.Call) and dotted(owner.func) == "Path"), f"{name}:{node.lineno}"
            assert dotted(owner) not in ("path", "self.path"), f"{name}:{node.lineno} does I/O on a path"


@pytest.mark.parametrize("name", MODULES)
def test_nothing_that_runs_what_it_reads(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            every = {alias.name.partition(".")[0] for alias in node.names} | {
                (getattr(node, "module", "") or "").partition(".")[0]
            }
            assert not every & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch"}, name
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            assert called not in {"eval", "exec", "compile", "__import__", "np.load", "numpy.load", "np.save"}, (
                f"{name}:{node.lineno}"
            )
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle", name

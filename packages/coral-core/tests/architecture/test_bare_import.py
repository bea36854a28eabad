"""coral-core needs numpy and the standard library, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import coral

PROGRAM = """
import sys
before = set(sys.modules)
sys.path[:] = sys.argv[2:] + [path for path in sys.path if "site-packages" not in path]
import {module}
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(" ".join(sorted(loaded - set(sys.stdlib_module_names))))
"""


@pytest.mark.parametrize("module", ["coral", "coral, coral.training", "coral.errors"])
def test_importing_loads_nothing_foreign(module: str, tmp_path: Path) -> None:
    # only numpy and coral can be found; -I: neither the environment nor the current folder count
    for name, package in (("numpy", np), ("coral", coral)):
        (tmp_path / name).symlink_to(Path(package.__path__[0]), target_is_directory=True)
    libs = Path(np.__path__[0]).with_name("numpy.libs")
    if libs.exists():
        (tmp_path / "numpy.libs").symlink_to(libs, target_is_directory=True)
    command = [sys.executable, "-I", "-W", "error", "-c", PROGRAM.format(module=module), module, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"coral", "numpy"}
    assert "coral" in done.stdout.split()


def test_importing_starts_no_threads_and_reads_no_environment() -> None:
    program = "import threading, coral, coral.training; assert threading.active_count() == 1"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

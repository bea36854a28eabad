"""Folders beside a repository, for as long as a program goes on."""

import os
import subprocess
import sys
from pathlib import Path

from coral.integrations.pytorch._files import temporary

KILLED = """
import os, signal, sys
from pathlib import Path
from coral.integrations.pytorch._files import temporary
print(temporary(Path(sys.argv[1])), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_of_a_program_that_was_killed_is_removed_by_the_next(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "weights")]
    left = Path(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False).stdout.strip())
    (left / "file").write_text("")
    mine, host = temporary(tmp_path / "weights"), left.name.split("-")[1]
    assert not left.exists()
    others = [
        tmp_path / "weights.resume-0123",  # of nobody knows which process
        tmp_path / left.name.replace(host, "0" * 8),  # of another machine
        tmp_path / left.name.replace("weights", "others"),
    ]
    for each in others:
        each.mkdir()
    assert temporary(tmp_path / "weights") != mine
    assert all(each.exists() for each in [mine, *others])


def test_a_folder_is_beside_a_repository_that_is_named_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert temporary(Path("~/weights")).parent == tmp_path
    monkeypatch.chdir(tmp_path)
    assert temporary(Path()).name.startswith(tmp_path.name)

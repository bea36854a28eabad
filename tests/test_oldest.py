"""What the packages say they need at least is what `nox -s compat` installs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent

ELSEWHERE = {
    "torch": "older builds for the CPU are not in the registry",
    "typing-extensions": "what torch needs is newer",
    "backports-zstd": "not a framework",
}
"""Requirements whose oldest version is not tested, and why."""


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("package", ["coral-lightning", "coral-hf", "coral-torch", "coral-core"])
def test_the_oldest_versions_are_the_declared_ones(package: str) -> None:
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {})
    declared = [Requirement(each) for each in (*project["dependencies"], *extras.get("peft", ()))]
    oldest = pins("constraints-oldest.txt")
    for requirement in declared:
        if requirement.name.startswith("coral-") or requirement.name in ELSEWHERE:
            continue
        (least,) = [each.version for each in requirement.specifier if each.operator == ">="]
        assert Version(oldest[requirement.name]) == Version(least), requirement


def test_the_oldest_are_older_than_the_pinned() -> None:
    newest = pins("constraints.txt")
    for name, version in pins("constraints-oldest.txt").items():
        if name in newest:
            assert Version(version) < Version(newest[name]), name

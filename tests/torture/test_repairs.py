"""The bounded part of the repairs that do not end."""

from __future__ import annotations

import pytest
import repairs
from crash import MODELS
from memory import MemoryFileSystem

from coral.maintenance._quarantine import Quarantine


@pytest.mark.parametrize("damage", repairs.DAMAGES)
def test_a_repair_that_does_not_end_loses_nothing(damage: str) -> None:
    tally = repairs.run(damage, cap=2, thin=9)
    print(f"{damage}: {tally.cases} states, {len(tally.violations)} violations, {tally.seconds:.1f} s")
    assert tally.cases > 4 * len(MODELS)
    assert tally.violations == []


def test_it_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set aside is not where it should be before it is removed."""

    def keep(self: Quarantine, path: str) -> str:
        target = self._place(path)
        self._fs.link(path, target)
        self.paths.append(target)
        return target  # without a sync of the folder

    monkeypatch.setattr(Quarantine, "keep", keep)
    assert repairs.run("a byte of a tensor", cap=8, stop=1).violations


def test_a_silently_wrong_tensor_is_seen() -> None:
    fs, ids = repairs.build()
    case = repairs._Case("the header of a pack")
    case.ids = ids[::-1]
    with pytest.raises(AssertionError, match="SILENTLY WRONG"):
        case._loads(MemoryFileSystem.of(fs.tree()), ids[0])

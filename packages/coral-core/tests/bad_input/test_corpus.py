"""The corpus as a whole."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def corpora() -> dict[str, dict[str, Any]]:
    """CORPUS of each part, by its file."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_corpus_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[path.stem] = module.CORPUS
    return found


def test_there_are_as_many_as_are_claimed() -> None:
    names = [name for corpus in corpora().values() for name in corpus]
    print(f"{len(names)} cases of bad input")
    assert len(set(names)) == len(names)
    assert len(names) >= 350


def test_each_asks_for_an_error_of_corals() -> None:
    for corpus in corpora().values():
        for case in corpus.values():
            errors = [part for part in case if isinstance(part, type)]
            assert not errors or all(error.__module__ == "coral.errors" for error in errors)

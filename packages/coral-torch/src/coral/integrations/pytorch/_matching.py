"""Which weight is for which name of a model: renamed by the user, and with what wrappers add to a name left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from coral.errors import ConfigError

__all__ = ["KeyMap", "Names", "match_names"]

KeyMap = Mapping[str, str] | Callable[[str], str] | Sequence[tuple[str | re.Pattern[str], str]]
"""Names of weights to names of the model: a dict, a function, or (regex, replacement) pairs applied in turn."""

_WRAPPERS = frozenset({"module", "_orig_mod"})  # DataParallel and DistributedDataParallel; torch.compile


class Names(NamedTuple):
    """For each name of the model that a weight is for, the weight's name; and the weights that are for none."""

    sources: dict[str, str]
    unexpected: list[str]


def match_names(given: Iterable[str], known: Collection[str], key_map: KeyMap | None = None, prefix: str = "") -> Names:
    """Match names of weights to those of a model.

    With a `prefix` only the weights below it count, by what follows it: "encoder" takes encoder.weight as weight.
    `key_map` then renames them; a name that its dict lacks stays as it is. A name that the model lacks is looked for
    once more without the `module` and `_orig_mod` of wrappers, in both. Names keep the order of `known`.

    ConfigError if two weights come to one name, if a regex is wrong, or if key_map is none of the three.
    """
    rename = _renaming(key_map)
    bare = _by_bare_name(known)
    found: dict[str, list[str]] = {}
    for name in given:
        inner = _below(prefix, name)
        if inner is not None:
            target = rename(inner)
            target = bare.get(_bare(target)) or target
            found.setdefault(target, []).append(name)
    if clashes := [f"{' and '.join(names)} as {target}" for target, names in found.items() if len(names) > 1]:
        raise ConfigError(f"several weights would be loaded under one name; keep them apart: {'; '.join(clashes)}")
    return Names(
        sources={name: found[name][0] for name in known if name in found},
        unexpected=[names[0] for target, names in found.items() if target not in known],
    )


def _bare(name: str) -> str:
    *path, leaf = name.split(".")
    return ".".join([*(part for part in path if part not in _WRAPPERS), leaf])


def _by_bare_name(known: Collection[str]) -> dict[str, str | None]:
    """The names by what is left of them without wrappers; None where that says no more which one is meant."""
    found: dict[str, str | None] = {}
    for name in known:
        bare = _bare(name)
        found[bare] = None if bare in found else name
    return found


def _below(prefix: str, name: str) -> str | None:
    """What follows the prefix in the name, or None where the name is not below it."""
    if not prefix:
        return name
    prefix = prefix.rstrip(".") + "."
    for each in (name, _bare(name)):
        if each.startswith(prefix):
            return each.removeprefix(prefix)
    return None


def _renaming(key_map: KeyMap | None) -> Callable[[str], str]:
    if key_map is None:
        return lambda name: name
    if isinstance(key_map, Mapping):
        return lambda name: _checked(key_map.get(name, name), name)
    if callable(key_map):
        return lambda name: _checked(key_map(name), name)
    try:
        pairs = [(re.compile(pattern), replacement) for pattern, replacement in key_map]
    except (TypeError, ValueError) as error:
        raise ConfigError("key_map is a dict, a function, or a list of (regex, replacement) pairs") from error
    except re.error as error:
        raise ConfigError(f"key_map holds {error.pattern!r}, which is no regex: {error}") from error

    def substitute(name: str) -> str:
        for pattern, replacement in pairs:
            try:
                name = pattern.sub(replacement, name)
            except (TypeError, IndexError, re.error) as error:
                raise ConfigError(f"key_map cannot put {replacement!r} for {pattern.pattern!r}: {error}") from error
        return name

    return substitute


def _checked(name: object, old: str) -> str:
    if not isinstance(name, str):
        raise ConfigError(f"key_map makes {name!r} of {old!r}; it must make the name in the model of it, a str")
    return name

"""Which adapters are installed: what their packages say of themselves, without importing any."""

from __future__ import annotations

GROUP = "coral.adapters"


def installed_adapters() -> list[str]:
    """Each adapter of the entry-point group `coral.adapters`: its name, then its package with the version."""
    from importlib.metadata import entry_points  # no other command waits for it

    found = set()
    for entry in entry_points(group=GROUP):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "of no package"
        found.add(f"{entry.name} ({package})")
    return sorted(found)

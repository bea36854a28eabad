"""Upkeep of a store; nothing here knows of a Repository."""

from coral.maintenance._fsck import FsckReport, Problem, fsck

__all__ = ["FsckReport", "Problem", "fsck"]

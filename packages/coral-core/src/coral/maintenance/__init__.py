"""Upkeep of a store; nothing here knows of a Repository."""

from coral.maintenance._crew import serve
from coral.maintenance._fsck import fsck
from coral.maintenance._gc import Collected, Collector
from coral.maintenance._repack import Progress, Repacked, repack
from coral.maintenance._repair import repair, restore_format
from coral.maintenance._report import FsckReport, Problem
from coral.maintenance._scrubbing import scrubbing
from coral.maintenance._statistics import statistics

__all__ = [
    "Collected",
    "Collector",
    "FsckReport",
    "Problem",
    "Progress",
    "Repacked",
    "fsck",
    "repack",
    "repair",
    "restore_format",
    "scrubbing",
    "serve",
    "statistics",
]

"""Upkeep of a store; nothing here knows of a Repository."""

from coral.maintenance._crew import serve
from coral.maintenance._fsck import FsckReport, Problem, fsck
from coral.maintenance._gc import Collected, Collector
from coral.maintenance._repack import Progress, Repacked, repack
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
    "serve",
    "statistics",
]

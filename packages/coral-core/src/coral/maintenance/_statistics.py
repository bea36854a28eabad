"""What a repository takes, in all and by commit."""

from __future__ import annotations

from coral._summaries import CommitStats, Stats
from coral.maintenance._gc import Collector

__all__ = ["statistics"]


def statistics(collector: Collector) -> Stats:
    """How much there is, and how much of it could go."""
    with collector.lock:
        return _statistics(collector)


def _statistics(collector: Collector) -> Stats:
    store = collector.store
    reclaimable = collector.reclaimable()
    marks, settled = collector.survey()
    seen: set[str] = set()
    by_commit = []
    for commit in marks.commits:
        if not commit.pruned:
            own = set(collector.marker.tensors(commit)) - seen
            seen |= own
            stored = sum(settled[id].size for id in own if id in settled)
            by_commit.append(CommitStats(commit.id, commit.step, commit.nbytes, stored))
    return Stats(
        commits=len(marks.commits),
        packs=len(collector.inventory.packs()),
        raw_bytes=sum(each.raw_bytes for each in by_commit),
        stored_bytes=store.fs.usage(),
        reclaimable_bytes=reclaimable,
        base_bytes=sum(copy.size for id, copy in settled.items() if id not in marks),
        by_commit=tuple(by_commit),
    )

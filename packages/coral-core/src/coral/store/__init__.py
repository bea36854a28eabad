"""The store: packs, index, refs, notes and intents, all of them put if absent and none of them changed."""

from coral.store._chain import Chain, Stored
from coral.store._committing import Draft, annotate, commit, merged
from coral.store._copies import Copies
from coral.store._intents import Intent, Operation, intent, intents, needed
from coral.store._refs import check_ref_name
from coral.store._store import Durability, Store

__all__ = [
    "Chain",
    "Copies",
    "Draft",
    "Durability",
    "Intent",
    "Operation",
    "Store",
    "Stored",
    "annotate",
    "check_ref_name",
    "commit",
    "intent",
    "intents",
    "merged",
    "needed",
]

"""The store: packs, index, refs, notes and intents, all of them put if absent and none of them changed."""

from coral.store._committing import Draft, annotate, commit
from coral.store._intents import intent, needed
from coral.store._refs import check_ref_name
from coral.store._store import Copies, Durability, Store, Stored

__all__ = [
    "Copies",
    "Draft",
    "Durability",
    "Store",
    "Stored",
    "annotate",
    "check_ref_name",
    "commit",
    "intent",
    "needed",
]

"""What is public, and that it is listed."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

import coral
import coral.errors
import coral.training

LOCKED = {
    "coral": ["Commit", "CoralError", "DeltaConfig", "Repository", "WeightTensor", "__version__"],
    "coral.errors": [
        "AmbiguousRef", "CommitInUse", "CommitPruned", "ConfigError", "Conflict", "CoralError", "CorruptObject",
        "DiskFull", "Diverged", "EmptyCommit", "LimitExceeded", "MissingExtra", "MissingObject", "NewerFormat",
        "NotARepository", "PolicyError", "ReadOnly", "RefError", "RefExists", "RemoteDenied", "RemoteError",
        "RemoteNotFound", "RemoteUnreachable", "RepositoryError", "SaveFailedError", "StorageError", "UnknownRef",
        "UnknownRemote", "UnsafeInput", "UnsupportedValue", "WeightsMismatch",
    ],
    "coral.filesystem": ["FileStat", "FileSystem", "LocalFileSystem", "Origin", "ReadFile", "WriteFile"],
    "coral.delta": [
        "BLOCK_ELEMENTS", "Bits", "Choice", "Codec", "Deflate", "DeltaConfig", "Entropy", "GroupedDelta", "PackDelta",
        "Planes", "Raw", "Same", "Zstd", "carrier", "choose", "codec_of", "entropy_of", "similarity", "spans",
    ],
    "coral.maintenance": [
        "Collected", "Collector", "FsckReport", "Problem", "Progress", "Repacked", "fsck", "repack", "repair",
        "restore_format", "scrubbing", "serve", "statistics",
    ],
    "coral.objects": ["Commit", "Note", "State", "TensorEntry", "Tree"],
    "coral.remotes": [
        "DuePush", "Fetched", "Newest", "Pushed", "Remote", "RemoteFile", "RemoteRecord", "add_due",
        "check_remote_name", "dues", "is_url", "open_remote", "remove_due",
    ],
    "coral.repository": ["CommitStats", "Diff", "Repository", "Stats"],
    "coral.state": ["StateValue", "flatten", "unflatten"],
    "coral.store": [
        "Chain", "Copies", "Draft", "Durability", "Intent", "Operation", "Store", "Stored", "annotate",
        "check_ref_name", "commit", "intent", "intents", "merged", "needed",
    ],
    "coral.testing": [
        "SCHEDULES", "AdapterTests", "Checkpoint", "Course", "Crash", "Evaluations", "Leg", "Reference", "RemoteTests",
        "Schedule", "TrainingCrash", "reference", "weights_at",
    ],
    "coral.training": [
        "DEFAULT_CONFIG", "Action", "Annotate", "Buffers", "CheckpointConfig", "CheckpointManager", "CheckpointPolicy",
        "EpochEnd", "Evaluated", "Event", "Interrupted", "Kept", "PolicyState", "Prune", "Save", "SaveFailed",
        "SaveRequested", "Saved", "Signals", "Snapshot", "StateSource", "StepEnd", "Stop", "TrainBegin", "TrainEnd",
        "TrainingState", "copy_all",
    ],
    "coral.weights": ["DTYPES", "Array", "DType", "WeightTensor", "check_name", "check_shape"],
}  # fmt: skip


def style(name: str) -> tuple[int, str]:
    """The order in which names are listed: constants, classes, the rest."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


@pytest.mark.parametrize("name", LOCKED)
def test_the_list_is_locked(name: str) -> None:
    assert importlib.import_module(name).__all__ == LOCKED[name]


@pytest.mark.parametrize("name", LOCKED)
def test_the_list_is_sorted_and_all_of_it_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__, key=style)
    assert len(set(module.__all__)) == len(module.__all__)
    for member in module.__all__:
        assert hasattr(module, member)


@pytest.mark.parametrize("module", [coral, coral.training, coral.errors], ids=lambda m: m.__name__)
def test_nothing_public_is_left_out(module: ModuleType) -> None:
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__.startswith("coral")
    }
    assert public - set(module.__all__) <= {"storage_errors", "from_os_error", "printable"}  # for coral's own modules


@pytest.mark.parametrize("name", LOCKED)
def test_what_is_public_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for member in module.__all__:
        value = getattr(module, member)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{member}"


@pytest.mark.parametrize("kind", [coral.Repository, coral.Commit, coral.WeightTensor], ids=lambda kind: kind.__name__)
def test_what_users_call_has_a_docstring(kind: type) -> None:
    for name, member in vars(kind).items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, (property, classmethod))):
            assert member.__doc__, f"{kind.__name__}.{name}"

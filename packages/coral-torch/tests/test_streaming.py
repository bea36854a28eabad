"""Loading one tensor at a time."""

import gc
import io
import sys
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from coral.errors import CommitPruned, ConfigError, CorruptObject, UnknownRef, WeightsMismatch
from coral.integrations.pytorch import StreamingWeightLoader, save_model_to_coral, stream_load_model


class Net(nn.Module):
    """Tied, expanded and integer tensors, and buffers that are one; what follows is told by hooks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(2).expand(3, -1))
        self.register_buffer("twin", self.norm.running_mean)
        self.loads = []
        self.register_load_state_dict_post_hook(lambda model, keys: self.loads.append(self.head.weight[0, 0].item()))


def filled(model):
    """The model with other numbers in every parameter and buffer."""
    for name, tensor in model.state_dict().items():
        tensor = tensor[:1] if name == "scale" else tensor  # torch refuses to write into what is expanded
        tensor.copy_(torch.arange(7.0, 7 + tensor.numel()).reshape(tensor.shape))
    return model


def same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def on_meta(make):
    with torch.device("meta"):
        return make()


def reads(monkeypatch):
    """The names of the weights that are read from now on, as they are."""
    found = []
    original = StreamingWeightLoader._stream

    def stream(self, names, *args):
        for name, tensor in original(self, names, *args):
            found.append(name)
            yield name, tensor

    monkeypatch.setattr(StreamingWeightLoader, "_stream", stream)
    return found


@pytest.fixture
def saved(repo):
    """A repository with a Net in it."""
    save_model_to_coral(filled(Net()), repo, "net")
    return repo


@pytest.fixture
def packed(repo):
    """A repository with a commit, HEAD~1, of several batches, that is stored as differences."""
    random = np.random.default_rng(0)
    weights = {f"{n}": random.standard_normal((1 << 10, 600), np.float32) for n in range(12)}
    for _ in range(3):
        repo.commit(weights)
        weights = {name: array * np.float32(1 + 1e-5) for name, array in weights.items()}
    repo.repack()
    assert {chain.depth for chain in repo.load("HEAD~1")._stored.values()} == {1}
    return repo


def test_what_there_is_is_known_without_reading_any(saved):
    saved.commit({"x": np.zeros(0, np.int8)}, branch="other")
    loader = StreamingWeightLoader(saved.path, "main")
    for pack in saved.path.rglob("*.pack"):
        pack.unlink()
    model = Net().state_dict()
    assert loader.num_weights == len(model)
    assert sorted(loader.weight_names) == sorted(model)
    assert loader.get_weight_info()["embed.weight"] == {"dtype": "float32", "shape": (5, 3), "nbytes": 60}
    assert loader.estimate_memory() == sum(tensor.nbytes for tensor in model.values())


def test_the_commit_is_the_one_that_the_ref_meant(saved):
    loader = StreamingWeightLoader(saved)
    saved.commit({"x": np.ones(1)})
    assert loader.num_weights == len(dict(loader.stream_weights())) > 1
    assert StreamingWeightLoader(saved, "HEAD~1").commit == loader.commit
    with pytest.raises(UnknownRef):
        StreamingWeightLoader(saved, "nowhere")
    saved.annotate("HEAD~1", pruned=True)  # its tensors are still there
    with pytest.raises(CommitPruned):
        StreamingWeightLoader(saved, "HEAD~1")


def test_weights_come_by_name_those_that_are_wanted(saved):
    loader, model = StreamingWeightLoader(saved), filled(Net())
    found = dict(loader.stream_weights())
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    names = [name for name, _ in loader.stream_weights(filter_fn=lambda name: name.startswith("norm"))]
    assert names == [name for name in loader.weight_names if name.startswith("norm")] != []


def test_weights_come_in_the_dtype_and_on_the_device_that_are_asked_for(saved):
    found = dict(StreamingWeightLoader(saved).stream_weights(device="meta", dtype=torch.float16))
    assert found["embed.weight"].dtype is torch.float16
    assert found["norm.num_batches_tracked"].dtype is torch.int64  # a count stays one
    assert all(tensor.is_meta for tensor in found.values())


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, "float16"])
def test_a_dtype_that_loses_what_weights_are_is_refused(saved, dtype):
    with pytest.raises(ConfigError, match="dtype"):
        StreamingWeightLoader(saved).stream_weights(dtype=dtype)
    with pytest.raises(ConfigError, match="dtype"):
        stream_load_model(Net(), saved, dtype=dtype)


@pytest.mark.parametrize("make", [Net, lambda: on_meta(Net)])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_model_is_filled(saved, make, device):
    model, wanted = make(), filled(Net())
    report = stream_load_model(model, saved.path, device=device)
    assert same(model, wanted)
    assert report["loaded"] == list(wanted.state_dict())
    assert report["matched"] == len(report["loaded"])
    assert (report["missing"], report["unexpected"]) == ([], [])
    assert model.head.weight is model.embed.weight
    assert model.twin is model.norm.running_mean
    assert model.loads[-1] == 7  # hooks run when all is there


def test_a_real_model_keeps_its_parameters_and_their_memory(saved):
    model = Net()
    held = {name: (tensor, tensor.data_ptr()) for name, tensor in model.named_parameters()}
    stream_load_model(model, saved)
    assert all(p is held[name][0] and p.data_ptr() == held[name][1] for name, p in model.named_parameters())


@pytest.mark.parametrize("ref", ["HEAD", "HEAD~1"])
def test_what_is_read_becomes_the_parameter_of_a_model_without_memory(packed, ref, monkeypatch):
    pointers = {}
    original = StreamingWeightLoader._stream

    def stream(self, *args):
        for name, tensor in original(self, *args):
            pointers[name] = tensor.data_ptr()
            yield name, tensor

    monkeypatch.setattr(StreamingWeightLoader, "_stream", stream)
    model = on_meta(lambda: nn.ParameterList([torch.empty(1 << 10, 600) for _ in range(12)]))
    stream_load_model(model, packed, ref)
    assert {name: tensor.data_ptr() for name, tensor in model.named_parameters()} == pointers
    assert all(np.array_equal(p.detach(), packed.load(ref)[name].data) for name, p in model.named_parameters())
    before = packed.load(ref)["3"].data.copy()
    with torch.no_grad():
        model[3].add_(1)  # the pages are copied, the file stays
    assert np.array_equal(packed.load(ref)["3"].data, before)
    assert packed.fsck().ok


@pytest.mark.parametrize("ref", ["HEAD", "HEAD~1"])
def test_one_tensor_at_a_time_is_held(packed, ref, monkeypatch):
    alive = []
    original = StreamingWeightLoader._stream

    def stream(self, *args):
        held = []
        for name, tensor in original(self, *args):
            alive.append(sum(reference() is not None for reference in held))
            held.append(weakref.ref(tensor))
            yield name, tensor
            del tensor

    monkeypatch.setattr(StreamingWeightLoader, "_stream", stream)
    stream_load_model(nn.ParameterList([torch.zeros(1 << 10, 600) for _ in range(12)]), packed, ref)
    assert alive == [0] * 12


def test_tied_names_are_read_once(saved, monkeypatch):
    read = reads(monkeypatch)
    stream_load_model(on_meta(Net), saved)
    assert {"embed.weight", "twin"} <= set(read)
    assert not {"head.weight", "norm.running_mean"} & set(read)


def test_nothing_is_read_for_what_will_be_refused(saved, monkeypatch):
    read = reads(monkeypatch)
    model = on_meta(lambda: nn.ModuleDict({"embed": nn.Embedding(5, 4), "more": nn.Linear(1, 1, bias=False)}))
    with pytest.raises(WeightsMismatch) as caught:
        stream_load_model(model, saved)
    assert read == []
    assert caught.value.missing == ["more.weight"]
    assert "norm.weight" in caught.value.unexpected
    assert caught.value.mismatched == {"embed.weight": ("float32 (5, 4)", "float32 (5, 3)")}
    assert model["embed"].weight.is_meta


def test_what_does_not_fit_is_not_read_either(saved, monkeypatch):
    read = reads(monkeypatch)
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "embed": nn.Embedding(5, 4)})
    report = stream_load_model(model, saved, strict=False)
    assert sorted(read) == sorted(report["loaded"]) == sorted(f"norm.{name}" for name in model["norm"].state_dict())
    assert report["mismatched"].keys() == {"embed.weight"}


def test_a_tied_model_does_not_take_two_values_and_reads_none(repo, monkeypatch):
    model = filled(Net())
    model.head.weight = nn.Parameter(torch.zeros(5, 3))
    save_model_to_coral(model, repo, "untied")
    read = reads(monkeypatch)
    with pytest.raises(WeightsMismatch, match=r"tied to embed\.weight"):
        stream_load_model(Net(), repo)
    assert read == []


@pytest.mark.parametrize("make", [Net, lambda: on_meta(Net)])
def test_with_a_dtype_model_and_weights_become_of_it(saved, make):
    model = make()
    stream_load_model(model, saved, dtype=torch.float64)
    state, wanted = model.state_dict(), filled(Net()).state_dict()
    assert state["norm.num_batches_tracked"].dtype is torch.int64
    assert all(tensor.dtype is torch.float64 for tensor in state.values() if tensor.is_floating_point())
    assert all(torch.equal(tensor, wanted[name].to(tensor.dtype)) for name, tensor in state.items())
    assert model.head.weight is model.embed.weight
    assert model.twin is model.norm.running_mean


def test_without_a_dtype_nothing_is_cast(saved):
    with pytest.raises(WeightsMismatch, match=r"norm\.weight: the model has float64 \(3,\), the weights float32"):
        stream_load_model(Net().double(), saved)


def test_names_are_matched_as_by_load_into_model(saved):
    model = on_meta(lambda: nn.Embedding(5, 3))
    loader = StreamingWeightLoader(saved)
    loader.stream_into_model(model, prefix="embed")
    assert torch.equal(model.weight, filled(Net()).embed.weight)
    model = nn.ModuleDict({"e": nn.Embedding(5, 3)})
    report = loader.stream_into_model(model, filter_fn=lambda name: "embed" in name, key_map=[("^embed", "e")])
    assert report["loaded"] == ["e.weight"]


def test_a_part_of_a_model_that_has_no_memory_is_warned_of(saved):
    model = on_meta(Net)
    with pytest.warns(UserWarning, match=r"without data: .*norm\.weight"):
        report = stream_load_model(model, saved, strict=False, filter_fn=lambda name: name == "head.weight")
    assert report["loaded"] == ["head.weight"]
    assert "embed.weight" not in report["missing"]
    assert model.embed.weight is model.head.weight
    assert not model.head.weight.is_meta


def test_damage_leaves_a_model_on_the_meta_device_as_it_was(packed):
    data = packed.load()["7"].data.tobytes()
    for path in packed.path.rglob("*"):
        if path.is_file() and (at := path.read_bytes().find(data)) >= 0:
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.seek(at + 1000)
                file.write(bytes(8))
    model = on_meta(lambda: nn.ParameterList([torch.empty(1 << 10, 600) for _ in range(12)]))
    with pytest.raises(CorruptObject, match="'7'"):
        stream_load_model(model, packed)
    assert all(parameter.is_meta for parameter in model)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("out", "progress", "rank", "shown"),
    [
        (Terminal, True, None, True),
        (Terminal, True, 0, True),
        (Terminal, True, 1, False),
        (Terminal, False, None, False),
        (io.StringIO, True, None, False),  # a log file
    ],
)
def test_progress_is_shown_on_a_terminal_and_by_the_first_rank(saved, monkeypatch, out, progress, rank, shown):
    monkeypatch.setattr(sys, "stderr", out())
    if rank is not None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
    stream_load_model(Net(), saved, progress=progress)
    assert ("100%" in sys.stderr.getvalue()) is shown
    gc.collect()

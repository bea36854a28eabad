"""Any tensor that torch can make comes back from a repository in every bit, or is refused by name."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coral import Repository
from coral.errors import UnsupportedValue
from coral.integrations.pytorch import PyTorchIntegration, from_weight, to_weight
from coral.integrations.pytorch._buffers import TensorBuffers
from coral.weights import DTYPES

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

trips = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
fewer = settings(trips, max_examples=max(60, settings().max_examples // 3))

KINDS: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
COMPLEX = ["complex32", "complex64", "complex128"]
FLOATS = ["bfloat16", "float16", "float32", "float64"]
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 5]), max_size=4).map(tuple)
BITS = st.integers(0, 2**32)


def noise(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A tensor of any bits: NaNs of every payload, infinities, denormals, both zeros."""
    made = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 2 if kind == "bool" else 256, (math.prod(shape) * KINDS[kind].itemsize,), generator=made)
    found = raw.to(torch.uint8)
    if seed % 3 == 0 and kind != "bool":  # words that are rare by chance
        words = torch.tensor([0x00, 0x80, 0x7F, 0xFF, 0x01, 0xC0], dtype=torch.uint8)
        found = words[raw % len(words)]
    return found.view(KINDS[kind]).reshape(shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda t: t,
    "turned": lambda t: t.permute(tuple(reversed(range(t.dim())))),
    "every other": lambda t: t[..., ::2] if t.dim() else t,
    "offset": lambda t: t[1:] if t.dim() and t.shape[0] else t,
    "expanded": lambda t: t.unsqueeze(0).expand(3, *t.shape),
    "expanded within": lambda t: t.unsqueeze(-1).expand(*t.shape, 2),
    "overlapping": lambda t: t.reshape(-1).unfold(0, 2, 1) if t.numel() > 1 else t,
    "one at a stride": lambda t: t.reshape(-1)[:2][::2] if t.numel() > 1 else t,
    "one, expanded": lambda t: t.reshape(-1)[:1].expand(3) if t.numel() else t,
    "one of many": lambda t: t.reshape(-1)[-1] if t.numel() else t,
}
LAZY: dict[str, Callable[[Tensor], Tensor]] = {
    "conjugated": torch.conj,
    "imaginary part": lambda t: t.conj().imag,
    "real part": lambda t: t.conj().real,
    "turned and conjugated": lambda t: t.conj().permute(tuple(reversed(range(t.dim())))),
}


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    kind = draw(st.sampled_from([*KINDS, *COMPLEX, *COMPLEX]))
    tensor = noise(kind, draw(SHAPES), draw(BITS))
    for layout in draw(st.lists(st.sampled_from(list(LAYOUTS)), max_size=2)):
        tensor = LAYOUTS[layout](tensor)
    if kind in COMPLEX and draw(st.booleans()):
        tensor = LAZY[draw(st.sampled_from(list(LAZY)))](tensor)
    return tensor


def facts(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Dtype, shape and bits, element by element: what it looks like, however it lies in memory."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.dtype is torch.complex128:
        words = torch.view_as_real(plain)
    else:
        words = plain.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.dtype.itemsize])
    return tensor.dtype, tuple(tensor.shape), words.numpy().tobytes()


@pytest.fixture(scope="module")
def repo() -> Iterator[Repository]:
    with tempfile.TemporaryDirectory() as folder:
        yield Repository(Path(folder) / "repo", init=True, durability="fast")


def test_every_dtype_of_coral_is_in_this_torch() -> None:
    assert {kind for kind in KINDS.values() if isinstance(kind, torch.dtype)} == set(KINDS.values())
    assert len(KINDS) == 22


@trips
@given(tensors(), st.booleans())
def test_a_tensor_as_a_weight_and_back(tensor: Tensor, copy: bool) -> None:
    weight = to_weight(tensor, copy=copy)
    assert (weight.dtype, weight.shape) == (str(tensor.dtype)[6:], tuple(tensor.shape))
    back = from_weight(weight)
    assert facts(back) == facts(tensor)
    assert not back.requires_grad


@trips
@given(tensors(), BITS)
@example(torch.arange(2.0)[::2], 0)  # one element: its stride is of no account, and not 1
@example(torch.arange(3.0).expand(2, 3), 0)
def test_a_capture_of_a_tensor_and_of_what_it_becomes(tensor: Tensor, seed: int) -> None:
    """As a run captures it: into memory that is used again, copied once all is looked at."""
    buffers = TensorBuffers()
    for _ in range(3):
        buffers.begin()
        weight = buffers.copy("w", tensor)
        buffers.finish()
        assert facts(from_weight(weight)) == facts(tensor)
        if tensor.numel() and tensor.dtype is not torch.bool and not tensor.is_conj() and not tensor.is_neg():
            seed += 1
            other = noise(str(tensor.dtype)[6:], (1,), seed)
            first = tensor.as_strided((1,), (1,))
            with torch.no_grad():
                first.copy_(other)  # in place, as an optimizer does


class Special(nn.Parameter):
    """A class of its own, as quantisation and sharding libraries have."""


def module(values: list[tuple[Tensor, str]], tied: bool) -> nn.Module:
    """A module that holds tensors as parameters, as parameters of a class of their own, and as buffers."""
    found, inner = nn.Module(), nn.Module()
    for number, (tensor, how) in enumerate(values):
        owner = inner if number % 2 else found
        if how == "buffer":
            owner.register_buffer(f"t{number}", tensor)
        else:
            kind = Special if how == "special" else nn.Parameter
            owner.register_parameter(f"t{number}", kind(tensor.detach(), requires_grad=False))
    found.inner = inner
    if tied:
        name, shared = next(iter(found.named_parameters()), ("", None))
        if shared is not None and "." not in name:
            inner.tied = shared
    return found


VALUES = st.lists(st.tuples(tensors(), st.sampled_from(["parameter", "special", "buffer"])), min_size=1, max_size=4)


def apart(tensor: Tensor) -> Tensor:
    """Other bits in the same layout: a tensor of the same strides in memory of its own."""
    if not tensor.numel():
        return tensor.clone()
    size = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return (
        torch.zeros(size, dtype=torch.uint8)
        .repeat(tensor.dtype.itemsize)
        .view(tensor.dtype)
        .as_strided(tensor.shape, tensor.stride())
    )


@fewer
@given(VALUES, st.booleans())
def test_a_model_through_a_repository(repo: Repository, values: list[tuple[Tensor, str]], tied: bool) -> None:
    values = [(tensor.resolve_conj().resolve_neg(), how) for tensor, how in values]
    model = module(values, tied)
    expected = {name: facts(value) for name, value in model.state_dict().items()}
    id = repo.commit(PyTorchIntegration.model_to_weights(model))
    loaded = Repository(repo.path).load(id)
    assert {name: facts(from_weight(loaded[name])) for name in loaded} == expected
    other = module([(apart(tensor), how) for tensor, how in values], tied)
    if any(overlaps(value) for value in other.state_dict().values()):
        return  # torch itself refuses to write into one: see test_modules
    held = {name: value.data_ptr() for name, value in other.state_dict().items()}
    report = PyTorchIntegration.weights_to_model(loaded, other)
    assert (set(report["loaded"]), report["missing"], report["unexpected"]) == (set(expected), [], [])
    assert {name: facts(value) for name, value in other.state_dict().items()} == expected
    assert {name: value.data_ptr() for name, value in other.state_dict().items()} == held
    assert [type(p) for p in other.parameters()] == [type(p) for p in model.parameters()]


def overlaps(tensor: Tensor) -> bool:
    """Whether elements share memory in another way than being expanded."""
    places = torch.zeros(tensor.shape, dtype=torch.int64)
    for dim, stride in enumerate(tensor.stride()):
        shape = [1] * tensor.dim()
        shape[dim] = tensor.shape[dim]
        if stride:
            places = places + (torch.arange(tensor.shape[dim]) * stride).reshape(shape)
    distinct = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return int(places.unique().numel()) != distinct


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@fewer
@given(st.sampled_from(FLOATS), SHAPES, BITS, st.sampled_from(["compiled", "parallel", "distributed", "all"]))
def test_a_wrapped_model_through_a_repository(
    repo: Repository, kind: str, shape: tuple[int, ...], seed: int, how: str
) -> None:
    def make(seed: int) -> nn.Module:
        found = nn.Module()
        found.w = nn.Parameter(noise(kind, shape, seed))
        return found

    def wrap(inner: nn.Module) -> nn.Module:
        found: Any = inner
        if how in ("parallel", "all"):
            found = nn.DataParallel(found)
        if how in ("distributed", "all"):
            found = nn.parallel.DistributedDataParallel(found)
        if how in ("compiled", "all"):
            found = torch.compile(found, backend="eager")
        return found

    model, plain, wrapped = make(seed), make(seed + 1), wrap(make(seed + 2))
    id = repo.commit(PyTorchIntegration.model_to_weights(wrap(model)))
    assert list(repo.tree(id)) == ["w"]
    for other in (plain, wrapped):
        PyTorchIntegration.weights_to_model(repo.load(id), other)
        (value,) = other.state_dict().values()
        assert facts(value) == facts(model.w)


class Counter(nn.Module):
    """Keeps a tensor, of any dtype and shape, as its extra state."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def get_extra_state(self) -> Tensor:
        return self.value

    def set_extra_state(self, state: Tensor) -> None:
        self.value = state


@fewer
@given(tensors(), tensors())
def test_extra_state_through_a_repository(repo: Repository, value: Tensor, other: Tensor) -> None:
    id = repo.commit(PyTorchIntegration.model_to_weights(nn.Sequential(Counter(value))))
    into = Counter(other)
    PyTorchIntegration.weights_to_model(repo.load(id), nn.Sequential(into))
    assert facts(into.value) == facts(value)


REFUSED: dict[str, Callable[[], Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.zeros(3, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
    "uninitialised": nn.UninitializedBuffer,
}


@fewer
@given(VALUES, st.sampled_from(list(REFUSED)), st.sampled_from(["odd", "inner.odd", "inner.a.odd"]))
def test_one_that_cannot_be_stored_is_named(values: list[tuple[Tensor, str]], kind: str, name: str) -> None:
    """Wherever it stands in a model; and nothing of the others is taken."""
    model = module([(tensor.resolve_conj().resolve_neg(), how) for tensor, how in values], tied=False)
    model.inner.a = nn.Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of some of these
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner).register_buffer(last, REFUSED[kind]())
        with pytest.raises(UnsupportedValue, match=rf"^{name}: ") as caught:
            PyTorchIntegration.model_to_weights(model)
    assert caught.value.path == name

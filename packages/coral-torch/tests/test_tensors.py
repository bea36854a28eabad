"""Every kind of tensor there is survives the way to a WeightTensor and back, or is refused by name."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from coral import WeightTensor
from coral.errors import CoralError, UnsupportedValue
from coral.integrations.pytorch import from_weight, to_weight
from coral.integrations.pytorch._tensors import NAMES
from coral.weights import DTYPES

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")  # said once a process


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def random_bits(dtype, shape):
    """A tensor of any bit patterns of the dtype: NaNs with payloads, denormals and -0.0 among them."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def test_all_of_corals_dtypes_are_known_to_this_torch():
    assert set(NAMES.values()) == set(DTYPES)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (5,), (4, 6)], ids=str)
@pytest.mark.parametrize("dtype", NAMES, ids=lambda dtype: NAMES[dtype])
def test_every_dtype_and_shape_comes_back_bit_for_bit(dtype, shape):
    tensor = random_bits(dtype, shape)
    weight = to_weight(tensor)
    assert (weight.dtype, weight.shape, weight.nbytes) == (NAMES[dtype], shape, tensor.nbytes)
    back = from_weight(weight)
    assert (back.dtype, back.shape, bits(back)) == (dtype, tensor.shape, bits(tensor))


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("dtype", NAMES, ids=lambda dtype: NAMES[dtype])
def test_strided_expanded_and_offset_tensors_come_back_as_they_look(dtype, copy):
    base = random_bits(dtype, (4, 6))
    for tensor in [base.t(), base[:, 1::2], base[1:3], base[2:3].expand(5, 6), base[0, 0].expand(3, 2)]:
        back = from_weight(to_weight(tensor, copy=copy))
        assert back.is_contiguous()
        assert (back.shape, bits(back)) == (tensor.shape, bits(tensor))


def test_bfloat16_nan_payloads_survive():
    pattern = torch.tensor([0x7F81, 0x7FC1, -1, 0x7FFF], dtype=torch.int16)  # float32 would quieten the first
    assert torch.equal(from_weight(to_weight(pattern.view(torch.bfloat16))).view(torch.int16), pattern)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_conjugates_and_negative_views_are_stored_as_they_look(dtype):
    base = torch.randn(4, dtype=dtype)
    for tensor in [base.conj(), base.conj().imag, base.conj().t()]:
        assert torch.equal(from_weight(to_weight(tensor)), tensor.clone().resolve_conj().resolve_neg())


def test_a_conjugated_complex32_is_stored_as_it_looks():
    tensor = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).to(torch.complex32).conj()
    assert from_weight(to_weight(tensor)).to(torch.complex64).tolist() == [1 - 2j, 3 + 4j]


def test_parameters_and_subclasses_are_stored_like_plain_tensors():
    class Loud(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError(f"{func} was asked of a subclass")

    class Mine(nn.Parameter):
        pass

    values = torch.arange(4.0)
    for tensor in [nn.Parameter(values), Mine(values), values.as_subclass(Loud)]:
        assert from_weight(to_weight(tensor)).tolist() == values.tolist()
    assert not from_weight(to_weight(nn.Parameter(values))).requires_grad


def test_a_copy_is_a_copy_and_a_view_is_a_view():
    tensor = torch.zeros(3)
    copied, viewed = to_weight(tensor), to_weight(tensor, copy=False)
    tensor += 1
    assert copied.data.tolist() == [0, 0, 0]
    assert viewed.data.tolist() == [1, 1, 1]


def test_from_weight_shares_the_memory_of_the_weight():
    weight = to_weight(torch.zeros(3, dtype=torch.bfloat16))
    from_weight(weight).fill_(1)
    assert from_weight(weight).tolist() == [1, 1, 1]


def test_arrays_that_torch_cannot_share_are_copied_without_a_warning():
    fixed = np.arange(6.0).reshape(2, 3)
    fixed.flags.writeable = False
    unaligned = np.frombuffer(bytearray(17), np.float64, 2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for array in [fixed, fixed.T, fixed[:, ::-1], unaligned, np.broadcast_to(np.float32(2), (2, 2))]:
            tensor = from_weight(WeightTensor(array))
            assert np.array_equal(tensor.numpy(), array)
            tensor += 1
    assert fixed[0, 0] == 0


def test_a_small_view_of_a_large_tensor_takes_only_its_own_bytes():
    assert to_weight(torch.zeros(1_000_000)[:2]).nbytes == 8


def _jagged():
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)


UNSUPPORTED = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "to_dense"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), "to_dense"),
    "meta": (lambda: torch.zeros(3, device="meta"), "meta"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
    "uninitialised": (nn.UninitializedParameter, "run one batch"),
    "uninitialised buffer": (nn.UninitializedBuffer, "run one batch"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
    "jagged": (_jagged, "nested"),
    "unknown dtype": (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.bits8), "bits8"),
}


@pytest.mark.filterwarnings("ignore")  # torch announces the end of half of these kinds
@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_what_cannot_be_stored_is_refused_by_name(kind):
    make, said = UNSUPPORTED[kind]
    with pytest.raises(UnsupportedValue, match=rf"layer\.weight: .*{said}") as caught:
        to_weight(make(), "layer.weight")
    assert caught.value.path == "layer.weight"
    assert isinstance(caught.value, CoralError | TypeError)


def test_a_wrapper_around_other_tensors_is_refused():
    from torch.testing._internal.two_tensor import TwoTensor

    with pytest.raises(UnsupportedValue, match="w: a TwoTensor keeps its data in other tensors"):
        to_weight(TwoTensor(torch.zeros(2), torch.ones(2)), "w")


def test_a_dtype_that_this_torch_lacks_is_refused(monkeypatch):
    monkeypatch.setattr("coral.integrations.pytorch._tensors._TORCH", {})
    with pytest.raises(UnsupportedValue, match="has no dtype float4_e2m1fn_x2"):
        from_weight(WeightTensor(np.zeros(2, np.uint8), dtype="float4_e2m1fn_x2"))

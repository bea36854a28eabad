"""Copies into memory that is used again."""

import gc
import weakref

import pytest
import torch
from torch import nn

from coral.errors import UnsupportedValue
from coral.integrations.pytorch import from_weight
from coral.integrations.pytorch._buffers import TensorBuffers
from coral.integrations.pytorch._tensors import NAMES


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def capture(buffers, **tensors):
    buffers.begin()
    weights = {name: buffers.copy(name, tensor) for name, tensor in tensors.items()}
    buffers.finish()
    return weights


def test_the_second_copy_goes_where_the_first_one_went():
    buffers = TensorBuffers()
    first = capture(buffers, w=torch.zeros(4))["w"]
    second = capture(buffers, w=torch.ones(4))["w"]
    assert first.data.ctypes.data == second.data.ctypes.data
    assert second.data.tolist() == [1, 1, 1, 1]


def test_the_id_is_that_of_the_new_content():
    # a WeightTensor remembers its id: given out twice, it would record another tensor's
    buffers = TensorBuffers()
    before = capture(buffers, w=torch.zeros(4))["w"].id
    assert capture(buffers, w=torch.ones(4))["w"].id != before


def test_a_copy_does_not_follow_the_tensor():
    tensor = nn.Parameter(torch.zeros(4))
    weight = capture(TensorBuffers(), w=tensor)["w"]
    with torch.no_grad():
        tensor.add_(1)
    assert weight.data.tolist() == [0, 0, 0, 0]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")  # of the test's own copy
@pytest.mark.parametrize("dtype", NAMES, ids=lambda dtype: NAMES[dtype])
def test_every_dtype_and_layout_is_copied_bit_for_bit(dtype):
    raw = (
        torch.randint(0, 2 if dtype is torch.bool else 256, (24 * dtype.itemsize,), dtype=torch.uint8)
        .view(dtype)
        .reshape(4, 6)
    )
    for tensor in [raw, raw.t(), raw[:, ::2], raw[:0], raw[0, 0], raw[:1].expand(3, 6)]:
        buffers = TensorBuffers()
        for _ in range(2):
            back = from_weight(capture(buffers, w=tensor)["w"])
            assert back.shape == tensor.shape
            assert torch.equal(bits(back), bits(tensor))


def test_conjugates_are_copied_as_they_look():
    tensor = torch.tensor([1 + 2j]).conj()
    assert from_weight(capture(TensorBuffers(), w=tensor)["w"]).tolist() == [1 - 2j]


def test_another_shape_or_dtype_gets_another_buffer():
    buffers = TensorBuffers()
    for tensor in [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.float64), torch.zeros(5)]:
        weight = capture(buffers, w=tensor)["w"]
        assert (weight.shape, weight.dtype) == (tuple(tensor.shape), NAMES[tensor.dtype])


def test_two_tensors_of_one_path_do_not_share_a_buffer():
    buffers = TensorBuffers()
    one, other = buffers.copy("a.b", torch.zeros(2)), buffers.copy("a.b", torch.ones(2))
    buffers.finish()
    assert (one.data.tolist(), other.data.tolist()) == ([0, 0], [1, 1])


def test_a_set_of_copies_that_failed_leaves_its_buffers_to_the_next():
    buffers = TensorBuffers()
    first = capture(buffers, w=torch.zeros(2))["w"]
    with pytest.raises(UnsupportedValue):
        capture(buffers, w=torch.zeros(2), sparse=torch.eye(2).to_sparse())
    assert capture(buffers, w=torch.ones(2))["w"].data.ctypes.data == first.data.ctypes.data


def test_memory_that_is_no_longer_used_is_let_go():
    buffers = TensorBuffers()
    gone = weakref.ref(capture(buffers, old=torch.zeros(1000), w=torch.zeros(2))["old"].data)
    capture(buffers, w=torch.zeros(2))
    gc.collect()
    assert gone() is None


def test_what_cannot_be_stored_is_named():
    with pytest.raises(UnsupportedValue, match=r"encoder\.w"):
        TensorBuffers().copy("encoder.w", torch.eye(2).to_sparse())

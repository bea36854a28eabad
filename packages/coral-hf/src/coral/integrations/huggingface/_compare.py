"""How alike two models are, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from coral import DeltaConfig, WeightTensor
from coral.delta import similarity
from coral.integrations.huggingface._deltas import chosen

__all__ = ["Comparison", "compare"]


class Comparison(TypedDict):
    """How the weights of two models, `a` and `b`, compare.

    Common weights have one name in both; they are identical bit by bit, or similar (of one dtype and shape, and a
    cosine at the threshold or above), or different. `weight_similarities` has the cosine of those of one dtype and
    shape. `potential_savings_percent`: the part of `b`'s bytes that need not be fetched, or stored, where `a` is; an
    estimate from samples.
    """

    identical_weights: int
    similar_weights: int
    different_weights: int
    common_weights: int
    total_weights_a: int
    total_weights_b: int
    only_in_a: list[str]
    only_in_b: list[str]
    weight_similarities: dict[str, float]
    potential_savings_percent: float


def compare(a: Mapping[str, WeightTensor], b: Mapping[str, WeightTensor], config: DeltaConfig) -> Comparison:
    """Compare two models; what differs is read, one tensor at a time."""
    identical = similar = 0
    similarities: dict[str, float] = {}
    total, needed = 0, 0.0
    common = [name for name in b if name in a]
    for name, tensor in b.items():
        total += tensor.nbytes
        other = a.get(name)
        if other is not None and other.id == tensor.id:
            identical += 1
            similarities[name] = 1.0
            continue
        like = other if other is not None and (other.dtype, other.shape) == (tensor.dtype, tensor.shape) else None
        if like is not None:
            similarities[name] = similarity(like.data, tensor.data, tensor.dtype)
            similar += similarities[name] >= config.similarity_threshold
        needed += tensor.nbytes * (1.0 if tensor.nbytes < config.min_size else chosen(tensor, like, config).ratio)
    return Comparison(
        identical_weights=identical,
        similar_weights=similar,
        different_weights=len(common) - identical - similar,
        common_weights=len(common),
        total_weights_a=len(a),
        total_weights_b=len(b),
        only_in_a=[name for name in a if name not in b],
        only_in_b=[name for name in b if name not in a],
        weight_similarities=similarities,
        potential_savings_percent=100 * (1 - needed / total) if total else 0.0,
    )

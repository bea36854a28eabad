"""Nested training state as tagged JSON plus tensors, exact in type and bit, and without pickle.

What an optimizer, a scheduler or a random generator calls its state is made of a few types. JSON has some of them; the
others are objects of one key that starts with "$". An instance of a subclass (a namedtuple, an OrderedDict, an IntEnum)
is kept as what it is an instance of.

    tuple         {"$tuple": [...]}          an int beyond 2^53      {"$int": hexadecimal}
    bytes         {"$bytes": base64}         nan, inf                {"$float": 16 hex digits}
    ndarray       {"$array": name}           numpy scalar            {"$scalar": name}
    WeightTensor  {"$tensor": name}          other dicts             {"$dict": [[key, value], ...]}

where `name` stands for a tensor that is stored beside the JSON, as weights are, and deltas as they do.

Where no tensors may be, as in a commit's metadata, an int has 4,300 digits at most: what is there can be shown.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from coral.errors import CorruptObject, LimitExceeded, UnsupportedValue
from coral.weights import MAX_NAME, Array, WeightTensor

__all__ = ["StateValue", "flatten", "unflatten"]

StateValue = Any
"""None, bool, int, float, str, bytes, list, tuple, dict with str or int keys, ndarray, numpy scalar, WeightTensor."""

_MAX_DEPTH = 100
_EXACT_INT = 1 << 53
_SHOWN_BITS = 14_284  # of an int that Python writes as text: all of them have 4,300 digits or fewer
_HEX_INT = re.compile("-?[0-9a-f]+")


def flatten(value: StateValue, tensors: dict[str, WeightTensor] | None) -> Any:
    """Turn a value into tagged JSON, adding its tensors to `tensors` by a name made of where they stand.

    With `tensors` None the value may hold none. UnsupportedValue names the path of what cannot be held.
    """
    return _flatten(value, tensors, (), 0)


def _flatten(value: StateValue, tensors: dict[str, WeightTensor] | None, path: tuple[str, ...], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise LimitExceeded(f"state is nested more than {_MAX_DEPTH} deep at {_show(path)} (does it contain itself?)")

    def down(child: StateValue, key: object) -> Any:
        return _flatten(child, tensors, (*path, str(key)), depth + 1)

    match value:
        case WeightTensor():
            return {"$tensor": _put(value, tensors, path)}
        case np.ndarray():
            return {"$array": _put(_array(value, path), tensors, path)}
        case np.generic():
            return {"$scalar": _put(_array(np.asarray(value), path), tensors, path)}
        case None | bool() | str():
            return value
        case int() if tensors is None and value.bit_length() > _SHOWN_BITS:
            raise UnsupportedValue(f"an int at {_show(path)} has more than 4,300 digits", path=_show(path))
        case int():
            return int(value) if abs(value) < _EXACT_INT else {"$int": f"{int(value):x}"}
        case float():
            return float(value) if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
        case bytes():
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        case list():
            return [down(child, i) for i, child in enumerate(value)]
        case tuple():
            return {"$tuple": [down(child, i) for i, child in enumerate(value)]}
        case dict() if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: down(child, key) for key, child in value.items()}
        case dict():
            for key in value:
                if type(key) not in (str, int):
                    raise UnsupportedValue(
                        f"state at {_show(path)} has a key of type {type(key).__name__}; keys are str or int",
                        path=_show(path),
                    )
            return {"$dict": [[_flatten(key, tensors, path, depth), down(child, key)] for key, child in value.items()]}
        case _:
            raise UnsupportedValue(
                f"state at {_show(path)} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be "
                "stored exactly without pickle; make it of numbers, text, lists, tuples, dicts and tensors",
                path=_show(path),
            )


def _array(value: Array, path: tuple[str, ...]) -> WeightTensor:
    try:
        return WeightTensor(value)
    except UnsupportedValue as error:
        raise UnsupportedValue(f"state at {_show(path)}: {error}", path=_show(path)) from None


def _put(tensor: WeightTensor, tensors: dict[str, WeightTensor] | None, path: tuple[str, ...]) -> str:
    if tensors is None:
        raise UnsupportedValue(f"a tensor at {_show(path)}, where only plain values can be stored", path=_show(path))
    name = base = "/".join(part.replace("\0", "") for part in path)[: MAX_NAME // 8] or "value"
    count = len(tensors)
    while name in tensors:
        count += 1
        name = f"{base}#{count}"
    tensors[name] = tensor
    return name


def _show(path: tuple[str, ...]) -> str:
    return "/".join(path) or "the top"


def unflatten(
    value: Any, tensor: Callable[[str], WeightTensor], what: str = "state", *, int_bits: float = math.inf
) -> StateValue:
    """The value that was flattened; `tensor` gives the tensor of a name.

    CorruptObject where the tags make no sense, or an int has more than `int_bits`.
    """

    def up(node: Any) -> StateValue:
        match node:
            case list():
                return [up(child) for child in node]
            case {"$tuple": list(items), **rest} if not rest:
                return tuple(up(child) for child in items)
            case {"$int": str(digits), **rest} if not rest and _HEX_INT.fullmatch(digits):
                found = int(digits, 16)
                if found.bit_length() > int_bits:
                    raise CorruptObject(f"{what}: an int is too large")
                return found
            case {"$float": str(digits), **rest} if not rest:
                return cast(float, struct.unpack(">d", bytes.fromhex(digits))[0])
            case {"$bytes": str(text), **rest} if not rest:
                return base64.b64decode(text, validate=True)
            case {"$dict": list(pairs), **rest} if not rest:
                return {_key(up(key)): up(child) for key, child in pairs}
            case {"$array": str(name), **rest} if not rest:
                return tensor(name).data
            case {"$scalar": str(name), **rest} if not rest:
                return tensor(name).data.reshape(())[()]
            case {"$tensor": str(name), **rest} if not rest:
                return tensor(name)
            case dict() if not any(key.startswith("$") for key in node):
                return {key: up(child) for key, child in node.items()}
            case None | bool() | int() | float() | str():
                return node
            case _:
                raise CorruptObject(f"{what}: a tag that is not known: {str(node)[:60]}")

    try:
        return up(value)
    except (ValueError, TypeError, KeyError, struct.error, binascii.Error, RecursionError) as error:
        if isinstance(error, CorruptObject):
            raise
        raise CorruptObject(f"{what}: {type(error).__name__}: {error}") from error


def _key(key: StateValue) -> str | int:
    if type(key) is not str and type(key) is not int:
        raise TypeError(f"a dict key is a {type(key).__name__}")
    return key


def plain(value: Any, what: str) -> Mapping[str, Any]:
    """A mapping of plain values (no tensors) back from its tagged form."""

    def none(name: str) -> WeightTensor:
        raise KeyError(name)

    found = unflatten(value, none, what, int_bits=_SHOWN_BITS)
    if not isinstance(found, dict):
        raise CorruptObject(f"{what}: not a mapping")
    return found

"""JSON as coral writes it (one form for one value) and as it reads it from an untrusted file (strict and bounded)."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from coral.errors import CorruptObject, LimitExceeded, UnsafeInput

MAX_BYTES = 16 << 20
"""No JSON object in a repository is larger."""


def dumps(value: Any, *, sort: bool = True) -> bytes:
    """`value` as UTF-8 JSON without spaces; keys sorted, or in the order given."""
    try:
        text = json.dumps(value, sort_keys=sort, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        raise UnsafeInput("text to be stored is not valid UTF-8 (it has a lone surrogate)") from None
    except RecursionError:
        raise LimitExceeded("a value to be stored is nested too deeply") from None
    if len(data) > MAX_BYTES:
        raise LimitExceeded(f"a JSON object of {len(data)} bytes; {MAX_BYTES} is the limit")
    return data


def loads(data: bytes, what: str) -> Any:
    """Parse strictly; `what` names the source in the CorruptObject that anything unexpected becomes."""
    if len(data) > MAX_BYTES:
        raise CorruptObject(f"{what}: {len(data)} bytes of JSON; {MAX_BYTES} is the limit")
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
        if b"\\u" in data:  # only an escape can stand for half a character
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        return found
    except CorruptObject as error:
        raise CorruptObject(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CorruptObject(f"{what}: not valid JSON ({type(error).__name__}: {error})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CorruptObject("a key stands there twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise CorruptObject(f"{constant} is not JSON")

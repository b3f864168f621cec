"""A JSON file that holds a digest of itself: one flipped bit anywhere in it is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "seal"
_EMPTY = "0" * 64


def sealed(tree: Mapping[str, Any]) -> str:
    """The text of a JSON object with its seal as the last field: the sha256 of the same text with zeros for
    the seal."""
    text = json.dumps({**tree, KEY: _EMPTY}, indent=2, ensure_ascii=False) + "\n"
    return _exchange(text.encode(), _EMPTY, hashlib.sha256(text.encode()).hexdigest()).decode()


def is_unbroken(data: bytes, seal: str) -> bool:
    """Whether the bytes of a file are those that were written with this seal."""
    return hashlib.sha256(_exchange(data, seal, _EMPTY)).hexdigest() == seal


def _exchange(data: bytes, old: str, new: str) -> bytes:
    before, _, after = data.rpartition(old.encode())
    return before + new.encode() + after

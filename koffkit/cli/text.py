"""Text for terminals: text from files must not move the cursor, set the title or change the reading
direction."""

from __future__ import annotations

import json
import re
from typing import Any

from ..storage.files import finite

# C0 except tab and newline, DEL and C1, lone surrogates, line separators, direction marks.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


def visible(text: str) -> str:
    """The text with control and direction characters escaped, as in \\x1b or \\u202e."""
    return _UNSAFE.sub(lambda match: _written_out(ord(match[0])), text)


def _written_out(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON: null for numbers that are not finite, and no raw control characters."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False, default=str, indent=indent)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)

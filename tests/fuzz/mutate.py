"""A seeded mutator: bytes that are nearly right, and values where others belong."""

from __future__ import annotations

import random
from typing import Any

TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'"',
    b"'",
    b"\n",
    b"- ",
    b"? ",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!int ",
    b"!x ",
    b"%YAML 1.1\n",
    b"---\n",
    b"|\n",
    b"null",
    b"true",
    b"no",
    b".inf",
    b"1e999",
    b"-1",
    b"9" * 400,
    b"0x1F",
    b"1:30",
    b"2001-12-14",
    b"\\ud83d",
    b"\\u0000",
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\t",
    b"NaN",
    b"[" * 3000,
    b"{{ X }}",
    b"..",
    b"~",
    b"=",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    float("inf"),
    "",
    "x",
    "\ud83d",
    "\0",
    "x" * 5000,
    [],
    {},
    [None],
    ["a", 1],
    {"type": "text", "text": "t"},
    [{"type": "text", "text": "t"}],
    [{"type": "image_url"}],
    {"a": {"b": []}},
]


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A few edits: flipped bits, cuts, copies, tokens of the format in places they do not belong."""
    result = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        place = draw.randrange(len(result) + 1)
        kind = draw.randrange(6)
        if kind == 0 and place < len(result):
            result[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del result[place : place + draw.choice((1, 2, 8, 64))]
        elif kind == 2:
            result[place:place] = draw.choice(TOKENS)
        elif kind == 3:
            result[place : place + draw.randrange(12)] = draw.choice(TOKENS)
        elif kind == 4:
            start = draw.randrange(len(result) + 1)
            result[place:place] = result[start : start + draw.choice((4, 40, 400))]
        else:
            del result[place:]
    return bytes(result)


def changed(value: Any, draw: random.Random) -> Any:
    """A value with one part replaced, removed, renamed or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        result = dict(value)
        key = draw.choice(list(result))
        kind = draw.randrange(8)
        if kind == 0:
            del result[key]
        elif kind == 1:
            result[str(key)[:-1] + draw.choice("xyz")] = result.pop(key)
        else:
            result[key] = changed(result[key], draw)
        return result
    if isinstance(value, list) and value and draw.random() < 0.85:
        result = list(value)
        place = draw.randrange(len(result))
        if draw.randrange(6) == 0:
            result.insert(place, result[place])
        else:
            result[place] = changed(result[place], draw)
        return result
    return draw.choice(VALUES)

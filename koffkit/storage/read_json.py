"""Reading a JSON object from an untrusted file, or refusing it with one clear error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from ..errors import IntegrityError, KoffkitError

MAX_BYTES = 64 << 20
"""Far above the size of any of koffkit's files."""


def read_json(
    path: Path,
    *,
    error: type[KoffkitError] = IntegrityError,
    remedy: str = "export again",
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: the file.
        error: the class to raise.
        remedy: what the user can do, as the end of a sentence.
        max_bytes: a larger file is refused unread.

    Returns:
        The object; all its strings can be encoded, and all its numbers are finite.

    Raises:
        error: the file is missing, too large, not UTF-8, not JSON, nested too deeply, not an object, has a
            duplicate key, or holds NaN, an infinity or half of a surrogate pair.
    """
    data = read_limited(path, error=error, remedy=remedy, max_bytes=max_bytes)
    return parse_json_object(data, str(path), error=error, remedy=remedy)


def read_limited(
    path: Path,
    *,
    error: type[KoffkitError] = IntegrityError,
    remedy: str = "export again",
    max_bytes: int = MAX_BYTES,
) -> bytes:
    """The bytes of a file.

    Raises:
        error: the file is missing or too large.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise error(f"{path}: {size:,} bytes, the limit is {max_bytes:,}; {remedy}.")
        return path.read_bytes()
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason}); {remedy}.") from None


def parse_json_object(
    data: bytes, source: str, *, error: type[KoffkitError] = IntegrityError, remedy: str = "export again"
) -> dict[str, Any]:
    """`read_json` of bytes that are in memory already.

    Args:
        data: the bytes.
        source: their origin, for the error.
        error: the class to raise.
        remedy: what the user can do, as the end of a sentence.

    Raises:
        error: as `read_json` does.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            object_pairs_hook=_unique_keys,
        )
        if isinstance(value, dict):
            json.dumps(value, ensure_ascii=False).encode(
                "utf-8"
            )  # half of a surrogate pair cannot be encoded
    except RecursionError:
        raise error(f"{source}: not valid JSON (nested too deeply); {remedy}.") from None
    except UnicodeEncodeError:
        raise error(f"{source}: not valid JSON (half of a surrogate pair); {remedy}.") from None
    except ValueError as reason:  # JSONDecodeError, UnicodeDecodeError and the refusals below
        raise error(f"{source}: not valid JSON ({reason}); {remedy}.") from None
    if not isinstance(value, dict):
        raise error(f"{source}: not a JSON object; {remedy}.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that can be used")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:80]!r} stands there twice")
        result[key] = value
    return result

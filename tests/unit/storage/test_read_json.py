from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.errors import DataError, IntegrityError
from koffkit.storage.read_json import read_json

BAD: dict[str, tuple[bytes, str]] = {
    "cut short": (b'{"a": 1', "not valid JSON"),
    "not an object": (b"[1]", "not a JSON object"),
    "not text": (b'{"a": "\xff"}', "not valid JSON .*utf-8"),
    "a key twice": (b'{"a": {"b": 1, "b": 2}}', "the key 'b' stands there twice"),
    "NaN": (b'{"a": NaN}', "NaN is not a number"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is not a number"),
    "too large a number": (b'{"a": 1e999}', "1e999 is too large"),
    "half of a pair": (b'{"a": "\\ud800"}', "half of a surrogate pair"),
    "a depth bomb": (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    "digits without end": (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"a\.json: .*{message}") as refused:
        read_json(path)
    assert str(refused.value).endswith("; export again.")


def test_missing_and_large_files_are_refused_with_the_callers_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"a\.json: cannot be read \(No such file.*; copy it"):
        read_json(path, error=DataError, remedy="copy it")
    path.write_text('{"a": 1}')
    with pytest.raises(DataError, match="8 bytes, the limit is 7"):
        read_json(path, error=DataError, max_bytes=7)
    assert read_json(path, max_bytes=8) == {"a": 1}

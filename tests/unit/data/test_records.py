"""Records of every kind of file, and records that are no text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from koffkit.data.records import MAX_RECORD, records
from koffkit.data.sources import documents, file_source
from koffkit.errors import DataError
from koffkit.recipe.schema import Source

ROWS = [{"text": "one\nline, and more", "n": 1}, {"text": 'a "quote" ü', "n": 2}, {"text": "", "n": 3}]


def read(path: Path) -> list[str]:
    return list(documents(file_source(str(path)), path.parent, "domains.x"))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_like_lines(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=indent))
    assert read(path) == [row["text"] for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read(path) == [row["text"] for row in ROWS]
    path.write_text(" [ ] ")
    assert read(path) == []


def test_a_long_array_names_the_line_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"text": "x" * 3000} for _ in range(2000)]
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
    spots = [spot for spot, _ in records(Source(jsonl=str(path)), tmp_path, "x")]
    assert len(spots) == 2000
    assert (spots[0], spots[-1]) == (f"{path}:2", f"{path}:2001")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"},\n{"text": "b"', r"a\.json:2: not a valid JSON array from here on"),
        ('[{"text": "a"}\n{"text": "b"}]', r"a\.json:2: not a valid JSON array"),
        ('[{"text": "a"}] x', r"a\.json:1: text after the end"),
        ('[{"text": "a"},]', r"a\.json:1: not a valid JSON array"),
        ("[1]", r"a\.json:1: no field 'text'; found: int"),
        ("[" * 100_000, r"a\.json:1: (JSON that is nested too deep|not a valid JSON array)"),
    ],
)
def test_damaged_arrays(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read(path)


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('n,text\n1,"one\nline, and more"\n2,plain\n')
    assert read(path) == ["one\nline, and more", "plain"]
    (tmp_path / "a.tsv").write_text("n\ttext\n1\ta b\n")
    assert read(tmp_path / "a.tsv") == ["a b"]
    for text, message in (
        ("n,text\n1\n", r"a\.csv:2: field 'text' is null"),
        ("n,text\n1,a,b\n", "more fields"),
        ("text,n,text\na,1,b\n", r"a\.csv:1 \(domains\.x\): two columns are named 'text'"),
        ('n,text\n1,"never closed\n2,b\n', r"a\.csv:\d+ \(domains\.x\): not valid csv"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": null}', "field 'text' is null, not text"),
        (b'{"text": 5}', "field 'text' is a int"),
        (b'{"text": ["x"]}', "field 'text' is a list"),
        (b'{"text": {"a": 1}}', "field 'text' is a dict"),
        (b'{"text": "\\ud83d"}', r"half a character \(a lone surrogate, \\ud83d\)"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"text": "' + b"x" * MAX_RECORD + b'"}', "a line of more than"),
    ],
)
def test_a_record_that_is_no_text_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:3( \(domains\.x\))?: .*{message}|a\.jsonl:3.*{message}"):
        read(path)


def test_documents_of_text_by_blank_line_file_or_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\none\ntwo\n\nthree\n\n")
    (tmp_path / "b.txt").write_text("four\n")
    expected = {
        "blank_line": ["one\ntwo", "three", "four"],
        "file": ["one\ntwo\n\nthree", "four"],
        "line": ["one", "two", "three", "four"],
    }
    for kind, texts in expected.items():
        source = Source.model_validate({"text": "*.txt", "documents": kind})
        assert list(documents(source, tmp_path, "x")) == texts
    with pytest.raises(ValueError, match="documents is an option of text"):
        Source.model_validate({"jsonl": "a.jsonl", "documents": "file"})

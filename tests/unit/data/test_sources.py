from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard

from koffkit.data.sources import documents, source_files
from koffkit.errors import DataError
from koffkit.recipe.schema import Source

TEXT = "first line\nsecond line\n\n\nnext document\n\n  \nlast one"
EXPECTED = ["first line\nsecond line", "next document", "last one"]


def read(source: Source, root: Path) -> list[str]:
    return list(documents(source, root, "domains.x"))


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ],
)
def test_blank_lines_separate_documents_in_every_packing(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(TEXT.encode()))
    assert read(Source(text=f"a.txt{suffix}"), tmp_path) == EXPECTED


def test_globs_are_read_in_order_and_no_file_twice(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert read(Source(text=["*.txt", "a.txt"]), tmp_path) == ["a", "b", "c"]


def test_jsonl_with_a_field_and_a_limit(tmp_path: Path) -> None:
    rows = [{"body": f"text {i}", "other": i} for i in range(5)]
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n\n" for row in rows).encode())
    )
    assert read(Source(jsonl="a.jsonl.gz", field="body", max_documents=3), tmp_path) == [
        "text 0",
        "text 1",
        "text 2",
    ]


def test_a_hub_data_set_is_asked_for_as_the_source_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load_dataset(*names: str, **options: Any) -> list[dict[str, str]]:
        asked.append((names, options))
        return [{"body": f"text {i}"} for i in range(5)]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    source = Source(hub="owner/set", config_name="small", split="validation", field="body", max_documents=2)
    assert read(source, tmp_path) == ["text 0", "text 1"]
    assert asked == [(("owner/set", "small"), {"split": "validation", "streaming": True})]
    with pytest.raises(DataError, match="owner/set record 1: no field 'text'; found: body"):
        read(Source(hub="owner/set"), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "source", "message"),
    [
        ("a.txt", b"\xff\xfe\x00bad", Source(text="a.txt"), r"a\.txt \(domains\.x\): not UTF-8"),
        (
            "a.txt.xz",
            lzma.compress(TEXT.encode() * 500)[:-30],
            Source(text="a.txt.xz"),
            r"a\.txt\.xz \(domains\.x\): cannot be read.*complete",
        ),
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', Source(jsonl="a.jsonl"), r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', Source(jsonl="a.jsonl"), r"a\.jsonl:1: no field 'text'; found: body"),
        ("a.jsonl", b"[1]\n", Source(jsonl="a.jsonl"), r"a\.jsonl:1: no field 'text'; found: list"),
        ("b.txt", b"x", Source(text="nothing*.txt"), r"domains\.x: no file matches 'nothing\*\.txt'"),
    ],
)
def test_errors_name_the_place(
    tmp_path: Path, name: str, content: bytes, source: Source, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(source, tmp_path)


def test_paths_start_at_the_recipe_and_then_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "a.txt").write_text("working folder")
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "recipes"
    assert read(Source(text="a.txt"), root) == ["working folder"]
    (root / "a.txt").write_text("recipe")
    assert read(Source(text="a.txt"), root) == ["recipe"]
    assert source_files(Source(text=str(tmp_path / "a.txt")), root, "x") == [tmp_path / "a.txt"]

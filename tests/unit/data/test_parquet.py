"""Parquet files and hub data sets, through the libraries of the extra `data` where they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from koffkit.data.preflight import data_problems
from koffkit.data.sources import conversations, documents
from koffkit.errors import DataError
from koffkit.recipe.load import LoadedRecipe
from koffkit.recipe.schema import Recipe, Source

from ...common import recipe_dict

ROWS = {"text": ["one\nline", 'a "quote" ü', ""], "n": [1, 2, 3]}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path does not hold the word "test", which `datasets` takes for a split."""
    with TemporaryDirectory() as name:
        yield Path(name)


def write(path: Path, rows: dict[str, Any] = ROWS, **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(rows), path, **options)
    return path


def read(path: Path) -> list[str]:
    return list(documents(Source(jsonl=str(path)), path.parent, "domains.x"))


@pytest.mark.parametrize("name", ["a.parquet", "a[1].parquet", "B.PARQUET", "x::y, z?*.parquet"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_rows_are_documents(tmp_path: Path, name: str, compression: str) -> None:
    assert read(write(tmp_path / name, compression=compression, row_group_size=2)) == ROWS["text"]


def test_no_rows_are_no_documents(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    assert read(write(tmp_path / "a.parquet", {"text": pyarrow.array([], pyarrow.string())})) == []


def test_conversations(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    write(tmp_path / "a.parquet", {"talk": [talk, talk]})
    found = conversations(Source(jsonl="a.parquet", messages="talk"), tmp_path, "x")
    assert [conversation.messages for conversation in found] == [talk, talk]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": ["a", None]}, r"a\.parquet record 2: field 'text' is null, not text"),
        ({"text": [1]}, "record 1: field 'text' is a int"),
        ({"text": [b"a"]}, "record 1: field 'text' is a bytes"),
        ({"body": ["a"]}, "record 1: no field 'text'; found: body"),
        ({"text": ["ab" * 2**22 + "a"]}, "record 1: field 'text' has more than 8,388,608 characters"),
    ],
)
def test_rows_that_are_no_text_are_named(tmp_path: Path, rows: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.parquet", rows, compression="none"))


def test_damage_is_one_error(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", {"text": [f"{n} words " * 20 for n in range(40)]}, compression="none"
    )
    data = path.read_bytes()
    for damaged in (b"", b"PAR1" + b"x" * 100, data[:-10], data[: len(data) // 2], data[:-4] + b"PAR2"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet \(domains\.x\): cannot be read: "):
            read(path)
    path.write_bytes(data.replace(b"0 words", b"0 wor\xff\xfe", 1))
    with pytest.raises(DataError, match="cannot be read: 'utf-8' codec"):
        read(path)


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", {"text": ["a" * 2**21] * 3}, compression="zstd", use_dictionary=False
    )
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read(path)


def test_packed_parquet_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.parquet\.gz \(domains\.x\): parquet is packed inside"):
        read(tmp_path / "a.parquet.gz")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the extra: pip install 'koffkit\[data\]'"):
        read(tmp_path / "a.parquet")


def test_validate_names_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "recipe").mkdir()
    domains = {"north": {"jsonl": str(tmp_path / "a.parquet")}}
    recipe = Recipe.model_validate(recipe_dict(tmp_path, tmp_path / "data", domains=domains))
    monkeypatch.setattr("koffkit.data.preflight.find_spec", lambda name: None)
    (problem,) = data_problems(LoadedRecipe(recipe, tmp_path / "r.yaml", tmp_path))
    assert "reading parquet needs the extra: pip install 'koffkit[data]'" in problem


PARTLY = """
import sys
from itertools import islice
from pathlib import Path
from koffkit.data.sources import documents
from koffkit.recipe.schema import Source
asked = []
sys.addaudithook(lambda name, _: asked.append(name) if name.startswith("socket.") else None)
kind, place = sys.argv[1:]
print(len(list(islice(documents(Source(**{kind: place, "max_documents": 4}), Path.cwd(), "x"), 9))))
print(asked if kind == "jsonl" else [])
"""


@pytest.mark.parametrize("kind", ["jsonl", "hub"])
def test_a_file_that_is_read_in_part_does_no_harm(folder: Path, kind: str) -> None:
    """The process ends as it should, and has asked no server about a local file."""
    if kind == "hub":
        pytest.importorskip("datasets")
    path = write(folder / "train.parquet", {"text": [f"line {n}" for n in range(20_000)]})
    place = str(path if kind == "jsonl" else folder)
    command = [sys.executable, "-c", PARTLY, kind, place]
    for _ in range(1 if kind == "jsonl" else 3):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")},
        )
        assert (done.returncode, done.stdout) == (0, "4\n[]\n"), done.stderr


def test_a_hub_data_set_is_read_by_datasets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder, which `datasets` reads like one of the hub."""
    pytest.importorskip("datasets")
    write(folder / "train.parquet")
    source = Source(hub=str(folder))
    assert list(documents(source, folder, "x")) == ROWS["text"]
    assert list(islice(documents(source, folder, "x"), 2)) == ROWS["text"][:2]
    with pytest.raises(DataError, match=r"x: hub data set .*: cannot be read: "):
        list(documents(Source(hub=str(folder), split="test"), folder, "x"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the extra: pip install 'koffkit\[data\]'"):
        list(documents(source, folder, "x"))

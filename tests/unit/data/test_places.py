"""What a pattern means: a name before a pattern, folders, `~`, addresses."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from koffkit.data.places import kind_of, source_files
from koffkit.data.sources import documents
from koffkit.errors import DataError
from koffkit.recipe.schema import Source


def names(root: Path, **source: object) -> list[str]:
    return [Path(str(place)).name for place in source_files(Source.model_validate(source), root, "domains.x")]


def test_brackets_are_part_of_a_name_where_there_is_one(tmp_path: Path) -> None:
    root = tmp_path / "runs [v2]"
    root.mkdir()
    for name in ("law[1].txt", "law1.txt", "b.txt"):
        (root / name).write_text(name)
    assert names(root, text="law[1].txt") == ["law[1].txt"]
    assert names(root, text="law[0-9].txt") == ["law1.txt"]
    assert names(root, text="*.txt") == ["b.txt", "law1.txt", "law[1].txt"]
    assert names(tmp_path, text=str(root / "l*.txt")) == ["law1.txt", "law[1].txt"]
    assert names(tmp_path, text="**/b.txt") == ["b.txt"]


def test_a_folder_means_its_text_or_its_records(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name in ("b.txt.gz", "a.txt", "deep/c.md", "d.jsonl", "e.csv", "x.bin"):
        (tmp_path / "data" / name).write_text("")
    assert names(tmp_path, text="data") == ["a.txt", "b.txt.gz", "c.md"]
    assert names(tmp_path, jsonl="data") == ["d.jsonl", "e.csv"]


def test_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("")
    assert names(tmp_path / "elsewhere", text="~/a.txt") == ["a.txt"]


def test_addresses_are_opened_by_fsspec_and_globs_are_listed(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for name in ("a", "b"):
        system.pipe(f"/koffkit/{name}.txt", f"text {name}\n\nmore".encode())
    read = documents(Source(text="memory://koffkit/*.txt"), tmp_path, "domains.x")
    assert list(read) == ["text a", "more", "text b", "more"]
    with pytest.raises(DataError, match="nothing matches"):
        names(tmp_path, text="memory://koffkit/*.md")
    with pytest.raises(DataError, match=r"memory://koffkit/c\.txt: cannot be opened"):
        list(documents(Source(text="memory://koffkit/c.txt"), tmp_path, "x"))
    with pytest.raises(DataError, match="addresses begin with one of http"):
        names(tmp_path, text="gopher://x/y.txt")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a" * 5000, "validation error"),
        ("b/" + "a" * 300, "domains.x: .* cannot be looked for|no file matches"),
        ("a\0b", "cannot be looked for|no file matches"),
        ("lwa.txt", r"no file matches 'lwa\.txt'.*Did you mean law\.txt\?"),
        ("gone.txt", "cannot be looked for"),
    ],
)
def test_patterns_that_lead_nowhere(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "law.txt").write_text("")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises((DataError, ValueError), match=message):
        names(tmp_path, text=pattern)


def test_the_kind_of_a_packed_file() -> None:
    names = ("a.csv.gz", "b.JSONL", "v1.2", "https://x/y.parquet?z=1.txt", "c.zst", "what?.csv")
    assert [kind_of(name) for name in names] == [".csv", ".jsonl", ".2", ".parquet", "", ".csv"]

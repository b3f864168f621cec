"""What a recipe's text may hold, and that nothing else costs more than a moment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from koffkit.errors import UsageError
from koffkit.recipe.yaml_text import MAX_BYTES, read_value, read_yaml


def read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)[0]


def test_plain_values_and_their_lines(tmp_path: Path) -> None:
    text = "a: 1\nb: [yes, 'no', 1.5, 1e-5, -3]\nc: {d: null, e: ~}\n"
    text += "shared: &s {x: 1}\nf: {<<: *s, x: 2, y: 3}\n"
    assert read(tmp_path, text) == {
        "a": 1,
        "b": [True, "no", 1.5, 1e-5, -3],
        "c": {"d": None, "e": None},
        "shared": {"x": 1},
        "f": {"x": 2, "y": 3},
    }
    lines = read_yaml(tmp_path / "r.yaml")[1]
    assert (lines["a",], lines["b", 2], lines["c", "e"], lines["f", "y"]) == (1, 2, 3, 5)


BOMBS = {
    "aliases that multiply": "a: &a [l,l,l,l,l,l,l,l,l,l]\n"
    + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "merges that multiply": "a: &a {x: 1}\n"
    + "".join(
        f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 20)}]}}\n" for a, b in zip("abcd", "bcde", strict=True)
    ),
    "an alias inside itself": "a: &a [*a]\n",
    "deep lists": "a: " + "[" * 400_000,
    "deep mappings": "a: " + "{x: " * 100_000,
    "deep dashes": "- " * 400_000,
    "many values": "a: [" + "l," * 400_000 + "]",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(tmp_path: Path, name: str) -> None:
    start = time.process_time()
    with pytest.raises(UsageError, match=r"r\.yaml:\d+: .*(nested deeper|more than 10,000 values)"):
        read(tmp_path, BOMBS[name])
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: {model: {{ BASE }}}", r"r\.yaml:1: a list or mapping stands as a key; put quotes"),
        ("x:\n  no: 1", r"r\.yaml:2: no: as a key YAML reads this as true or false; quote it: 'no'"),
        ("x:\n  2023: 1", r"r\.yaml:2: 2023: as a key .*; quote it"),
        ("x: 2001-12-14", r"r\.yaml:1: 2001-12-14: YAML reads this as a date; quote it"),
        ("x: 2001-99-99", "reads this as a date"),
        ("x: !foo 1", "recipes have no tags"),
        ("x: !!python/object/apply:os.system ['id']", "recipes have no tags"),
        ("x: !!int x", "plain decimals"),
        ("x: !!binary 'a'", "recipes have no tags"),
        ("x: .inf", "not a finite decimal number"),
        ("x: .nan", "not a finite decimal number"),
        ("x: 0x_", "plain decimals"),
        ("x: 0o17\ny: 017", r"r\.yaml:2: 017: write whole numbers in plain decimals"),
        ("x: 12:30", "plain decimals"),
        ("x: " + "9" * 5000, "more than the largest whole number"),
        ("x: 9223372036854775808", "more than the largest whole number"),
        ("<<: 3", "`<<` needs a mapping"),
        ('x: "\\ud800"', "lone surrogate"),
        ('x: "\\0"', "NUL"),
        ('x: "\\UFFFFFFFF"', "not valid YAML"),
        ("x: *nowhere", r"r\.yaml:1: not valid YAML"),
        ("x: 1\n---\ny: 2", "not valid YAML"),
        ("- 1", "a recipe is a mapping"),
        ("a: 1\nb: 2\na: 3", r"r\.yaml:3: a: given twice \(first on line 1\)"),
        ("x: " + "x" * MAX_BYTES, "a recipe has at most"),
    ],
)
def test_what_a_recipe_may_not_hold(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "folder.yaml"):
        with pytest.raises(UsageError, match=f"{name}: not a file"):
            read_yaml(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")


def test_values_of_options() -> None:
    assert read_value("{upper: 2}", "--set x") == {"upper": 2}
    assert read_value("1e-4", "--set x") == 1e-4
    with pytest.raises(UsageError, match=r"--set x: \.inf: not a finite"):
        read_value(".inf", "--set x")

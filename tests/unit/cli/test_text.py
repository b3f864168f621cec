from __future__ import annotations

import json

import pytest

from koffkit.cli.text import json_text, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb", r"a\x0db"),
        ("abc\u202edcba\u2066", r"abc\u202edcba\u2066"),
        ("\ud800", r"\ud800"),
        ("tab\tand\nline, ä 漢 é", "tab\tand\nline, ä 漢 é"),
    ],
)
def test_a_terminal_obeys_no_text_from_files(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_json_has_no_number_that_json_does_not_know() -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1.5, (-float("inf"),)], "c": {"d": 2}}
    read = json.loads(json_text(value), parse_constant=pytest.fail)
    assert read == {"a": None, "b": [None, 1.5, [None]], "c": {"d": 2}}


def test_json_holds_the_same_text_and_no_escapes() -> None:
    text = "\x9b2J \u202e \ud800 ä"
    written = json_text({"name": text})
    assert visible(written) == written
    assert json.loads(written) == {"name": text}

"""What happens before any command runs: shell completion and the check of the platform."""

from __future__ import annotations

import sys

import pytest

from ...conftest import Koffkit


def complete(words: str, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that bash would offer after `words`, as its completion script asks for them."""
    monkeypatch.setenv("_KOFFKIT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    done = koffkit()
    assert done.code == 0
    return [line.split(",")[1] for line in done.out.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("koffkit ver", ["verify"]),
        ("koffkit recipe s", ["schema", "show"]),
        ("koffkit compress --dry", ["--dry-run"]),
        ("koffkit memory compact --dtype int", ["int6", "int8"]),
    ],
)
def test_the_shell_completes(
    words: str, offered: list[str], koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete(words, koffkit, monkeypatch) == offered


def test_the_completion_script_is_printed(koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_KOFFKIT_COMPLETE", "zsh_source")
    done = koffkit()
    assert done.code == 0
    assert "#compdef koffkit" in done.out


def test_another_platform_is_refused_before_anything_runs(
    koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    done = koffkit("recipe", "list")
    assert done.code == 2
    assert done.err == (
        "Error: koffkit does not run on win32: runs and exports need the file locks and renames of Linux and "
        "macOS; on Windows use WSL.\n"
    )
    assert done.out == ""

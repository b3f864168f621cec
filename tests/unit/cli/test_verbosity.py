from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.cli import COMMANDS, cli

from ...conftest import Koffkit, Shipped


def test_every_command_takes_them() -> None:
    for name in COMMANDS:
        command = cli.get_command(cli.make_context("koffkit", [name]), name)
        assert command is not None
        for one in [command, *getattr(command, "commands", {}).values()]:
            assert {"quiet", "verbose", "log_file"} <= {option.name for option in one.params}


def test_a_log_file_holds_the_command_and_the_error(tmp_path: Path, koffkit: Koffkit) -> None:
    log = tmp_path / "log.txt"
    assert koffkit("memory", "list", tmp_path / "none", "--log-file", log).code == 2
    assert koffkit("inspect", tmp_path / "none", "--log-file", log).code == 2
    text = log.read_text()
    assert "none: not an export" in text
    assert "koffkit memory list" in text
    assert "koffkit inspect" in text
    assert "Traceback" in text


def test_a_log_file_that_cannot_be_written_is_named(tmp_path: Path, koffkit: Koffkit) -> None:
    (tmp_path / "file").write_text("x")
    ended = koffkit("recipe", "list", "--log-file", tmp_path / "file" / "log")
    assert ended.code == 5
    assert f"--log-file {tmp_path / 'file' / 'log'}: Not a directory" in ended.err


def test_verbose_says_where_an_error_came_from(tmp_path: Path, koffkit: Koffkit) -> None:
    assert "Traceback" in koffkit("inspect", tmp_path / "none", "-v").err
    assert "Traceback" not in koffkit("inspect", tmp_path / "none").err


def test_quiet_leaves_only_errors(tmp_path: Path, shipped: Shipped, koffkit: Koffkit) -> None:
    assert koffkit("export", shipped.run, "--output", tmp_path / "out", "-q").err == ""


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["compres"], "did you mean compress? There is compress, export"),
        (["recipe", "show", "quickstrat"], "did you mean quickstart?"),
        (["compress", "quickstrat"], "did you mean quickstart?"),
    ],
)
def test_typing_errors_get_a_near_name(arguments: list[str], near: str, koffkit: Koffkit) -> None:
    ended = koffkit(*arguments)
    assert ended.code == 2
    assert near in ended.err


def test_a_mistyped_memory_gets_a_near_name(out: Path, koffkit: Koffkit) -> None:
    for arguments in (
        ["memory", "remove", out, "nort"],
        ["generate", out, "--prompt", "x", "--memory", "nort"],
    ):
        ended = koffkit(*arguments)
        assert ended.code == 2
        assert "no memory 'nort'; did you mean north? There is north, south." in ended.err


def test_the_shell_can_complete_a_line(monkeypatch: pytest.MonkeyPatch, koffkit: Koffkit) -> None:
    monkeypatch.setenv("_KOFFKIT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "koffkit ins")
    monkeypatch.setenv("COMP_CWORD", "1")
    ended = koffkit("ignored")
    assert ended.code == 0
    assert ended.out == "plain,inspect\n"

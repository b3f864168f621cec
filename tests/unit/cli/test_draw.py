from __future__ import annotations

from typing import Any

from rich.table import Table

from koffkit.cli.draw import RichProgress, stdout

from .conftest import Clock


def lines(capsys: Any) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().err.splitlines()]


def test_the_time_left_is_that_of_the_whole_run(clock: Clock, capsys: Any) -> None:
    progress = RichProgress()
    progress.expect({"learn_masks": 100, "recover": 50})
    progress.start("learn_masks", 100, 40)  # resumed
    clock.now += 20
    progress.advance("learn_masks", 50, {"kl": 1.0})
    progress.start("recover", 50, 0)
    clock.now += 20
    progress.advance("recover", 10, {"kl": 1.0})
    assert lines(capsys) == [
        "learn_masks: 50/100  kl 1.0000  about 3 min 20 s left",
        "recover: 10/50  kl 1.0000  about 1 min 20 s left",
    ]


def test_kl_is_smoothed_and_sparsity_stands_beside_its_target(clock: Clock, capsys: Any) -> None:
    progress = RichProgress()
    progress.start("learn_masks", 100, 0)
    for done, kl in enumerate((1.0, 2.0), 1):
        clock.now += 20
        progress.advance(
            "learn_masks",
            done,
            {"kl": kl, "expected_sparsity": 0.05, "sparsity": 0.12, "tokens_per_second": 9},
        )
    assert lines(capsys) == [
        "learn_masks: 1/100  kl 1.0000  sparsity 5.0% of 12.0%  9 tokens/s",
        "learn_masks: 2/100  kl 1.1000  sparsity 5.0% of 12.0%  9 tokens/s",
    ]


def test_names_in_a_pipe_are_whole_and_harmless(capsys: Any) -> None:
    table = Table()
    table.add_column("domain")
    table.add_column("second")
    name = "long" * 60
    table.add_row(name, "\x1b[2Jx")
    stdout().print(table)
    out = capsys.readouterr().out
    assert name in out
    assert "\x1b" not in out
    assert r"\x1b[2Jx" in out

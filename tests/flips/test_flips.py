from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from koffkit.run.finished import FinishedRun
from koffkit.runtime.verify import verify_export, verify_run

from ..conftest import Shipped
from . import campaign as flips
from .campaign import campaign, with_flip


@pytest.fixture
def copies(shipped: Shipped, tmp_path: Path) -> tuple[Path, Path]:
    export = Path(shutil.copytree(shipped.export, tmp_path / "export"))
    return export, Path(shutil.copytree(shipped.run, tmp_path / "run"))


def test_no_flipped_bit_goes_unseen(copies: tuple[Path, Path]) -> None:
    figures = campaign(*copies, flips=200, seed=3)
    assert figures.missed == []
    assert sum(figures.tried.values()) == 200
    assert min(figures.tried.values()) > 50
    export, run = copies
    assert verify_export(export)["ok"]
    assert verify_run(run)["ok"]


def test_a_reader_that_looks_away_is_caught(
    copies: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flips, "verify_run", lambda root: {"ok": True})
    monkeypatch.setattr(flips, "verify_export", lambda root: {"ok": True})
    figures = campaign(*copies, flips=6, seed=3)
    assert sum(missed.startswith("verify: ") for missed in figures.missed) == 6


def test_every_bit_of_a_record_counts(copies: tuple[Path, Path]) -> None:
    """Also those that leave the value as it is: a capital letter in an exponent, a digit beyond precision."""
    _, run = copies
    path = run / "run.json"
    text = path.read_bytes()
    assert b"e-" in text, "no number with an exponent"
    seen: list[bool] = []
    bit = 8 * text.index(b"e-0" if b"e-0" in text else b"e-") + 5  # e to E

    with_flip(path, bit, lambda: seen.append(flips.refuses(lambda: FinishedRun.open(run))))
    assert seen == [True]
    assert path.read_bytes() == text

"""`koffkit report`, as a user calls it, and its page in a browser without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from koffkit.run.folder import RunFolder

from ..browser import CHROMIUM, FLAGS
from ..conftest import Koffkit, Shipped

pytest.importorskip("vl_convert")


def test_the_page_of_a_run_lies_in_it(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    shutil.copytree(shipped.run, tmp_path / "run")
    result = koffkit("report", tmp_path / "run", "--json").json
    page = tmp_path / "run" / "report.html"
    assert result == {"path": str(tmp_path / "run"), "output": str(page), "bytes": page.stat().st_size}
    assert koffkit("verify", tmp_path / "run").code == 0


def test_the_page_of_an_export_lies_beside_it(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    shutil.copytree(shipped.export, tmp_path / "out")
    assert koffkit("report", tmp_path / "out").code == 0
    assert (tmp_path / "out-report.html").is_file()
    assert koffkit("verify", tmp_path / "out").code == 0


def test_nothing_else_has_a_page(koffkit: Koffkit, tmp_path: Path) -> None:
    result = koffkit("report", tmp_path)
    assert result.code == 2
    assert "neither a run nor an export" in result.err


def test_another_run_has_its_column(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    shutil.copytree(shipped.run, tmp_path / "less")
    page = tmp_path / "page.html"
    done = koffkit("report", shipped.run, "--baseline", tmp_path / "less", "--output", page)
    assert done.code == 0, done.err
    text = page.read_text()
    assert '<th scope="col">baseline less</th>' in text
    assert "<p>Against less (" in text


def test_another_run_that_is_no_run_is_refused(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    page = tmp_path / "page.html"
    for path, other, message in (
        (shipped.run, tmp_path, "not a run folder"),
        (shipped.run, shipped.run, f"--baseline {shipped.run}: this is the run itself"),
        (shipped.export, shipped.run, f"--baseline: {shipped.export} is an export"),
    ):
        done = koffkit("report", path, "--baseline", other, "--output", page, "--completions", "1")
        assert done.code == 2
        assert message in done.err
    assert not page.exists()
    assert not RunFolder(shipped.run).completions_file.exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_draws_every_chart_and_asks_for_nothing(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    assert koffkit("report", shipped.run, "--output", tmp_path / "page.html").code == 0
    log = tmp_path / "net.json"
    flags = [
        *FLAGS, "--headless", f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}",
        "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000",
    ]  # fmt: skip
    page = (tmp_path / "page.html").as_uri()
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", page], capture_output=True, text=True, timeout=120
    )
    charts = re.findall(r'class="chart[^"]*" id="(chart-[a-z]+)"', done.stdout)
    assert len(charts) == 5
    assert f'data-drawn="{len(charts)}"' in done.stdout
    assert len(re.findall(r'<svg[^>]*class="marks"', done.stdout)) == len(charts)
    assert not re.findall(r"Refused to|CONSOLE.*(?:Error|WARN)", done.stderr)
    asked = re.findall(r'"url":"(https?://[^"]+)"', log.read_text(errors="replace"))
    assert [url for url in asked if "google" not in url and "gvt1" not in url] == []  # the browser's own

"""An exporter of another package: one file, found by its entry point, with options of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from koffkit import plugins

from ..conftest import Koffkit, Shipped
from ..outside import install


@pytest.fixture
def summary_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package on the import path that brings the format `summary`."""
    site = install(tmp_path / "site", "exporter")
    monkeypatch.syspath_prepend(str(site))
    plugins.installed.cache_clear()
    plugins.load.cache_clear()
    yield site
    sys.modules.pop("extra_exporter", None)
    plugins.installed.cache_clear()
    plugins.load.cache_clear()


def test_an_exporter_from_outside_the_tree(
    summary_package: Path, shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    output = tmp_path / "out"
    done = koffkit("export", shipped.run, "--format", "summary", "--output", output, "--json")
    assert done.code == 0, done.err
    summary = json.loads((output / "summary.json").read_text())
    assert summary["family"] == "llama"
    assert summary["structures"] == ["mlp_neuron"]
    assert set(summary["memories"]) == {"north", "south"}
    assert summary["figures"]["north"]["matched"]["perplexity"] > 1
    assert done.json == {"output": str(output), **summary}
    assert (output / "backbone" / "model.safetensors").is_file()
    again = koffkit("export", shipped.run, "--format", "summary", "--output", tmp_path / "two")
    assert again.code == 0 and "two: done." in again.out.replace("\n", "")


def test_an_exporter_from_outside_has_options_of_its_own(
    summary_package: Path, shipped: Shipped, tmp_path: Path
) -> None:
    from koffkit.exporters import export

    from koffkit.errors import UsageError

    export(shipped.run, tmp_path / "flat", "summary", {"indent": 0})
    assert (tmp_path / "flat" / "summary.json").read_text().startswith('{\n"name"')
    with pytest.raises(UsageError, match=r"format summary has no option colour; .*there is: indent"):
        export(shipped.run, tmp_path / "two", "summary", {"colour": "red"})
    with pytest.raises(UsageError, match="format summary: indent: input should be a valid integer"):
        export(shipped.run, tmp_path / "two", "summary", {"indent": "much"})
    assert not (tmp_path / "two").exists()

"""An exporter of another package: one file, found by its entry point, with options of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from koffkit import plugins

from ..conftest import Koffkit, Shipped

MODULE = '''
import json

from koffkit.exporters.toolkit import publishing, write_backbone, write_bundles
from koffkit.strict import StrictModel


class SummaryOptions(StrictModel):
    indent: int = 2


class SummaryExporter:
    """Writes the sliced model and one line for each memory."""

    Options = SummaryOptions

    def export(self, run, output, options, progress):
        with publishing(run, output, progress) as draft:
            sliced = write_backbone(draft)
            bundles = write_bundles(draft, sliced.digest)
            summary = {
                "name": run.name,
                "family": run.spec.arch.model_type,
                "layers": run.spec.num_layers,
                "structures": sorted({structure for _, structure in run.masks}),
                "memories": {bundle.domain: bundle.info.parameters for bundle in bundles},
                "router": run.router is not None,
                "perplexity": run.figures("north")["matched"]["perplexity"],
            }
            text = json.dumps(summary, indent=options.indent)
            (draft.folder / "summary.json").write_text(text)
        return {"output": str(output), **summary}
'''


@pytest.fixture
def summary_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `summary_exporter` on the import path, as pip would install it."""
    site = tmp_path / "site"
    info = site / "summary_exporter-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "summary_exporter.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: summary-exporter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[koffkit.exporters]\nsummary = summary_exporter:SummaryExporter\n"
    )
    monkeypatch.syspath_prepend(str(site))
    plugins.installed.cache_clear()
    plugins.load.cache_clear()
    yield site
    sys.modules.pop("summary_exporter", None)
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

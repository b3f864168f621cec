"""What the cards of an export say, and that a hub takes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from koffkit.exporters import export

from koffkit.artefact.export import open_export
from koffkit.run.folder import RunFolder

from ...conftest import Koffkit, Shipped

CARDS = ("README.md", "backbone/README.md", "memories/north/README.md", "memories/south/README.md")


@pytest.fixture(scope="module")
def from_hub(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the same run, whose base was downloaded from a hub."""
    root = tmp_path_factory.mktemp("hub")
    run = RunFolder(Path(shutil.copytree(shipped.run, root / "run")))
    state = run.read()
    snapshot = root / "models--owner--name" / "snapshots" / "c0ffee"
    shutil.copytree(state.base.path, snapshot)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n# Owner's model\n")
    (snapshot / "LICENSE").write_text("MIT License\n")
    base = state.base.model_copy(update={"model": "owner/name", "path": str(snapshot)})
    settings = state.recipe["base"] | {"model": "owner/name"}
    run.write(state.evolve(base=base, recipe=state.recipe | {"base": settings}))
    export(run.path, root / "out")
    return root / "out"


@pytest.mark.parametrize("card", CARDS)
def test_a_hub_reads_every_header(from_hub: Path, card: str) -> None:
    data = ModelCard.load(from_hub / card).data
    assert data.license == "mit"
    assert data.base_model == (None if "memories" in card else "owner/name")
    assert data.library_name == ("peft" if "memories" in card else "transformers")


@pytest.mark.parametrize("card", CARDS)
def test_no_card_tells_where_anything_lay(shipped: Shipped, card: str) -> None:
    text = (shipped.export / card).read_text()
    assert str(shipped.run.parent.parent) not in text
    data = ModelCard.load(shipped.export / card).data
    assert data.base_model is None
    assert data.license is None


def test_the_root_card_says_what_an_operator_needs(from_hub: Path) -> None:
    text = (from_hub / "README.md").read_text()
    export_ = open_export(from_hub)
    for part in (
        'AutoModelForCausalLM.from_pretrained("backbone")',
        'PeftModel.from_pretrained(model, "memories/north")',
        'KoffModel.from_pretrained(".")',
        "revision `c0ffee`",
        "applies: mit.",
        "- Domain south: text `south.txt`.",
        "- Retention: text `general.txt`.",
        f"`{export_.backbone_digest[:16]}`",
        'from_pretrained("owner/name", revision="c0ffee")',
        f"{export_.manifest.backbone.bytes:,} bytes",
    ):
        assert part in text, part


def test_the_license_goes_with_the_backbone(from_hub: Path) -> None:
    assert (from_hub / "backbone" / "LICENSE").read_text() == "MIT License\n"
    assert "backbone/LICENSE" in open_export(from_hub).manifest.files


def test_a_card_may_be_edited(from_hub: Path, tmp_path: Path, koffkit: Koffkit) -> None:
    out = Path(shutil.copytree(from_hub, tmp_path / "out"))
    for card in CARDS:
        (out / card).write_text((out / card).read_text() + "\nA line of the operator's own.\n")
    assert koffkit("verify", out, "--json").json["ok"] is True

"""A memory that does harm is told by every command and card."""

from __future__ import annotations

import shutil
from pathlib import Path

from koffkit.exporters import export

from koffkit.run.folder import RunFolder

from ..common import recipe_dict, write_recipe
from ..conftest import Koffkit, Shipped
from .test_docs_json import names_in

CARDS = ("README.md", "backbone/README.md", "memories/north/README.md")
CLAIMS = ("Knowledge of single domains was moved", "brings back what one domain needs")


def test_harm_is_told_by_compress_evaluate_and_the_cards(
    llama: Path, koffkit: Koffkit, tmp_path: Path
) -> None:
    tree = recipe_dict(llama, tmp_path / "data")
    tree["stages"][1]["recover"]["lr"] = {"lora": 1.0, "kv": 1.0, "gates": 0.3}  # wrecks the memories
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    run = tmp_path / "run"
    done = koffkit("compress", recipe, "--output", run)
    assert done.code == 0, done.err
    harm = "WARNING: a memory does harm, or no good, in 2 of 2 domains: north (KL "
    assert harm in done.out
    assert harm in koffkit("evaluate", run).out
    again = koffkit("compress", recipe, "--output", run, "--resume", "--json").json
    assert again["verdict"]["harmed"] == ["north", "south"]
    assert set(again["verdict"]) <= names_in("compress")
    export(run, tmp_path / "out")
    for card in CARDS:
        text = (tmp_path / "out" / card).read_text()
        assert "> **Warning:** a memory does harm" in text, card
        for claim in CLAIMS:
            assert claim not in text, card


def test_figures_that_are_good_are_claimed(shipped: Shipped, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(shipped.run, tmp_path / "run")))
    state = run.read()
    domains = {
        name: {
            "tokens": 5000,
            "unpruned": {"perplexity": 2.0, "kl": 0.0},
            "backbone": {"perplexity": 3.0, "kl": 0.4},
            "matched": {"perplexity": 2.1, "kl": 0.1},
            "swap": {other: {"perplexity": 3.0, "kl": 0.5}},
        }
        for name, other in (("north", "south"), ("south", "north"))
    }
    run.write(state.evolve(results={"domains": domains}))
    export(run.path, tmp_path / "out")
    claims = (CLAIMS[1], CLAIMS[0], "The memory recovers 75.0% of the loss")
    for card, claim in zip(CARDS, claims, strict=True):
        text = (tmp_path / "out" / card).read_text()
        assert claim in text, card
        assert "**Warning:**" not in text, card


def test_an_added_memory_is_judged(out: Path, koffkit: Koffkit) -> None:
    fast = ("--set", "stages.recover.max_steps=2", "--set", "stages.recover.lr={lora: 1.0, kv: 1.0}")
    added = koffkit("memory", "add", out, "east", "--text", "east.txt", *fast)
    assert added.code == 0, added.err
    assert "WARNING: a memory does harm, or no good, in 1 of 1 domain: east (KL " in added.out
    shown = koffkit("memory", "replace", out, "east", "--text", "east.txt", *fast, "--json").json
    assert set(shown) <= names_in("memory replace")
    assert shown["verdict"]["harmed"] == ["east"]
    assert "does harm" in (out / "memories" / "east" / "README.md").read_text()

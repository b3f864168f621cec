"""`koffkit ablate` and `koffkit sweep` on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from ..common import recipe_dict, write_recipe
from ..conftest import Koffkit
from .test_docs_json import names_in

ROWS = "koff,one_shot_activation_bare,unpruned_lora"


@pytest.fixture
def recipe(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    found = recipe_dict(llama, tmp_path / "data")
    rates = {"lora": 1e-3, "kv": 1e-3, "gates": 0.1}
    found["stages"] = [
        {"learn_masks": {"max_steps": 2, "lr": rates}},
        {"recover": {"max_steps": 1, "lr": rates}},
        {"evaluate": {"batch_size": 4, "max_tokens": 64}},
    ]
    return write_recipe(tmp_path / "recipe.yaml", found)


def forget_field(path: Path, section: str, field: str) -> None:
    """Make a `run.json` one of an earlier version, whose recipes did not have a field."""
    state = json.loads(path.read_text())
    del state["seal"], state["requested_recipe"][section][field]
    path.write_text(json.dumps(state))


def test_an_ablation_is_run_averaged_kept_and_continued(
    recipe: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.stages import engine

    arguments = ("ablate", recipe, "--rows", ROWS, "--seeds", "0,1", "--csv", "found.csv", "--json")
    first = koffkit(*arguments)
    assert first.code == 0, first.err
    rows = first.json["rows"]
    assert list(rows) == ROWS.split(",")
    koff, bare, lora = rows.values()
    assert koff["seeds"] == [0, 1]
    assert koff["served"]["kl"]["values"][0] != koff["served"]["kl"]["values"][1]
    assert bare["parameters"] < koff["parameters"] < lora["parameters"]
    assert bare["served"] == bare["backbone"]
    assert lora["sparsity"] == 0
    assert lora["backbone"]["kl"]["mean"] == pytest.approx(0, abs=1e-6)
    lines = list(csv.DictReader(Path("found.csv").read_text().splitlines()))
    assert {(line["row"], line["seed"]) for line in lines} == {(row, s) for row in rows for s in "01"}
    output = Path("runs/tiny-ablation")
    assert json.loads((output / "summary.json").read_text()) == rows
    assert (output / "figure.png").stat().st_size > 1000
    forget_field(Path("runs/tiny-ablation/koff-0/run.json"), "distill", "cache")  # before there was the field
    monkeypatch.setattr(engine, "run_recipe", lambda *_, **__: pytest.fail("ran a finished run again"))
    again = koffkit(*arguments)
    assert again.json == first.json
    other = koffkit("ablate", recipe, "--rows", "koff", "--set", "sequence_length=12")
    assert other.code == 2
    assert "a run of another recipe, which differs in sequence_length" in other.err


def test_the_default_rows_are_held_against_the_one_of_equal_size(recipe: Path, koffkit: Koffkit) -> None:
    tree = yaml.safe_load(recipe.read_text())
    tree["mask"]["global_sparsity"] = 0.2
    tree["memory"] = {"layers": "all", "lora": {"rank": 3, "alpha": 3, "targets": ["up_proj"]}, "kv": None}
    tree["stages"][0] = {"select_masks": {"batches": 1}}
    write_recipe(recipe, tree)
    done = koffkit("ablate", recipe, "--json")
    assert done.code == 0, done.err
    rows = done.json["rows"]
    assert list(rows) == ["koff", "pruning_only", "prune_less", "restored_neurons", "unpruned_lora"]
    assert "row prune_then_recover is left out: the recipe has no stage learn_masks." in done.err
    assert "row one_shot_activation is left out: for this recipe it is the same as koff." in done.err
    held = {name: row["against"] for name, row in rows.items() if "against" in row}
    assert list(held) == ["koff", "restored_neurons", "unpruned_lora"]
    apart = rows["koff"]["served"]["kl"]["mean"] - rows["prune_less"]["served"]["kl"]["mean"]
    assert held["koff"]["kl"]["difference"] == pytest.approx(apart)
    assert (held["koff"]["seeds"], held["koff"]["domains"]) == (1, 2)
    assert set(rows["koff"]) <= names_in("ablate")
    assert set(held["koff"]) | set(held["koff"]["kl"]) | set(held["koff"]["perplexity"]) <= names_in("ablate")
    words = " ".join(koffkit("ablate", recipe, "--rows", "koff,prune_less").out.split())
    said = "WARNING: koff loses to prune_less (" if apart > 0 else "koff against prune_less ("
    loaded = f"{rows['prune_less']['parameters']:,} parameters loaded, here {rows['koff']['parameters']:,})"
    assert f"{said}{loaded}: lower KL in " in words
    run, baseline = (f"runs/tiny-ablation/{row}-0" for row in ("koff", "prune_less"))
    reported = koffkit("report", run, "--baseline", baseline, "--output", "page.html")
    assert reported.code == 0, reported.err
    assert f"Against prune_less-0 ({loaded}: lower KL in " in Path("page.html").read_text()


def test_a_sweep_has_a_point_for_every_value(recipe: Path, koffkit: Koffkit) -> None:
    found = koffkit(
        "sweep", recipe, "--set", "mask.global_sparsity=0.1,0.2", "--set", "memory.kv=null", "--json"
    )
    assert found.code == 0, found.err
    low, high = found.json["rows"].values()
    assert list(found.json["rows"]) == ["global_sparsity=0.1", "global_sparsity=0.2"]
    assert low["sparsity"] < high["sparsity"]
    assert low["parameters"] > high["parameters"]
    table = koffkit("sweep", recipe, "--set", "mask.global_sparsity=0.1,0.2", "--set", "memory.kv=null")
    assert "global_sparsity=0.2" in table.out


def test_rows_are_listed_and_mistakes_named(recipe: Path, koffkit: Koffkit) -> None:
    listed = koffkit("ablate", recipe, "--list")
    assert "prune_less" in listed.out
    for arguments, message in (
        (("--rows", "koof"), "no row 'koof'"),
        (("--seeds", "0,0"), "--seeds: '0,0'"),
        (("--seeds", "a"), "--seeds: 'a'"),
    ):
        refused = koffkit("ablate", recipe, *arguments)
        assert refused.code == 2
        assert message in refused.err
    refused = koffkit("sweep", recipe, "--set", "mask.global_sparsity=0.1,2")
    assert refused.code == 2
    assert "mask.global_sparsity" in refused.err


def test_an_interrupted_study_goes_on(
    recipe: Path, koffkit: Koffkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from koffkit.errors import Interrupted
    from koffkit.stages import engine

    real, calls = engine.run_recipe, []

    def second_is_interrupted(*arguments: object, **options: object) -> object:
        calls.append(options["resume"])
        if len(calls) == 2:
            raise Interrupted("interrupted in recover")
        return real(*arguments, **options)

    monkeypatch.setattr(engine, "run_recipe", second_is_interrupted)
    arguments = ("sweep", recipe, "--set", "mask.global_sparsity=0.1,0.2", "--json")
    stopped = koffkit(*arguments)
    assert stopped.code == 130
    assert "interrupted in global_sparsity=0.2, seed 0; the same command goes on from there" in stopped.err
    assert len(koffkit(*arguments).json["rows"]) == 2
    assert len(calls) == 3

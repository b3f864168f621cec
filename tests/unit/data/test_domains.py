from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.spec import ModelSpec
from koffkit.data.domains import Embedder, resolve_domains
from koffkit.errors import DataError, UsageError
from koffkit.planning.plan import make_plan
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.stages.engine import run_recipe

from ...common import recipe_dict, write_recipe

GROUPS = (
    ["river", "stone", "lamp", "cloud"],
    ["seven", "green", "walks", "over"],
    ["quiet", "house", "sings", "bright"],
)


def auto_recipe(llama: Path, root: Path, count: int = 3, **options: Any) -> Path:
    """Documents of three groups of words, mixed."""
    recipe = recipe_dict(llama, root / "data")
    text = [" ".join([*words, *words[k % 4 :]]) + "." for k in range(30) for words in GROUPS]
    (root / "data" / "mixed.txt").write_text("\n\n".join(text), encoding="utf-8")
    recipe["domains"] = {"auto": {"text": str(root / "data" / "mixed.txt"), "count": count, **options}}
    recipe["stages"] = recipe["stages"][:2]
    return write_recipe(root / "recipe.yaml", recipe)


@pytest.mark.parametrize("layer", [0, 2])
def test_groups_become_domains_named_by_their_words(llama: Path, tmp_path: Path, layer: int) -> None:
    run = RunFolder(tmp_path / "run")
    loaded = resolve_domains(
        load_recipe(auto_recipe(llama, tmp_path, layer=layer)), run, ModelSpec.open(llama), Silent()
    )
    assert len(loaded.recipe.sources) == 3
    for name in loaded.recipe.sources:
        texts = [json.loads(line)["text"] for line in run.domain_text(name).read_text().splitlines()]
        (group,) = [words for words in GROUPS if words[0] in texts[0]]
        assert len(texts) == 30 and all(
            words in " ".join(group) for text in texts for words in text.rstrip(".").split()
        )
        assert set(name.split("-")) <= set(group)
    assert json.loads(run.domains_file.read_text())["domains"].keys() == loaded.recipe.sources.keys()
    assert not list(run.domains_file.parent.glob(".*"))


def test_found_domains_are_not_found_again(llama: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    loaded = load_recipe(auto_recipe(llama, tmp_path))
    first = resolve_domains(loaded, run, ModelSpec.open(llama), Silent()).recipe.sources
    (tmp_path / "data" / "mixed.txt").unlink()
    assert resolve_domains(loaded, run, ModelSpec.open(llama), Silent()).recipe.sources == first


def test_a_whole_run_and_its_resumption(llama: Path, tmp_path: Path) -> None:
    loaded = load_recipe(auto_recipe(llama, tmp_path))
    state = run_recipe(loaded, tmp_path / "run")
    assert state.requested_recipe["domains"]["auto"]["count"] == 3
    assert set(state.recipe["domains"]) == {path.name for path in (tmp_path / "run" / "memories").iterdir()}
    assert run_recipe(loaded, tmp_path / "run", resume=True).state == "finished"
    with pytest.raises(UsageError, match="the recipe changed in domains"):
        run_recipe(load_recipe(loaded.path, ["domains.auto.count=2"]), tmp_path / "run", resume=True)


def test_the_plan_counts_domains_that_are_not_found_yet(llama: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(auto_recipe(llama, tmp_path)).recipe, ModelSpec.open(llama))
    assert plan.domains == ["auto-1", "auto-2", "auto-3"] and not (tmp_path / "run").exists()


def test_more_domains_than_documents(llama: Path, tmp_path: Path) -> None:
    loaded = load_recipe(auto_recipe(llama, tmp_path, count=9, max_documents=5))
    with pytest.raises(DataError, match=r"domains\.auto\.count: 9 domains of 5 documents; lower count"):
        run_recipe(loaded, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_of_the_embedding(llama: Path, tmp_path: Path) -> None:
    def embed(**options: Any) -> Any:
        recipe = load_recipe(auto_recipe(llama, tmp_path, **options)).recipe
        return Embedder(ModelSpec.open(llama), recipe, recipe.domains.auto)(
            ["river stone lamp", "river stone lamp cloud seven"]
        )  # type: ignore[union-attr]

    whole, short, deep = embed(), embed(max_tokens=2), embed(layer=1)
    assert (
        abs(short[0] - short[1]).max() < 1e-6 < abs(whole[0] - whole[1]).max()
        and abs(deep - whole).max() > 1e-3
    )
    with pytest.raises(
        UsageError,
        match=r"domains\.auto\.layer: 4 is not a layer of this model; use 0 \(token embeddings\) to 3",
    ):
        embed(layer=4)


def test_groups_are_made_from_the_first_documents_and_the_rest_joins(llama: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    resolve_domains(
        load_recipe(auto_recipe(llama, tmp_path, fit_documents=12)), run, ModelSpec.open(llama), Silent()
    )
    found = json.loads(run.domains_file.read_text())["domains"]
    assert sum(entry["documents"] for entry in found.values()) == 90
    with pytest.raises(DataError, match="3 domains of 2 documents"):
        resolve_domains(
            load_recipe(auto_recipe(llama, tmp_path, fit_documents=2)),
            RunFolder(tmp_path / "other"),
            ModelSpec.open(llama),
            Silent(),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("domains.auto.count=1", r"domains\.auto\.count: 1: input should be greater than or equal to 2"),
        ("domains.auto.cuont=3", r"domains\.auto\.cuont: unknown key; did you mean 'count'"),
        ("domains.auto={text: a.txt}", "auto cannot be a domain"),
        (
            "domains.auto={jsonl: a, messages: talk, count: 2}",
            "auto groups plain documents and keeps nothing but their text",
        ),
        (
            "domains.auto={jsonl: a, prompt_field: p, answer_field: q, count: 2}",
            "auto groups plain documents",
        ),
    ],
)
def test_errors_of_the_recipe(llama: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(auto_recipe(llama, tmp_path), [change])

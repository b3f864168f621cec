from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.files import load_tokenizer
from koffkit.data.corpus import prepare
from koffkit.data.estimate import BYTES_A_TOKEN, available_tokens
from koffkit.recipe.load import LoadedRecipe
from koffkit.recipe.schema import Recipe

from ...common import recipe_dict, sentences


def loaded(llama: Path, root: Path, **changes: Any) -> LoadedRecipe:
    recipe = Recipe.model_validate(recipe_dict(llama, root / "data") | changes)
    return LoadedRecipe(recipe, root / "r.yaml", root)


def write_records(path: Path, count: int) -> None:
    rows = [{"text": text, "more": "x" * 50} for text in sentences(5, count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_estimate_is_near_what_training_will_have(llama: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "east.jsonl", 400)
    domains = {"north": {"text": str(tmp_path / "data" / "north.txt")}, "east": {"jsonl": "east.jsonl"}}
    recipe = loaded(llama, tmp_path, domains=domains)
    corpus = prepare(recipe, load_tokenizer(llama), tmp_path / "tokens")
    estimate = available_tokens(recipe, llama)
    for name, stream in corpus.train.items():
        assert estimate[name] == pytest.approx(len(stream), rel=0.1)
    assert estimate["retention"] is not None


def test_four_bytes_are_a_token_where_there_is_no_tokenizer(llama: Path, tmp_path: Path) -> None:
    recipe = loaded(llama, tmp_path, holdout=0.5)
    size = (tmp_path / "data" / "north.txt").stat().st_size
    assert available_tokens(recipe, None)["north"] == pytest.approx(size / BYTES_A_TOKEN / 2, rel=0.01)


def test_no_more_than_the_documents_that_are_taken(llama: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "east.jsonl", 400)
    whole = loaded(llama, tmp_path, retention={"jsonl": "east.jsonl"})
    few = loaded(llama, tmp_path, retention={"jsonl": "east.jsonl", "max_documents": 40})
    all_tokens, some = (available_tokens(recipe, llama)["retention"] for recipe in (whole, few))
    assert some == pytest.approx((all_tokens or 0) / 10, rel=0.1)


def test_packed_and_damaged_and_far_away(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(sentences(3, 200)).encode()))
    (tmp_path / "bad.jsonl").write_text('{"text": "river stone"}\n{]\n[]\n')
    domains = {
        "packed": {"text": "a.txt.gz"},
        "bad": {"jsonl": "bad.jsonl"},
        "far": {"text": "s3://nowhere/a.txt"},
        "hub": {"hub": "owner/name"},
    }
    estimate = available_tokens(loaded(llama, tmp_path, domains=domains), llama)
    assert (estimate["packed"] or 0) > 100
    assert (estimate["bad"] or 0) > 0
    assert estimate["far"] is None
    assert estimate["hub"] is None


def test_conversations(llama: Path, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "river"}, {"role": "assistant", "content": "stone lamp"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"turns": talk}) + "\n")
    recipe = loaded(llama, tmp_path, retention={"jsonl": "talk.jsonl", "messages": "turns"})
    assert (available_tokens(recipe, llama)["retention"] or 0) > 2


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "parquet"])
def test_other_fields_of_records_do_not_count(llama: Path, tmp_path: Path, kind: str) -> None:
    rows = [{"text": text, "more": "x y z " * 30} for text in sentences(5, 400)]
    path = tmp_path / f"east.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        with open(path, "w", newline="") as file:
            table = csv.DictWriter(file, ["text", "more"], delimiter="\t" if kind == "tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    recipe = loaded(llama, tmp_path, domains={"east": {"jsonl": path.name}})
    corpus = prepare(recipe, load_tokenizer(llama), tmp_path / "tokens")
    assert available_tokens(recipe, llama)["east"] == pytest.approx(len(corpus.train["east"]), rel=0.1)

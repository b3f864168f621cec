from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from koffkit import KoffModel
from koffkit.artefact.names import MANIFEST
from koffkit.errors import DataError, UsageError
from koffkit.runtime.perplexity import Text, packed_text, perplexity, sequences

from ...common import sentences, write_record
from ...conftest import Koffkit, Shipped


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(sentences(1, 12)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batches_of_any_size_give_the_same_figure(shipped: Shipped, text: str, batch_size: int) -> None:
    model = KoffModel.from_pretrained(shipped.export, dtype="float32")
    ids = packed_text(model.tokenizer, text).ids
    total = 0.0
    for start in range(0, len(ids), 16):
        part = torch.tensor([ids[start : start + 16]])
        logits = model.logits(part, "north")[0, :-1]
        total += F.cross_entropy(logits, part[0, 1:], reduction="sum").item() if part.shape[1] > 1 else 0.0
    result = perplexity(shipped.export, text, "north", sequence_length=16, batch_size=batch_size)
    assert result["tokens"] == len(ids) - math.ceil(len(ids) / 16)
    assert result["perplexity"] == pytest.approx(math.exp(total / result["tokens"]), rel=1e-5)


def test_the_router_reads_each_sequence_of_a_batch(shipped: Shipped, text: str) -> None:
    one, many = (
        perplexity(shipped.export, text, "auto", sequence_length=16, batch_size=size) for size in (1, 8)
    )
    assert one["perplexity"] == pytest.approx(many["perplexity"], rel=1e-5)


def test_a_single_token_at_the_end_is_left_out() -> None:
    def shapes(ids: list[int], batch_size: int) -> list[list[int]]:
        return [list(part.ids.shape) for part in sequences(Text(ids, [0]), 4, batch_size, apart=False)]

    assert shapes(list(range(9)), 8) == [[2, 4]]
    assert shapes(list(range(10)), 1) == [[1, 4], [1, 4], [1, 2]]
    assert shapes([5, 6], 1) == [[1, 2]]


def test_documents_apart_are_read_one_by_one(shipped: Shipped, text: str) -> None:
    """Sequences as long as the text: what is measured is the likelihood of every document by itself."""
    model = KoffModel.from_pretrained(shipped.export, dtype="float32")
    ids, starts = packed_text(model.tokenizer, text)
    total = 0.0
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        logits = model.logits(torch.tensor([ids[start:end]]), "north")[0]
        following = torch.tensor(ids[start + 1 : end + 1])  # the first token of the next document, too
        total += F.cross_entropy(logits[: len(following)], following, reduction="sum").item()
    for apart in (True, False):
        found = perplexity(
            shipped.export, text, "north", sequence_length=len(ids), attend_across_documents=not apart
        )
        assert (found["perplexity"] == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-5)) is apart


def test_an_export_is_measured_as_its_recipe_says(shipped: Shipped, out: Path, text: str) -> None:
    def figure(path: Path, across: bool | None) -> float:
        given = {"sequence_length": 64, "attend_across_documents": across}
        return float(perplexity(path, text, None, **given)["perplexity"])

    assert figure(out, None) == figure(out, True)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["recipe"]["attend_across_documents"] = False
    write_record(out / MANIFEST, manifest)
    assert figure(out, None) == figure(out, False) != figure(out, True)
    assert figure(out / "backbone", None) == figure(out, True)


def test_a_token_that_the_model_does_not_know_is_named(shipped: Shipped, text: str) -> None:
    model = KoffModel.from_pretrained(shipped.export)
    with pytest.raises(DataError, match=r"document 1: token \d+ .* is beyond the model's embedding"):
        packed_text(model.tokenizer, text, vocab_size=5)


def test_devices_and_types_of_the_commands(koffkit: Koffkit, shipped: Shipped, text: str) -> None:
    figures = {
        dtype: koffkit(
            "evaluate", shipped.export, "--data", text, "--dtype", dtype, "--device", "cpu", "--json"
        )
        for dtype in ("float32", "bfloat16")
    }
    exact, rounded = (figures[dtype].json["perplexity"] for dtype in ("float32", "bfloat16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)
    prompts = [part for word in ("river", "stone lamp", "cloud") for part in ("--prompt", word)]
    ask = ["generate", shipped.export, *prompts, "--memory", "north", "--max-new-tokens", 4, "--json"]
    assert koffkit(*ask, "--batch-size", 2).json == koffkit(*ask).json


@pytest.mark.parametrize("command", ["generate", "evaluate", "memory compact"])
def test_a_device_that_is_none_or_not_here(
    koffkit: Koffkit, shipped: Shipped, text: str, tmp_path: Path, command: str
) -> None:
    more = {
        "generate": ["--prompt", "x"],
        "evaluate": ["--data", text],
        "memory compact": ["--output", tmp_path / "small"],
    }[command]
    ask = [*command.split(), shipped.export, *more, "--device"]
    unknown, missing = koffkit(*ask, "gpu"), koffkit(*ask, "xpu:7")
    assert unknown.code == 2
    assert missing.code == 5
    assert "device 'gpu': not one of cpu" in unknown.err
    assert "device 'xpu:7': not available here; there is cpu" in missing.err
    assert not (tmp_path / "small").exists()


def test_from_pretrained_takes_names_of_device_and_type(shipped: Shipped) -> None:
    model = KoffModel.from_pretrained(shipped.export, device="cpu", dtype="bfloat16")
    assert model.device == torch.device("cpu")
    assert model.logits(torch.tensor([[5, 6]]), "north").dtype == torch.bfloat16
    with pytest.raises(UsageError, match="dtype 'int8'"):
        KoffModel.from_pretrained(shipped.export, dtype="int8")

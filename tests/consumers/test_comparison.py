"""What the table of consumers says: the comparison, its bounds, and the environments."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ..conftest import Shipped
from . import environments
from .asking import rows_of
from .cases import TINY_TEXT, Ready
from .likelihoods import CHOICES, CONTEXTS, Likelihoods, _score
from .reference import Reference
from .table import Row, summary


@pytest.fixture(scope="module")
def reference(shipped: Shipped) -> Reference:
    return Reference(shipped.export, Ready(shipped.run, shipped.export, TINY_TEXT).asked(), 8)


def right(reference: Any) -> list[dict[str, Any]]:
    """The answers of a consumer that makes no mistake."""
    found = []
    for asked in reference.asked:
        steps = reference.exact[str(asked)]
        top = [[[index, float(value)] for index, value in enumerate(step)] for step in steps]
        found.append({"ids": list(reference.ids[str(asked)]), "top": top})
    return found


def rows(reference: Any, given: list[Any], consumer: Any = None) -> dict[str, Row]:
    answers = {"versions": {"it": "1"}, "settings": {"one": given}}
    return {row.condition: row for row in rows_of("tiny", reference, answers, consumer)}


def test_it_asks_for_every_half_and_what_stays_behind(shipped: Shipped) -> None:
    asked = Ready(shipped.run, shipped.export, TINY_TEXT).asked()
    assert [(one["memory"], one["lora"], one["kv"], one["whole"]) for one in asked] == [
        (None, False, False, True),
        ("north", True, False, False),
        ("north", True, True, True),
        ("south", True, True, True),
        ("north", True, True, True),
        (None, False, False, True),
    ]


def test_a_consumer_without_a_mistake_is_within_the_bounds(reference: Reference) -> None:
    found = rows(reference, right(reference))
    assert found.keys() == {"backbone", "lora", "lora + kv"}
    for row in found.values():
        assert (row.equal, row.tokens, row.max_abs, row.beyond) == (8, 8, 0.0, "")


def test_the_worst_of_a_condition_counts(reference: Reference) -> None:
    given = right(reference)
    given[3]["ids"][5] = (given[3]["ids"][5] + 1) % 100  # the second memory
    given[5]["top"][2][0][1] += 1000 * reference.floor  # the bare backbone, after all memories
    found = rows(reference, given)
    assert found["lora + kv"].equal == 5 and found["lora + kv"].beyond == "5 of 8 tokens"
    assert "1000 x float32" in found["backbone"].beyond
    assert found["lora"].beyond == ""
    known = SimpleNamespace(WHY={("one", condition): "known" for condition in ("lora", "lora + kv")})
    found = rows(reference, given, known)
    assert found["lora + kv"].beyond == "5 of 8 tokens (known)" and found["lora"].beyond == ""
    assert "known" not in found["backbone"].beyond
    said = summary({"it": list(found.values())})
    assert "tiny, lora + kv: 5 of 8 tokens" in said and "| 2 of 3 |" in said


def test_a_reason_stands_in_the_table(reference: Reference) -> None:
    given: list[Any] = right(reference)
    given[1] = {"reason": "it cannot"}
    given[2] = given[3] = given[4] = None
    found = rows(reference, given)
    assert found["lora"].reason == "it cannot" and "lora + kv" not in found
    assert "| it cannot |" in summary({"it": list(found.values())})


def test_texts_are_compared_token_by_token(shipped: Shipped) -> None:
    asked = Ready(shipped.run, shipped.export, TINY_TEXT).asked()[:1]
    reference = Reference(shipped.export, asked, 8, suppressing=False)
    reference._ends = [1]
    (key,) = reference.ids
    reference.ids[key] = [5, 270, 61, 118, 1, 9]
    text = reference.tokenizer.decode([5, 270, 61, 118])
    (found,) = reference.compare([{"text": text}])
    assert found is not None and (found.equal, found.tokens, found.max_abs) == (4, 4, None)
    (found,) = reference.compare([{"text": text[:-1] + "#"}])
    assert found is not None and found.equal == 3


def test_likelihoods_are_those_of_the_memory(shipped: Shipped) -> None:
    from koffkit import KoffModel

    asked = Ready(shipped.run, shipped.export, TINY_TEXT).asked()[1:3]
    reference = Likelihoods(shipped.export, asked)
    one, other = (reference.exact[str(each)] for each in asked)
    assert one.shape == (len(CONTEXTS), len(CHOICES)) and not torch.equal(one, other)
    model = KoffModel.from_pretrained(shipped.export)
    ids = torch.tensor([model.tokenizer(CONTEXTS[0] + CHOICES[0]).input_ids])
    before = len(model.tokenizer(CONTEXTS[0]).input_ids)
    steps = model.logits(ids, "north")[0, before - 1 : -1].log_softmax(-1)
    by_hand = sum(float(step[index]) for step, index in zip(steps, ids[0, before:], strict=True))
    assert _score(model, asked[1], CONTEXTS[0], CHOICES[0]) == pytest.approx(by_hand, abs=1e-4)
    (found,) = Likelihoods(shipped.export, asked[:1]).compare([{"likelihoods": one.tolist()}])
    assert found is not None and found.equal == found.tokens == len(CONTEXTS) and found.max_abs == 0


def test_an_environment_keeps_to_the_constraints_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(venv, "create", lambda folder, **_: Path(folder).mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append([str(word) for word in command]))
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==9.9\n")
    consumer = SimpleNamespace(PACKAGES=["torch", "other"], UNWANTED=["useless"])
    for _ in range(2):
        environments.environment("it", consumer, constraints, "https://index")
    first, second, third = (words[words.index("--quiet") + 1 :] for words in ran)
    assert first == ["install", "-c", str(constraints), "--index-url", "https://index", "torch"]
    assert second == ["install", "-c", str(constraints), "torch", "other"]
    assert third == ["uninstall", "--yes", "useless"]
    constraints.write_text("torch==9.10\n")
    environments.environment("it", consumer, constraints)
    assert len(ran) == 6
    kept = json.loads((tmp_path / "build/consumers/it/packages.json").read_text())
    assert kept["constraints"] == "torch==9.10\n"

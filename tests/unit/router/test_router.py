from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from koffkit.errors import IntegrityError
from koffkit.router import load_router
from koffkit.router.assess import assess
from koffkit.router.ngrams import TextRouter, features, fit_ngrams

TOPICS = {
    "sea": ["wave", "harbour", "sail", "tide", "anchor", "gull", "salt"],
    "kitchen": ["oven", "flour", "butter", "knife", "simmer", "dough", "salt"],
    "none": ["the", "of", "and", "with", "over", "under", "between"],
}


def documents(seed: int, count: int) -> dict[str, list[str]]:
    rng = random.Random(seed)
    return {
        label: [" ".join(rng.choices(words, k=8)) for _ in range(count)] for label, words in TOPICS.items()
    }


@pytest.fixture(scope="module")
def router() -> TextRouter:
    return fit_ngrams(documents(0, 120), num_buckets=8192, epochs=3, min_confidence=0.0, seed=0)


def test_features_are_the_same_on_every_machine() -> None:
    assert features("Ab", 1000).tolist() == [485, 265, 640, 427, 494, 687, 901]
    assert len(features("", 10)) >= 1 and features("日本語 текст", 50).max() < 50


def test_features_see_case_in_characters_and_words_in_order() -> None:
    def seen(text: str) -> set[int]:
        return set(features(text, 1 << 40).tolist())

    assert seen("Gull") != seen("gull") and seen("Gull") & seen("gull")
    assert seen("salt wave") != seen("wave salt")


def test_unseen_documents_are_routed(router: TextRouter) -> None:
    figures = assess(router, documents(1, 50))
    assert figures["accuracy"] > 0.95 and figures["documents"] == 150
    assert figures["confusion"]["sea"]["sea"] > 45
    assert 0 <= figures["calibration_error"] < 0.2
    assert figures["milliseconds"] > 0


def test_general_text_gets_no_memory(router: TextRouter) -> None:
    assert router.route(["the wave and the tide", "of the and with over"])[1][0] is None
    assert router.route(["harbour sail gull"])[0][0] == "sea"


def test_only_allowed_domains_are_chosen(router: TextRouter) -> None:
    assert router.route(["oven flour butter dough"], allowed=["sea"])[0][0] != "kitchen"
    assert router.route([]) == []


def test_a_doubtful_text_gets_no_memory(router: TextRouter) -> None:
    strict = TextRouter(router.labels, router.weight, router.bias, min_confidence=0.999999)
    assert strict.route(["salt"])[0][0] is None and router.route(["oven dough"])[0][0] == "kitchen"


def test_probabilities_sum_to_one(router: TextRouter) -> None:
    probabilities = router.probabilities(["wave", "", "oven oven oven", "x" * 10_000])
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_training_is_a_function_of_the_seed() -> None:
    one, two, other = (
        fit_ngrams(documents(0, 20), num_buckets=512, epochs=2, min_confidence=0, seed=seed).weight.tobytes()
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_a_router_comes_back_as_written(router: TextRouter, tmp_path: Path) -> None:
    router.save(tmp_path)
    again = TextRouter.load(tmp_path)
    assert again.labels == router.labels and np.array_equal(again.weight, router.weight)
    assert again.describe()["num_buckets"] == 8192


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"koffkit": 9}, "format 9"),
        ({"kind": "oracle"}, "kind 'oracle' is not known here; this koffkit knows encoder, ngrams, probe"),
        ({"labels": ["sea"]}, "do not fit the 1 labels"),
        ({"labels": None}, "cannot be read"),
    ],
)
def test_damage_is_named(router: TextRouter, tmp_path: Path, change: dict, message: str) -> None:
    router.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(IntegrityError, match=message):
        load_router(tmp_path)


def test_truncated_weights_are_named(router: TextRouter, tmp_path: Path) -> None:
    router.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match=r"model\.safetensors: .* truncated or damaged, export again"):
        TextRouter.load(tmp_path)

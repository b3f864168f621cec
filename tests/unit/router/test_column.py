"""A label that a router learns later."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from koffkit.errors import IntegrityError
from koffkit.router.column import Column, extended, fit_column, weights_digest
from koffkit.router.ngrams import TextRouter, features, fit_ngrams

from .test_router import TOPICS, documents

GARDEN = ["spade", "hedge", "seed", "rake", "compost", "salt", "wave"]


def garden(seed: int, count: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(GARDEN, k=8)) for _ in range(count)]


@pytest.fixture(scope="module")
def router() -> TextRouter:
    return fit_ngrams(documents(0, 120), num_buckets=8192, epochs=3, min_confidence=0.0, seed=0)


@pytest.fixture(scope="module")
def column(router: TextRouter) -> Column:
    return fit_column(router, "digest", garden(0), documents(0, 120), epochs=3, seed=0)


def test_the_new_label_is_found_and_the_others_still_are(router: TextRouter, column: Column) -> None:
    grown = extended(router, "garden", column, "digest")
    assert grown.labels == (*TOPICS, "garden")
    assert sum(name == "garden" for name, _ in grown.route(garden(1))) >= 58
    for label, texts in documents(1, 60).items():
        wanted = None if label == "none" else label
        assert sum(name == wanted for name, _ in grown.route(texts)) >= 55, label
    assert not any(name == "garden" for name, _ in router.route(garden(1)))


def test_the_columns_of_the_router_stay(router: TextRouter, column: Column) -> None:
    grown = extended(router, "garden", column, "digest")
    texts = documents(2, 10)["sea"]
    np.testing.assert_array_equal(grown.logits(texts)[:, :3], router.logits(texts))
    buckets = features(texts[0], 8192)
    own = column.weight[buckets].sum() / len(buckets) ** 0.5 + column.bias[0]
    assert column.bias[0] != 0 and grown.logits(texts)[0, 3] == pytest.approx(
        own, abs=1e-2
    )  # the weight is stored in float16
    before, after = router.probabilities(texts), grown.probabilities(texts)
    np.testing.assert_allclose(after[:, :3] / after[:, :3].sum(-1, keepdims=True), before, atol=1e-6)


def test_two_columns_tell_their_own_text_apart(router: TextRouter, column: Column) -> None:
    once = extended(router, "garden", column, "digest")
    attic = [text.replace("e", "a") for text in garden(3)]
    second = fit_column(once, "digest", attic, {**documents(0, 60), "garden": garden(0)}, epochs=3, seed=0)
    twice = extended(once, "attic", second, "digest")
    assert (
        sum(name == "attic" for name, _ in twice.route([text.replace("e", "a") for text in garden(4)])) >= 55
    )
    assert sum(name == "garden" for name, _ in twice.route(garden(5))) >= 55


def test_sources_count_alike_however_long_they_are(router: TextRouter) -> None:
    text = [
        "salt wave oven"
    ]  # as likely the new label's as the other source's, which has twenty times as many
    grown = extended(
        router, "garden", fit_column(router, "d", text * 10, {"one": text * 200}, epochs=30, seed=0), "d"
    )
    assert 0.35 < grown.probabilities(text)[0, -1] < 0.65


@pytest.mark.parametrize(
    ("label", "digest", "buckets"),
    [("sea", "digest", 8192), ("garden", "other", 8192), ("garden", "digest", 512)],
)
def test_a_column_of_another_router_is_left_out(
    router: TextRouter, column: Column, label: str, digest: str, buckets: int
) -> None:
    asked = Column(column.weight[:buckets], column.bias, column.router)
    assert extended(router, label, asked, digest) is router


def test_a_column_comes_back_as_written(router: TextRouter, column: Column, tmp_path: Path) -> None:
    router.save(tmp_path)
    kept = Column(column.weight, column.bias, weights_digest(tmp_path))
    kept.save(tmp_path / "column.safetensors")
    again = Column.load(tmp_path / "column.safetensors")
    assert again.router == kept.router and (tmp_path / "column.safetensors").stat().st_size < 8192 * 2 + 500
    for text in (garden(6), documents(6, 20)["kitchen"]):
        assert extended(router, "g", again, again.router).route(text) == extended(
            router, "g", kept, kept.router
        ).route(text)


def test_damage_is_named(column: Column, router: TextRouter, tmp_path: Path) -> None:
    path = tmp_path / "column.safetensors"
    column.save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        IntegrityError, match=r"column\.safetensors: .* truncated or damaged, copy the bundle"
    ):
        Column.load(path)
    router.save(tmp_path)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: "):
        Column.load(tmp_path / "model.safetensors")

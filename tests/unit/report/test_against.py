from __future__ import annotations

from typing import Any

import pytest

from koffkit.report.against import against, in_words, served


def figures(kl: float | None, perplexity: float | None) -> dict[str, Any]:
    return {"kl": kl, "perplexity": perplexity, "recall": 0.5}


def test_domains_are_counted_and_means_compared() -> None:
    ours = {"de": figures(0.1, 2.0), "fr": figures(0.4, 8.0), "it": figures(0.2, 3.0)}
    theirs = {"de": figures(0.2, 4.0), "fr": figures(0.27, 4.0), "it": figures(0.2, 6.0)}
    found = against(ours, theirs)
    assert found == {
        "domains": 3,
        "kl": {"lower": 1, "worse": True, "difference": pytest.approx(0.01)},
        "perplexity": {"lower": 2, "worse": False, "ratio": pytest.approx(0.5 ** (1 / 3))},
    }
    assert in_words(found) == (
        "lower KL in 1 of 3 domains (mean difference +0.0100), lower perplexity in 2 (mean difference -20.6%)"
    )
    assert against(theirs, ours)["kl"]["worse"] is False


@pytest.mark.parametrize(("our", "their", "worse"), [(None, 0.2, True), (0.2, None, False)])
def test_a_figure_beyond_a_float_is_the_worse_one(
    our: float | None, their: float | None, worse: bool
) -> None:
    found = against({"de": figures(our, our and 2.0)}, {"de": figures(their, their and 2.0)})
    for figure, apart in (("kl", "difference"), ("perplexity", "ratio")):
        assert found[figure] == {"lower": 1 - worse, "worse": worse, apart: None}
    assert "(mean difference unknown)" in in_words(found)


def test_a_figure_that_one_side_lacks_is_not_compared() -> None:
    assert set(against({"de": figures(0.1, 2.0)}, {"de": {"kl": 0.2}})) == {"domains", "kl"}


def test_what_is_served_is_the_matched_memory_if_there_is_one() -> None:
    assert served({"backbone": figures(0.3, 3.0), "matched": figures(0.1, 2.0)}) == figures(0.1, 2.0)
    assert served({"backbone": figures(0.3, 3.0)}) == figures(0.3, 3.0)

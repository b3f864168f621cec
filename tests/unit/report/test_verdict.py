from __future__ import annotations

from typing import Any

import pytest

from koffkit.report.verdict import verdict_of

ROUTER = {"accuracy": 0.9, "documents": 40}
GATES = {"expected_sparsity": 0.121, "target": 0.12}


def domain(
    backbone: float | None, matched: float | None, *wrong: float, tokens: int = 5000
) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "unpruned": {"kl": 0.0},
        "backbone": {"kl": backbone},
        "matched": {"kl": matched},
        "swap": {f"other-{place}": {"kl": kl} for place, kl in enumerate(wrong)},
    }


def results(**changes: Any) -> dict[str, Any]:
    """Two domains that win back 80 % and 50 % of their loss; nothing to be warned of."""
    domains = {"de": domain(0.5, 0.1, 0.6), "fr": domain(0.3, 0.15, 0.4)}
    return {"domains": domains | changes.pop("domains", {}), "router": ROUTER, "gates": GATES} | changes


def only(warnings: Any) -> str:
    (warning,) = warnings
    return str(warning)


def test_what_was_won_is_said_against_bare_and_against_wrong() -> None:
    verdict = verdict_of(results())
    assert verdict.recovered == {"de": pytest.approx(0.8), "fr": pytest.approx(0.5)}
    assert verdict.recovered_mean == pytest.approx(0.6875)  # (.4 - .125) / .4
    assert verdict.lines == [
        (
            "The memories recover 68.8% of the loss: mean KL to the unpruned model 0.4 without memory, 0.125 "
            "with the matched one."
        ),
        "Loss recovered, domain by domain: de 80.0%, fr 50.0%.",
        "With a wrong memory the mean KL is 0.5; the matched one is the best in 2 of 2 domains.",
    ]
    assert verdict.warnings == []
    assert verdict.moved is True


def test_the_loss_of_the_unpruned_model_counts() -> None:
    own = domain(0.5, 0.3, 0.6)
    own["unpruned"] = {"kl": 0.1}
    assert verdict_of({"domains": {"de": own}}).recovered_mean == pytest.approx(0.5)


@pytest.mark.parametrize("matched", [0.3, 0.31, None])
def test_a_memory_that_is_no_better_than_none_is_named(matched: float | None) -> None:
    verdict = verdict_of(results(domains={"fr": domain(0.3, matched, 0.4)}))
    assert verdict.harmed == ["fr"]
    assert verdict.moved is False
    warning = only(verdict.warnings)
    assert "in 1 of 2 domains: fr (KL " in warning
    assert "de (" not in warning


def test_a_loss_beyond_a_float_is_infinite_and_no_share() -> None:
    verdict = verdict_of({"domains": {"de": domain(0.5, None), "fr": domain(None, 0.1)}})
    assert verdict.recovered == {"de": None, "fr": None}
    assert verdict.recovered_mean is None
    assert verdict.harmed == ["de"]
    assert "infinite without memory" in verdict.lines[0]


def test_where_nothing_was_lost_nothing_is_divided_by_it() -> None:
    verdict = verdict_of({"domains": {"de": domain(0.0, 0.0)}})
    assert verdict.recovered == {"de": None}
    assert verdict.harmed == ["de"]


@pytest.mark.parametrize(("tokens", "warned"), [(1999, True), (2000, False)])
def test_tiny_text_is_counted_out_loud(tokens: int, warned: bool) -> None:
    verdict = verdict_of(results(domains={"fr": domain(0.3, 0.15, 0.4, tokens=tokens)}))
    assert ["fr 1,999;" in warning for warning in verdict.warnings] == ([True] if warned else [])


@pytest.mark.parametrize(("accuracy", "warned"), [(0.79, True), (0.8, False)])
def test_a_router_that_errs_often(accuracy: float, warned: bool) -> None:
    verdict = verdict_of(results(router=ROUTER | {"accuracy": accuracy}))
    assert ["right on 79.0% of 40" in warning for warning in verdict.warnings] == ([True] if warned else [])


@pytest.mark.parametrize(
    ("recognised", "mistaken", "warned"), [(0.9, 0.1, False), (0.7, 0.1, True), (0.9, 0.3, True)]
)
def test_a_router_that_errs_about_an_added_memory(recognised: float, mistaken: float, warned: bool) -> None:
    verdict = verdict_of(results(), {"recognised": recognised, "mistaken": mistaken})
    assert [f"{mistaken:.1%} of others" in warning for warning in verdict.warnings] == [True] * warned


@pytest.mark.parametrize(
    ("expected", "warned"), [(0.107, True), (0.133, True), (0.109, False), (0.131, False)]
)
def test_gates_that_missed_their_target(expected: float, warned: bool) -> None:
    verdict = verdict_of(results(gates={"expected_sparsity": expected, "target": 0.12}))
    assert [f"{expected:.1%} of the parameters, not 12.0%" in w for w in verdict.warnings] == [True] * warned


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ({"local_sparsity": 0.10, "expected_sparsity": 0.12}, "10.0% of the gates were expected to be shut"),
        (
            {"local_sparsity": 0.15, "expected_sparsity": 0.18},
            "remove 18.0% of the parameters, the masks remove",
        ),
        ({"local_sparsity": 0.15, "expected_sparsity": 0.12}, None),
    ],
)
def test_gates_with_local_targets(gates: dict[str, float], said: str | None) -> None:
    warnings = verdict_of({"gates": gates | {"local_target": 0.15, "target": 0.12}}).warnings
    assert len(warnings) == (said is not None)
    assert all(str(said) in warning for warning in warnings)


def test_gates_past_their_target_are_not_told_to_go_on() -> None:
    (warning,) = verdict_of({"gates": {"expected_sparsity": 0.3, "target": 0.12}}).warnings
    assert "a lower lr.gates" in warning


def test_gates_without_a_target_miss_none() -> None:
    assert verdict_of({"gates": {"expected_sparsity": 0.1, "target": 0.0}}).warnings == []


def test_little_won_is_not_knowledge_moved() -> None:
    verdict = verdict_of({"domains": {"de": domain(0.454, 0.432, 0.463)}})
    assert verdict.matched_best == 1
    assert verdict.lines[-1].endswith("KL is 0.463; the matched one is better than all.")
    assert verdict.moved is False
    assert "The memory recovers 4.8% of the loss: KL" in verdict.lines[0]


def test_a_wrong_memory_that_is_as_good_is_told() -> None:
    verdict = verdict_of(results(domains={"fr": domain(0.3, 0.15, 0.15)}))
    assert verdict.matched_best == 1
    assert "the best in 1 of 2 domains" in verdict.lines[-1]
    assert verdict.moved is False


def test_without_a_swap_nothing_is_said_of_wrong_memories() -> None:
    verdict = verdict_of({"domains": {"de": domain(0.5, 0.1)}})
    assert verdict.matched_best is None
    assert verdict.moved is True
    assert len(verdict.lines) == 1


def test_pruning_alone_wins_nothing_back() -> None:
    alone = {name: figures for name, figures in domain(0.5, 0.1).items() if name != "matched"}
    verdict = verdict_of({"domains": {"de": alone | {"swap": {}}}})
    assert verdict.lines == [
        "Pruning costs 0.5 nats per token (mean KL to the unpruned model); no memory was scored."
    ]
    assert verdict.warnings == []
    assert verdict.moved is None


@pytest.mark.parametrize(
    "unknown",
    [
        {},
        {"domains": {"de": {"unpruned": {"perplexity": 2.0}, "backbone": {"perplexity": 3.0}, "swap": {}}}},
        {"domains": {"de": {"backbone": {"kl": "0.5"}, "unpruned": {"kl": 0.0}, "tokens": "few"}}},
    ],
)
def test_what_was_not_measured_is_not_spoken_of(unknown: dict[str, Any]) -> None:
    verdict = verdict_of(unknown)
    assert verdict.to_json() == {
        "lines": [],
        "warnings": [],
        "recovered": {},
        "recovered_mean": None,
        "matched_best": None,
        "harmed": [],
    }
    assert verdict.markdown() == ""


def test_a_card_shows_warnings_apart() -> None:
    shown = verdict_of(results(router=ROUTER | {"accuracy": 0.5})).markdown()
    assert shown.startswith("The memories recover")
    assert "\n\n> **Warning:** the router errs often" in shown


def test_what_is_kept_of_general_text_is_said() -> None:
    retention = {
        "backbone": {"kl": 0.2},
        "memories": {"a": {"kl": 0.3}, "b": {"kl": 0.5}},
        "auto": {"kl": 0.25},
    }
    (line,) = verdict_of({"retention": retention}).lines
    assert "KL to the unpruned model is 0.2, with a memory 0.4 in the mean, with the routed one 0.25." in line
    assert verdict_of({"retention": {}}).lines == []


@pytest.mark.parametrize(("kl", "lost"), [(0.2, False), (0.1, True)])
def test_another_run_is_compared_and_a_defeat_is_warned_of(kl: float, lost: bool) -> None:
    given = results(baseline={"name": "other", "parameters": None, "own_parameters": 9})
    domains = {name: figures | {"baseline other": {"kl": kl}} for name, figures in given["domains"].items()}
    verdict = verdict_of(given | {"domains": domains})
    wins, apart = (1, "+0.0250") if lost else (2, "-0.0750")
    wins -= lost  # .1 is no lower than .1
    assert f"Against other: lower KL in {wins} of 2 domains (mean difference {apart})." in verdict.lines
    assert [warning.startswith("this run loses to other: ") for warning in verdict.warnings] == [True] * lost

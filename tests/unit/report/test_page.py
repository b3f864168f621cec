from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest

from koffkit.report.against import baseline_key
from koffkit.report.page.charts import charts, domain_chart
from koffkit.report.page.facts import Completion, PageFacts
from koffkit.report.page.highlights import highlights
from koffkit.report.page.render import inert_json, readable, render, tone
from koffkit.report.page.tables import conditions, domain_columns, domain_rows, swap_rows
from koffkit.report.verdict import verdict_of

from .page_facts import RESULTS, page_facts

LIBRARY = "window.vegaEmbed = null;"


class Seen(HTMLParser):
    """The ids, texts and loading attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._in: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self._in.append(tag)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        loading = ("src", "srcset", "data", "action", "poster") + (() if tag == "a" else ("href",))
        self.loads += [str(found[name]) for name in loading if name in found]

    def handle_endtag(self, tag: str) -> None:
        if tag in self._in:
            del self._in[len(self._in) - 1 - self._in[::-1].index(tag) :]

    def handle_data(self, text: str) -> None:
        if "script" in self._in:
            self.scripts.append(text)
        elif "style" not in self._in:
            self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def seen(facts: PageFacts) -> Seen:
    return Seen(render(facts, LIBRARY))


def test_the_page_tells_what_the_run_holds() -> None:
    text = seen(page_facts()).text
    for line in verdict_of(RESULTS).lines:
        assert line in text
    for part in (
        "12.5% of the base is gone",
        "prune less",
        "pruned only",
        "from step 6 on",
        "about 3 s 4 s",
        "1.20 1.34",
        "0.20 0.09",
        "scores with that entropy: 0.37;",
        "linear CKA 0.980",
        "Der Fluss",
        "156.0 kB",
        "2 memories of this size fit",
        "from koffkit import KoffModel",
    ):
        assert part in text, part


def test_nothing_is_loaded_from_anywhere() -> None:
    page = render(page_facts(), LIBRARY)
    assert Seen(page).loads == []
    assert "default-src 'none'" in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)


def test_every_chart_has_a_place() -> None:
    page = seen(page_facts())
    specs = json.loads(page.scripts[0])
    assert len(specs) == 7
    assert set(specs) <= page.ids


def test_a_chart_without_figures_has_no_place() -> None:
    """Masks of a selector are not learned: there are no gates to watch."""
    steps = [{"step": step, "stage": "recover", "kl": 1 / step} for step in range(1, 5)]
    page = seen(page_facts(steps=steps, steps_to_target=None))
    assert "chart-loss" in page.ids and "chart-sparsity" not in page.ids
    assert "What the gates are expected to remove" not in page.text


def test_text_of_a_run_stays_text() -> None:
    evil = "</script><script>alert(1)</script>"
    sample = Completion(domain=evil, prompt=evil, continued={"unpruned": evil})
    results = {**RESULTS, "domains": {evil: RESULTS["domains"]["de"] | {"swap": {}}}}
    page = render(page_facts(title=evil, completions=[sample], results=results), LIBRARY)
    assert "<script>alert" not in page
    assert len(Seen(page).scripts) == 3


def test_what_is_not_there_is_left_out() -> None:
    bare = page_facts(
        results={}, projections=[], steps=[], steps_to_target=None, plan=[], sizes=None, analyses={},
        completions=[], notes=["It is not finished."],
    )  # fmt: skip
    page = seen(bare)
    assert not {"domains", "swap", "training", "analyses", "completions", "sizes"} & page.ids
    assert "Nothing was evaluated" in page.text
    assert "It is not finished." in page.text
    assert json.loads(page.scripts[0]) == {}


def test_conditions_hold_every_baseline_and_the_mean_of_wrong_memories() -> None:
    found = conditions(
        RESULTS["domains"]["de"]
        | {"swap": {"fr": {"kl": 0.4, "perplexity": 2.8}, "it": {"kl": 0.6, "perplexity": 3.0}}}
    )
    assert list(found) == ["unpruned", "backbone", "wrong", "matched", "prune_less"]
    assert found["wrong"]["kl"] == pytest.approx(0.5)
    assert domain_columns(RESULTS)[1] == ["kl", "perplexity"]


def test_the_best_pruned_figure_is_bold() -> None:
    rows = dict(domain_rows(RESULTS, "kl"))
    names, _ = domain_columns(RESULTS)
    bold = {
        domain: [names[i] for i, cell in enumerate(cells) if cell.strong] for domain, cells in rows.items()
    }
    assert bold == {"de": ["matched"], "fr": ["prune_less"]}


def test_the_swap_matrix_ends_with_the_bare_backbone() -> None:
    rows = dict(swap_rows(RESULTS, "perplexity"))
    assert [cell.text for cell in rows["fr"]] == ["3.70", "2.20", "3.50"]
    assert [cell.shade for cell in rows["de"]] == pytest.approx([1.0, 0.2 / 0.9, 0.0])
    assert [cell.strong for cell in rows["de"]] == [True, False, False]


def test_the_page_has_a_swap_matrix_of_every_figure() -> None:
    page = render(page_facts(), LIBRARY)
    swap = page[page.index('<section id="swap">') : page.index('<section id="removed">')]
    assert re.findall(r"<caption>(.*)</caption>", swap) == ["KL, nats per token", "perplexity"]
    cells = re.findall(r'title="text of fr, memory de">([^<]*)<', swap)
    assert cells == ["0.7000", "3.70"]


def test_a_baseline_has_its_column_and_its_line() -> None:
    key = baseline_key("less-0")
    domains = {name: figures | {key: figures["prune_less"]} for name, figures in RESULTS["domains"].items()}
    mean = RESULTS["mean"] | {key: {"kl": 0.1499, "perplexity": 2.35}}
    beside = {"name": "less-0", "parameters": 70123, "own_parameters": 70456}
    results = {**RESULTS, "domains": domains, "mean": mean, "baseline": beside}
    text = seen(page_facts(results=results)).text
    assert (
        "Against less-0 (70,123 parameters loaded, here 70,456): lower KL in 1 of 2 domains (mean "
        "difference +0.0000), lower perplexity in 2" in text
    )
    assert "matched memory prune less baseline less-0" in text
    assert "0.1500 - 0.1499" in text


def test_an_infinite_figure_is_the_worst_of_its_row() -> None:
    domains = {**RESULTS["domains"]}
    domains["de"] = domains["de"] | {"backbone": {"kl": None, "perplexity": None}}
    cells = dict(swap_rows({"domains": domains}, "perplexity"))["de"]
    assert (cells[-1].text, cells[-1].shade) == ("inf", 0.0)
    assert domain_chart({"domains": domains}) is not None


def test_a_row_that_is_infinite_throughout_is_shown() -> None:
    lost = {"kl": None, "perplexity": None}
    domains = {
        "de": {"backbone": lost, "matched": lost, "swap": {"fr": lost}},
        "fr": RESULTS["domains"]["fr"],
    }
    cells = dict(swap_rows({"domains": domains}, "kl"))["de"]
    assert [(cell.text, cell.shade) for cell in cells] == [("inf", 0.0)] * 3


def test_long_curves_are_thinned_within_their_stage() -> None:
    steps = [{"step": n, "stage": "a" if n <= 1000 else "b", "kl": 1.0} for n in range(1, 2001)]
    layers = charts(page_facts(steps=steps))["chart-loss"]["layer"]
    points = layers[1]["data"]["values"]
    assert 200 < len(points) <= 322
    assert math.isclose(points[-1]["step"], 2000)


def test_highlights_are_left_out_without_figures() -> None:
    assert len(highlights(page_facts())) == 5
    assert [one.value for one in highlights(page_facts(results={}, sizes=None))] == ["12.5%"]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (RESULTS, "good"),
        ({}, "none"),
        ({"domains": {"de": RESULTS["domains"]["de"] | {"matched": {"kl": 0.9, "perplexity": 4.0}}}}, "bad"),
        ({"domains": {"de": RESULTS["domains"]["de"] | {"tokens": 3}}}, "mixed"),
    ],
)
def test_the_verdict_has_a_colour(results: dict[str, object], expected: str) -> None:
    assert tone(verdict_of(results)) == expected


def test_json_in_a_script_closes_nothing() -> None:
    text = inert_json({"a": "</script>&"})
    assert "<" not in text
    assert json.loads(text) == {"a": "</script>&"}


def test_bytes_are_readable() -> None:
    assert [readable(size) for size in (3, 1500, 2_000_000, 7 * 10**12)] == [
        "3 bytes",
        "1.5 kB",
        "2.0 MB",
        "7.0 TB",
    ]

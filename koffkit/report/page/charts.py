"""Charts of the page, as specifications of Vega-Lite.

Colours are names of the page's own: the script of the page replaces `@name` by the colour of its style sheet,
which differs between light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .curves import Spec, framed, loss_chart, sparsity_chart
from .facts import Cut, PageFacts
from .tables import condition_name, conditions

COLOURS = {"unpruned": "@grey", "backbone": "@orange", "wrong": "@rose", "matched": "@blue"}
OTHERS = ("@green", "@violet", "@gold", "@teal")
"""Colours of baselines, in their order."""


def charts(facts: PageFacts) -> dict[str, Spec]:
    """Every chart that the facts have data for, by the id of its place on the page."""
    drawn = {
        "chart-domains": domain_chart(facts.results),
        "chart-loss": loss_chart(facts.steps),
        "chart-sparsity": sparsity_chart(facts.steps),
        "chart-removed": removed_chart(facts.projections or facts.structures),
        "chart-sizes": None if facts.sizes is None else sizes_chart(facts),
        "chart-similarity": similarity_chart(facts.analyses.get("representation", {})),
        "chart-lape": lape_chart(facts.analyses.get("lape", {})),
    }
    return {place: spec for place, spec in drawn.items() if spec is not None}


def domain_chart(results: Mapping[str, Any]) -> Spec | None:
    """KL to the unpruned model of every domain and condition: a row of dots for each domain."""
    rows = [
        {"domain": domain, "condition": condition_name(name), "kl": figures["kl"]}
        for domain, of_domain in results.get("domains", {}).items()
        for name, figures in conditions(of_domain).items()
        if name != "unpruned" and isinstance(figures.get("kl"), int | float)
    ]
    if not rows:
        return None
    names = list(dict.fromkeys(row["condition"] for row in rows))
    y = {"field": "domain", "type": "nominal", "title": None, "sort": list(results["domains"])}
    x = {"field": "kl", "type": "quantitative", "title": "KL to the unpruned model, nats per token"}
    span = {
        "x": {"aggregate": "min", "field": "kl", "title": x["title"]},
        "x2": {"aggregate": "max", "field": "kl"},
    }
    return framed(
        {
            "height": 34 * len(results["domains"]),
            "layer": [
                {"mark": {"type": "rule", "color": "@line", "strokeWidth": 2}, "encoding": span},
                {
                    "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
                    "encoding": {
                        "x": x,
                        "color": _coloured("condition", names),
                        "shape": _legend_above("condition", names),
                        "tooltip": [
                            {"field": "domain"},
                            {"field": "condition"},
                            {"field": "kl", "format": ".4f", "title": "KL"},
                        ],
                    },
                },
            ],
            "encoding": {"y": y},
        },
        rows,
    )


def _coloured(field: str, names: Sequence[str]) -> Spec:
    """Each condition in its colour, with a legend above the chart."""
    known = {condition_name(name): colour for name, colour in COLOURS.items()}
    others = iter(OTHERS * len(names))
    shaped = _legend_above(field, names)
    shaped["scale"]["range"] = [known.get(name) or next(others) for name in names]
    return shaped


def _legend_above(field: str, names: Sequence[str]) -> Spec:
    """What colour and shape must have in common for Vega-Lite to merge their legends."""
    return {
        "field": field,
        "type": "nominal",
        "title": None,
        "sort": list(names),
        "scale": {"domain": list(names)},
        "legend": {"orient": "top"},
    }


def removed_chart(cuts: Sequence[Cut]) -> Spec | None:
    """A cell for each layer and place, the fuller the more is gone."""
    if not cuts:
        return None
    rows = [{**asdict(cut), "place": cut.place.rpartition(".")[2], "removed": cut.removed} for cut in cuts]
    places = list(dict.fromkeys(row["place"] for row in rows))
    axis = {"labelAngle": 0, "labelOverlap": True}
    mark = {"type": "rect", "color": "@blue", "cornerRadius": 2, "stroke": "@panel", "strokeWidth": 2}
    forms = {"layer": "d", "place": "", "removed": ".1%", "kept": ",", "total": ","}
    return framed(
        {
            "height": 26 * len(places),
            "mark": mark,
            "encoding": {
                "x": {"field": "layer", "type": "ordinal", "title": "layer", "axis": axis},
                "y": {"field": "place", "type": "nominal", "title": None, "sort": places},
                "opacity": {
                    "field": "removed",
                    "type": "quantitative",
                    "scale": {"domain": [0, max(0.1, *(cut.removed for cut in cuts))], "range": [0.07, 1]},
                    "legend": {"title": "removed", "format": ".0%", "orient": "top", "symbolType": "square"},
                },
                "tooltip": [
                    {"field": key, **({"format": form} if form else {})} for key, form in forms.items()
                ],
            },
        },
        rows,
    )


def sizes_chart(facts: PageFacts) -> Spec:
    """The base's bytes beside those of the backbone with one memory after the other."""
    assert facts.sizes is not None
    sizes = facts.sizes
    parts = [("base", "base", sizes.base), ("backbone + memories", "backbone", sizes.backbone)]
    parts += [("backbone + memories", f"memory {name}", size) for name, size in sizes.memories.items()]
    rows = [
        {"whole": whole, "part": part, "MB": size / 1e6, "kind": part.partition(" ")[0], "order": place}
        for place, (whole, part, size) in enumerate(parts)
    ]
    return framed(
        {
            "height": 92,
            "mark": {"type": "bar", "stroke": "@panel", "strokeWidth": 2, "cornerRadius": 3},
            "encoding": {
                "x": {"field": "MB", "type": "quantitative", "title": "MB of weights"},
                "y": {
                    "field": "whole",
                    "type": "nominal",
                    "title": None,
                    "sort": ["base", "backbone + memories"],
                    "axis": {"labelLimit": 140},
                },
                "order": {"field": "order"},
                "color": {
                    "field": "kind",
                    "type": "nominal",
                    "title": None,
                    "scale": {
                        "domain": ["base", "backbone", "memory"],
                        "range": ["@grey", "@orange", "@blue"],
                    },
                    "legend": {"orient": "top"},
                },
                "tooltip": [{"field": "part"}, {"field": "MB", "format": ",.2f"}],
            },
        },
        rows,
    )


def similarity_chart(found: Mapping[str, Any]) -> Spec | None:
    """How like the unpruned model's the bare backbone's hidden states are, layer by layer."""
    names = {"cka": "linear CKA", "knn_overlap": "kNN overlap", "centroid_cosine": "centroid cosine"}
    rows = [
        {"layer": layer, "measure": title, "value": value}
        for key, title in names.items()
        for layer, value in enumerate(found.get(key, []))
    ]
    if not rows:
        return None
    titles = list(names.values())
    scale = {"domain": titles, "range": ["@blue", "@orange", "@green"]}
    return framed(
        {
            "height": 240,
            "mark": {"type": "line", "point": {"size": 40}, "strokeWidth": 2.5},
            "encoding": {
                "x": {
                    "field": "layer",
                    "type": "quantitative",
                    "title": "after layer",
                    "axis": {"tickMinStep": 1, "format": "d"},
                },
                "y": {
                    "field": "value",
                    "type": "quantitative",
                    "title": "1 = the same",
                    "scale": {"zero": False},
                },
                "color": {
                    "field": "measure",
                    "type": "nominal",
                    "title": None,
                    "sort": titles,
                    "scale": scale,
                    "legend": {"orient": "top"},
                },
                "tooltip": [{"field": "measure"}, {"field": "layer"}, {"field": "value", "format": ".4f"}],
            },
        },
        rows,
    )


def lape_chart(found: Mapping[str, Any]) -> Spec | None:
    """The share of neurons that is gone, from the most domain-specific to the most general ones."""
    rows = [
        {"rank": (place + 0.5) / len(found["pruned_by_rank"]), "pruned": value}
        for place, value in enumerate(found.get("pruned_by_rank", []))
    ]
    if not rows:
        return None
    return framed(
        {
            "height": 240,
            "layer": [
                {
                    "mark": {"type": "bar", "color": "@blue", "opacity": 0.85, "cornerRadiusEnd": 2},
                    "encoding": {
                        "x": {
                            "field": "rank",
                            "type": "ordinal",
                            "title": "neurons, from specific to general",
                            "axis": {"format": ".0%", "labelAngle": 0, "labelOverlap": True},
                        },
                        "y": {
                            "field": "pruned",
                            "type": "quantitative",
                            "title": "share pruned",
                            "axis": {"format": ".0%"},
                        },
                        "tooltip": [{"field": "rank", "format": ".0%"}, {"field": "pruned", "format": ".1%"}],
                    },
                },
                {
                    "data": {"values": [{"mean": found["pruned"]}]},
                    "mark": {"type": "rule", "color": "@orange", "strokeDash": [6, 4], "strokeWidth": 2},
                    "encoding": {
                        "y": {"field": "mean", "type": "quantitative"},
                        "tooltip": [{"field": "mean", "format": ".1%", "title": "of all neurons"}],
                    },
                },
            ],
        },
        rows,
    )

"""Curves over training steps, as specifications of Vega-Lite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

Spec = dict[str, Any]
POINTS = 320
"""Points of a curve; of longer runs neighbours are averaged."""
SMOOTH = 12
"""Points of the curve that the smooth line averages."""


def framed(spec: Spec, rows: Sequence[Mapping[str, Any]] | None = None) -> Spec:
    """A chart as wide as its place."""
    data = {} if rows is None else {"data": {"values": list(rows)}}
    return {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}, **data, **spec}


def _thinned(rows: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """Means of neighbours within a stage, so few that a browser draws them at once."""
    having = [row for row in rows if isinstance(row.get(key), int | float)]
    width = max(1, -(-len(having) // POINTS))
    points = []
    for stage in dict.fromkeys(row["stage"] for row in having):
        part = [row for row in having if row["stage"] == stage]
        for first in range(0, len(part), width):
            group = part[first : first + width]
            value = fmean(float(row[key]) for row in group)
            points.append({"step": group[-1]["step"], "stage": stage, "value": value})
    return points


def _smoothed(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A running mean that does not cross from one stage into the next."""
    smooth = []
    for place, point in enumerate(points):
        window = [
            other["value"]
            for other in points[max(0, place - SMOOTH + 1) : place + 1]
            if other["stage"] == point["stage"]
        ]
        smooth.append({**point, "value": fmean(window)})
    return smooth


def _borders(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """A dashed line where each later stage begins, with its name."""
    begins: dict[str, int] = {}
    for row in rows:
        begins.setdefault(row["stage"], row["step"])
    values = [{"step": step, "stage": stage} for stage, step in begins.items()]
    x = {"field": "step", "type": "quantitative"}
    return {
        "data": {"values": values},
        "layer": [
            {"mark": {"type": "rule", "color": "@line", "strokeDash": [4, 4]}, "encoding": {"x": x}},
            {
                "mark": {"type": "text", "align": "left", "dx": 5, "y": 8, "fontSize": 11, "color": "@soft"},
                "encoding": {"x": x, "text": {"field": "stage"}},
            },
        ],
    }


def _curve(points: Sequence[Mapping[str, Any]], mark: Spec, title: str, y: Spec, form: str) -> Spec:
    """One curve; `title` is its name in the tooltip, and `form` how its value is written there."""
    return {
        "data": {"values": list(points)},
        "mark": {"type": "line", "clip": True, **mark},
        "encoding": {
            "x": {"field": "step", "type": "quantitative", "title": "step"},
            "y": {"field": "value", "type": "quantitative", **y},
            "detail": {"field": "stage"},
            "tooltip": [
                {"field": "stage"},
                {"field": "step"},
                {"field": "value", "title": title, "format": form},
            ],
        },
    }


def loss_chart(steps: Sequence[Mapping[str, Any]]) -> Spec | None:
    """The distillation loss of every step, its running mean, and the KL on held-out text."""
    key = "kl" if any(isinstance(row.get("kl"), int | float) for row in steps) else "loss"
    raw, heldout = _thinned(steps, key), _thinned(steps, "heldout_kl")
    if len(raw) < 2:
        return None
    title = "KL, nats per token" if key == "kl" else "loss"
    y = {"title": title}
    layers = [
        _borders(steps),
        _curve(raw, {"color": "@blue", "opacity": 0.28, "strokeWidth": 1}, "training", y, ".4f"),
        _curve(_smoothed(raw), {"color": "@blue", "strokeWidth": 2.5}, "training, running mean", y, ".4f"),
    ]
    if heldout:
        point = {"color": "@orange", "strokeWidth": 2, "point": {"color": "@orange", "size": 36}}
        layers.append(_curve(heldout, point, "held-out", y, ".4f"))
    return framed({"height": 240, "layer": layers})


def sparsity_chart(steps: Sequence[Mapping[str, Any]]) -> Spec | None:
    """What the gates are expected to remove, against the target."""
    points = _thinned(steps, "expected_sparsity")
    if len(points) < 2:
        return None
    target = next(row["sparsity"] for row in steps if "expected_sparsity" in row and "sparsity" in row)
    y = {"title": "share of all parameters", "axis": {"format": ".0%"}}
    rule = {
        "data": {"values": [{"target": target}]},
        "layer": [
            {
                "mark": {"type": "rule", "color": "@orange", "strokeDash": [6, 4], "strokeWidth": 2},
                "encoding": {
                    "y": {"field": "target", "type": "quantitative"},
                    "tooltip": [{"field": "target", "format": ".2%"}],
                },
            },
            {
                "mark": {
                    "type": "text",
                    "align": "right",
                    "x": "width",
                    "dy": -8,
                    "fontSize": 11,
                    "color": "@orange",
                },
                "encoding": {
                    "y": {"field": "target", "type": "quantitative"},
                    "text": {"value": f"target {target:.1%}"},
                },
            },
        ],
    }
    curve = _curve(points, {"color": "@blue", "strokeWidth": 2.5}, "expected", y, ".2%")
    return framed({"height": 240, "layer": [curve, rule]})

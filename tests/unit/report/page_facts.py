"""Facts of a small run that was never carried out."""

from __future__ import annotations

from typing import Any

from koffkit.report.page.facts import Completion, Cut, PageFacts, Planned, Sizes


def figures(kl: float, perplexity: float) -> dict[str, float]:
    return {"kl": kl, "perplexity": perplexity}


RESULTS: dict[str, Any] = {
    "domains": {
        "de": {
            "tokens": 5000,
            "unpruned": figures(0.0, 2.0),
            "backbone": figures(0.5, 3.0),
            "prune_less": figures(0.2, 2.4),
            "matched": figures(0.1, 2.1),
            "swap": {"fr": figures(0.4, 2.8)},
        },
        "fr": {
            "tokens": 5000,
            "unpruned": figures(0.0, 2.0),
            "backbone": figures(0.6, 3.5),
            "prune_less": figures(0.1, 2.3),
            "matched": figures(0.2, 2.2),
            "swap": {"de": figures(0.7, 3.7)},
        },
    },
    "mean": {
        "unpruned": figures(0.0, 2.0),
        "backbone": figures(0.55, 3.2),
        "matched": figures(0.15, 2.15),
        "swap": figures(0.55, 3.2),
    },
}
STEPS = [
    {"step": step, "stage": "learn_masks" if step <= 6 else "recover", "kl": 1 / step}
    | ({"expected_sparsity": 0.02 * step, "sparsity": 0.12} if step <= 6 else {})
    for step in range(1, 11)
]
LAPE = {
    "share": 0.15,
    "pruned": 0.5,
    "pruned_specific": 0.6,
    "pruned_general": 0.1,
    "lift": 1.2,
    "protection": 0.2,
    "paper": {"lift": 1.34, "protection": 0.09},
    "pruned_by_rank": [0.6, 0.5, 0.1],
    "score_correlation": 0.37,
}
REPRESENTATION = {
    "texts": 40,
    "neighbours": 10,
    "cka": [1.0, 0.98],
    "knn_overlap": [1.0, 0.8],
    "centroid_cosine": [1.0, 0.99],
}


def page_facts(**changes: Any) -> PageFacts:
    """A run with something for every part of the page."""
    given: dict[str, Any] = {
        "kind": "run",
        "title": "tiny",
        "about": {"base": "./base"},
        "results": RESULTS,
        "sparsity": 0.125,
        "target": 0.12,
        "base_parameters": 80000,
        "removed_parameters": 10000,
        "projections": [Cut(place="mlp.up_proj", layer=layer, kept=75, total=100) for layer in range(3)],
        "steps": STEPS,
        "steps_to_target": 6,
        "plan": [Planned(what="recover: time", planned="about 3 s", actual="4 s")],
        "sizes": Sizes(
            base=160000, backbone=140000, memories={"de": 8000, "fr": 8000}, break_even=2, estimated=True
        ),
        "analyses": {"lape": LAPE, "representation": REPRESENTATION},
        "completions": [
            Completion(
                domain="de", prompt="Der Fluss", continued={"unpruned": "ist tief.", "matched": "ist."}
            )
        ],
        "loading": [("In Python", "from koffkit import KoffModel")],
    }
    return PageFacts(**(given | changes))

"""States of runs that were never carried out."""

from __future__ import annotations

from typing import Any

from koffkit.run.state import RunState

DIGEST = "0" * 64


def run_tree(**changes: Any) -> dict[str, Any]:
    """The object in `run.json` as the first koffkit with a run folder wrote it."""
    recipe = {"koffkit": 1, "name": "tiny", "domains": {"north": {"text": "a.txt"}}}
    budget = {
        "layout": "uniform",
        "keep": {"mlp_neuron": 24},
        "total_units": {"mlp_neuron": 48},
        "step_units": {"mlp_neuron": 8},
        "params_per_unit": {"mlp_neuron": 96},
        "base_params": 50000,
        "target_params": 6000,
        "removed_params": 6912,
        "step_params": 2304,
        "global_sparsity": 0.13824,
    }
    tree: dict[str, Any] = {
        "koffkit": 1,
        "asked": recipe,
        "recipe": recipe,
        "recipe_path": "/somewhere/recipe.yaml",
        "recipe_root": "/somewhere",
        "versions": {"koffkit": "0.1.0", "python": "3.11.7"},
        "seed": 0,
        "base": {
            "model": "./base",
            "path": "/somewhere/base",
            "digest": DIGEST,
            "config": {"hidden_size": 32},
        },
        "budget": budget,
        "backbone": None,
        "memory_layers": [0, 1, 2],
        "stages": [{"name": "learn_masks", "state": "done"}, {"name": "recover", "state": "pending"}],
        "state": "running",
        "started": "2026-11-26T21:10:59Z",
        "results": {},
    }
    return tree | changes


def run_state(**changes: Any) -> RunState:
    """The same, read."""
    return RunState.model_validate(run_tree(**changes))

"""The runs that consumers are asked about, each with its export of format `hf`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from koffkit.exporters import export

from koffkit.artefact.export import open_export
from koffkit.checkpoint.files import load_tokenizer
from koffkit.recipe.load import load_recipe
from koffkit.run.folder import RunFolder
from koffkit.stages.engine import run_recipe

from ..common import make_checkpoint, recipe_dict, write_recipe
from ..parity import conformance
from ..parity.conformance import Case

TINY_TEXT = "quiet river over the green stone, seven lamps"
TEXT = "The most important thing about the history of the region is"


@dataclass(frozen=True)
class Ready:
    """A run with its export.

    Attributes:
        run: its folder.
        export: of format `hf`.
        text: the prompt.
    """

    run: Path
    export: Path
    text: str

    def asked(self) -> list[dict[str, Any]]:
        """The bare backbone, the LoRA half of the first memory, every memory in turn, and the bare backbone
        again: what one leaves behind must not reach the next."""
        bundles = [bundle.info for bundle in open_export(self.export).bundles()[:2]]
        none = {"memory": None, "lora": False, "kv": False, "neurons": False, "whole": True}
        whole = [
            {"memory": info.domain, "whole": True}
            | {half: getattr(info, half) is not None for half in ("lora", "kv", "neurons")}
            for info in bundles
        ]
        order = [none]
        order += [
            one | {"kv": False, "whole": False} for one in whole[:1] if one["kv"] and not one["neurons"]
        ]
        order += [*whole, whole[0], none] if whole else []
        prompt = load_tokenizer(self.export / "backbone")(self.text).input_ids
        return [one | {"prompt": prompt, "text": self.text} for one in order]


def tiny(**case: Any) -> Callable[[Path], Ready]:
    """A random model of a family, with random gates and memories."""

    def make(root: Path) -> Ready:
        made = Case(
            **{"structure": "mlp_neuron", "layout": "uniform", "tied": False, "plain": True, "wide": True}
            | case
        )
        conformance.build(made, root)
        return Ready(root / "run", root / "out", TINY_TEXT)

    return make


def quickstart(root: Path) -> Ready:
    """The quickstart's base and text, with a few steps of learning."""
    rates = {"lora": 8e-3, "kv": 1.6e-2, "gates": 0.3}
    stages = [
        {"learn_masks": {"max_steps": 12, "batch_size": 4, "lr": rates, "decay": "constant"}},
        {"recover": {"max_steps": 30, "batch_size": 4, "lr": rates}},
    ]
    return _compressed(root, {"extends": "quickstart", "name": "quick", "stages": stages, "retention": None})


def lora_alone(root: Path) -> Ready:
    """A tiny model whose memories have no KV half."""
    lora = {"rank": 4, "alpha": 8, "targets": ["k_proj", "v_proj", "up_proj", "down_proj"]}
    stages = [
        {"select_masks": {"selector": "magnitude"}},
        {"recover": {"max_steps": 8, "batch_size": 2, "lr": {"lora": 5e-2}}},
    ]
    memory = {"layers": "all", "lora": lora, "kv": None}
    base = make_checkpoint(root / "base", **conformance.WIDE)
    tree = recipe_dict(base, root / "data", memory=memory, stages=stages, retention=None)
    return _compressed(root, tree, TINY_TEXT)


def real(base: Path) -> Callable[[Path], Ready]:
    """A real model: neurons chosen without training, two memories with a handful of steps.

    Args:
        base: its folder, or a finished run, which is taken as it is.
    """

    def make(root: Path) -> Ready:
        if RunFolder(base).run_file.is_file():
            export(base, root / "out")
            return Ready(base, root / "out", TEXT)
        domains = {name: {"text": str(root / f"{name}.txt")} for name in ("history", "science")}
        for name in domains:
            words = f"Some words about {name}, which the memory of {name} is to remember. "
            (root / f"{name}.txt").write_text("\n\n".join(f"{number}. {words * 8}" for number in range(80)))
        rates = {"lora": 1e-3, "kv": 1e-3}
        tree = {
            "koffkit": 1,
            "name": "real",
            "base": {"model": str(base), "dtype": "float32"},
            "domains": domains,
            "sequence_length": 64,
            "mask": {"structures": ["mlp_neuron"], "global_sparsity": 0.12, "multiple_of": 64},
            "memory": {
                "layers": "all",
                "lora": {"rank": 8, "alpha": 16, "targets": ["k_proj", "v_proj", "gate_proj", "down_proj"]},
                "kv": {"tokens": 16},
            },
            "stages": [
                {"select_masks": {"selector": "activation", "batches": 2, "batch_size": 1}},
                {"recover": {"max_steps": 8, "batch_size": 1, "lr": rates}},
            ],
        }
        return _compressed(root, tree)

    return make


def _compressed(root: Path, tree: Mapping[str, Any], text: str = TEXT) -> Ready:
    run_recipe(load_recipe(write_recipe(root / "recipe.yaml", dict(tree))), root / "run")
    export(root / "run", root / "out")
    return Ready(root / "run", root / "out", text)


CASES: dict[str, Callable[[Path], Ready]] = {
    "quickstart": quickstart,
    "qwen2": tiny(family="qwen2"),
    "mistral, tied": tiny(family="mistral", tied=True),
    "qwen3, heads too": tiny(family="qwen3", structure="neurons+groups"),
    "llama, ragged neurons": tiny(family="llama", layout="ragged"),
    "qwen2, heads too": tiny(family="qwen2", structure="neurons+groups"),
    "llama, heads too, biases": tiny(family="llama", structure="neurons+groups", plain=False),
    "llama, LoRA alone": lora_alone,
    "llama, neurons given back": tiny(family="llama", neurons=True),
    "granite": tiny(family="granite", plain=False),
    "qwen2, ragged neurons": tiny(family="qwen2", layout="ragged"),
    "qwen3, ragged neurons": tiny(family="qwen3", layout="ragged"),
    "llama, ragged neurons, heads too": tiny(family="llama", structure="neurons+groups", layout="ragged"),
    "llama, ragged neurons and heads": tiny(
        family="llama", structure="neurons+groups", layout="ragged", sparsity=0.2
    ),
    "llama, value channels": tiny(family="llama", structure="v_channel", layout="ragged"),
}
"""By family and what is pruned. The first ones tell most: an interrupted command has them."""

"""Model cards: a description, figures, and how to load the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...artefact.card import front_matter, license_sentence
from ...artefact.manifest import Manifest, Merged
from ...artefact.names import BACKBONE, CARD
from ...artefact.public import public_recipe
from ...report.verdict import Verdict, verdict_of
from ...storage.files import write_atomically

OWN_CLASS = """The layers of this backbone differ in width, or parts of its attention heads are gone, which
no stock class holds. `import koffkit.sliced` first, or, without koffkit, pass `trust_remote_code=True`: the
code lies beside the weights (`modeling_koffkit.py`, torch and transformers only).

"""
WITH_MEMORIES = """With its memories: `koffkit.KoffModel.from_pretrained("..")`, or for the LoRA half
`peft.PeftModel.from_pretrained(model, "memories/<domain>")`.
"""
FIGURES = ("perplexity", "kl", "recall")


def write_card(output: Path, manifest: Manifest) -> None:
    """A README for the backbone; bundles have their own, see `koffkit.memories.bundle`, and so has the
    export as a whole, see `root_card`."""
    write_atomically(output / BACKBONE / CARD, _backbone_card(manifest))


def _backbone_card(manifest: Manifest) -> str:
    backbone, removed, base, parity = manifest.backbone, manifest.removed, manifest.base, manifest.parity
    noise = parity.noise_floor
    assert noise is not None
    kept = ", ".join(
        f"{_range(counts)} {name} a layer"
        for name, counts in manifest.kept.items()
        if name not in manifest.masked
    )
    masked = "".join(
        f" {count:,} units of {name} are masked: zero, but still there."
        for name, count in manifest.masked.items()
    )
    masked += f" {removed.added:,} parameters are biases that its repair added." if removed.added else ""
    verdict = verdict_of(manifest.results)
    how = "" if backbone.model_class.startswith("Koff") else ", no koffkit, no remote code"
    header = front_matter(base, "transformers", ["koffkit", "pruned"], derived=True)
    recipe = yaml.safe_dump(
        public_recipe(manifest.recipe, base.is_on_hub), sort_keys=False, allow_unicode=True
    )
    return f"""{header}# {manifest.name}: backbone

{base.public_name} with {removed.parameters:,} of {base.parameters:,} parameters
({removed.global_sparsity:.1%}) physically removed by
knowledge offloading (arXiv 2605.29075): {backbone.parameters:,} stay, {kept}.{masked}
{_claim(manifest, verdict)}
{"" if manifest.merged else "The backbone alone is expected to be weaker than the base."}

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("backbone")   # {backbone.model_class}{how}
```
{"" if how else OWN_CLASS}{"" if manifest.merged else WITH_MEMORIES}{license_sentence(base)}

## Figures
{_results_table(manifest.results)}
{verdict.markdown()}Largest logit difference to the masked model in float64:
{max(parity.max_abs.values()):.1e}, where the largest logit is {max(parity.max_logit.values()):.1f}.
Computing the same backbone in float32 instead moves its logits by
{max(noise.max_abs.values()):.1e} (KL {max(noise.kl.values()):.1e}).
Backbone digest: `{backbone.digest}`.

## Recipe
```yaml
{recipe}```
"""


def _claim(manifest: Manifest, verdict: Verdict) -> str:
    """What the figures allow to be said about the memories beside the backbone."""
    if manifest.merged is not None:
        return merged_sentence(manifest.merged)
    if not manifest.domains:
        return "No memory ships with it."
    if verdict.moved is None:
        return "Memories of single domains ship beside it; what they win back was not measured."
    if verdict.moved:
        return "Knowledge of single domains was moved into the memories that ship beside it."
    return (
        "Memories of single domains ship beside it; the figures below do not show that the knowledge of each "
        "domain\nwas moved into its memory."
    )


def merged_sentence(merged: Merged) -> str:
    """What is in the weights beside the backbone, and what is not."""
    parts = {"lora": "its LoRA", "neurons": f"{merged.neurons:,} neurons that it gives back"}
    halves = " and ".join(parts[half] for half in merged.halves)
    missing = (
        f" **Its {' and '.join(merged.left_out)} half is not in them: weights cannot hold it**, so figures "
        "of the whole memory do not hold here."
        if merged.left_out
        else ""
    )
    if merged.beside:
        missing += f" Its {' and '.join(merged.beside)} half lies beside them, in files of its own."
    rounding = merged.rounding.get("max_abs", 0.0)
    rounded = f" Rounding the sum moves logits by {rounding:.1e} at most." if rounding else ""
    return f"The memory `{merged.domain}` is part of the weights: {halves}.{missing}{rounded}"


def _range(counts: list[int]) -> str:
    return f"{counts[0]:,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"


def _results_table(results: Mapping[str, Any]) -> str:
    domains = results.get("domains")
    if not domains:
        return "Nothing was measured that holds for these weights.\n"
    first = next(iter(domains.values()))
    conditions = [name for name in ("unpruned", "backbone", "matched") if name in first]
    columns = [
        (figure, condition) for figure in FIGURES if figure in first["unpruned"] for condition in conditions
    ]
    rows = [
        "| domain | " + " | ".join(f"{figure}, {condition}" for figure, condition in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for domain, figures in domains.items():
        cells = [_cell(figures[condition][figure]) for figure, condition in columns]
        rows.append(f"| {domain} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _cell(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.3f}"

"""Model cards: what this is, how good it is, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...artefact import BACKBONE, CARD, MEMORIES, open_bundle
from ...files import write_atomically

OWN_CLASS = """The layers of this backbone differ in width, or parts of its attention heads are gone, which no stock class holds.
`import koffkit.sliced` first, or, without koffkit, pass `trust_remote_code=True`: the code lies beside the weights
(`modeling_koffkit.py`, torch and transformers only).

"""
FIGURES = ("perplexity", "kl", "recall")


def bundle_summary(path: Path) -> dict[str, Any]:
    """What `koffkit.json` says of a bundle."""
    info = open_bundle(path).info
    size = sum(entry["size"] for entry in info["files"].values())
    return {"path": f"{MEMORIES}/{path.name}", "parameters": info["parameters"], "bytes": size}


def write_cards(output: Path, manifest: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """A README for the backbone and for every bundle."""
    write_atomically(output / BACKBONE / CARD, _backbone_card(manifest, state))
    for domain in manifest["domains"]:
        folder = output / MEMORIES / domain
        write_atomically(folder / CARD, _bundle_card(open_bundle(folder).info, manifest))


def _backbone_card(manifest: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    backbone, removed, base = manifest["backbone"], manifest["removed"], manifest["base"]
    kept = ", ".join(f"{_range(counts)} {name} a layer" for name, counts in manifest["kept"].items() if name not in manifest["masked"])
    masked = "".join(f" {count:,} units of {name} are masked: zero, but still there." for name, count in manifest["masked"].items())
    how = "" if backbone["class"].startswith("Koff") else ", no koffkit, no remote code"
    header = {"library_name": "transformers", "base_model": base["model"], "tags": ["koffkit", "pruned"]}
    recipe = yaml.safe_dump(state["recipe"], sort_keys=False, allow_unicode=True)
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---
# {manifest["name"]}: backbone

{base["model"]} with {removed["parameters"]:,} of {base["parameters"]:,} parameters ({removed["global_sparsity"]:.1%}) physically removed
by knowledge offloading (arXiv 2605.29075): {backbone["parameters"]:,} stay, {kept}.{masked} Knowledge of single domains was moved into the
memories that ship beside it; the backbone alone is expected to be weaker than the base.

```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("backbone")   # {backbone["class"]}{how}
```
{"" if how else OWN_CLASS}With its memories: `koffkit.KoffModel.from_pretrained("..")`, or for the LoRA half
`peft.PeftModel.from_pretrained(model, "memories/<domain>")`. The license of the base model applies.

## Figures
{_results_table(manifest["results"])}
Largest logit difference to the masked model in float32: {max(manifest["parity"]["max_abs"].values()):.1e}.
Backbone digest: `{backbone["digest"]}`.

## Recipe
```yaml
{recipe}```
"""


def _range(counts: list[int]) -> str:
    return f"{counts[0]:,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"


def _results_table(results: Mapping[str, Any]) -> str:
    domains = results.get("domains")
    if not domains:
        return "This run was not evaluated.\n"
    shown = [name for name in FIGURES if name in next(iter(domains.values()))["unpruned"]]
    conditions = [name for name in ("unpruned", "backbone", "matched") if name in next(iter(domains.values()))]
    head = "| domain | " + " | ".join(f"{figure}, {condition}" for figure in shown for condition in conditions) + " |"
    rows = [head, "|---|" + "---|" * (len(shown) * len(conditions))]
    for domain, found in domains.items():
        cells = [f"{found[condition][figure]:.3f}" for figure in shown for condition in conditions]
        rows.append(f"| {domain} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _bundle_card(info: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    halves = ", ".join(f"{half} {count:,}" for half, count in info["parameters_by_half"].items())
    adapter = "" if info["lora"] is None else f"""
The LoRA half is a stock PEFT adapter for the sliced backbone:
```python
from peft import PeftModel
model = PeftModel.from_pretrained(backbone, "memories/{info["domain"]}")
```
"""  # fmt: skip
    kv = "" if info["kv"] is None else """
The KV half (`kv_memory.safetensors`) holds `layers.{i}.key` and `layers.{i}.value`, [kv_heads, memory tokens, head_dim], keys before
rotation. koffkit attaches it; a stock cache can be prefilled with it when every layer has one (rotate the keys by the position of the
first text token).
"""  # fmt: skip
    return f"""# {manifest["name"]}: memory of domain {info["domain"]}

{info["parameters"]:,} parameters ({halves}) in layers {info["layers"][0]} to {info["layers"][-1]}, for backbone
`{info["backbone_digest"]}` only; koffkit refuses any other. Standalone: copy this folder next to any copy of that backbone.
{adapter}{kv}"""

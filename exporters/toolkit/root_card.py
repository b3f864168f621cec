"""The README at the root of an export, for whoever runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...artefact.card import front_matter, license_sentence, readable_bytes
from ...artefact.manifest import Manifest, Merged
from ...artefact.names import BACKBONE, CARD, ROUTER
from ...artefact.public import public_recipe
from ...checkpoint.spec import ModelSpec
from ...report.verdict import Verdict, verdict_of
from ...storage.files import write_atomically
from .card import merged_sentence

CHANGING = """- `koffkit memory add`, `replace`, `remove --keep FOLDER` and `compact` change one memory and no
  other byte; `koffkit memory list .` says which are there now. A memory that was kept is put back by copying
  its folder to `memories/`.
"""
CACHE_BYTES = 2
"""Of one number in a key-value cache, in the 16-bit types that models run in."""


def write_root_card(output: Path, manifest: Manifest, section: str = "") -> None:
    """A README for the export as a whole; `output` holds its backbone and memories.

    Args:
        section: of the format, after how to load it.
    """
    header = front_matter(manifest.base, "transformers", ["koffkit", "pruned"], derived=True)
    texts = [title(manifest), _parts(output, manifest), _loading(manifest)]
    texts += [section] * bool(section)
    texts += [_needs(output, manifest), origin(manifest), _operating(output, manifest)]
    text = header + "\n".join(texts)
    write_atomically(output / CARD, text)


def title(manifest: Manifest) -> str:
    """The heading of a README, with what was done to which base, and what the figures show."""
    memories, verdict = len(manifest.domains), verdict_of(manifest.results)
    if manifest.merged is not None:
        return _merged_title(manifest, manifest.merged)
    return f"""# {manifest.name}

{manifest.base.public_name}, split by knowledge offloading (arXiv 2605.29075) into one lean backbone
({manifest.backbone.parameters:,} parameters; {manifest.removed.global_sparsity:.1%} of the base is gone) and
{memories} {"memory" if memories == 1 else "memories"}{_claim(verdict)}. Made by koffkit
{manifest.versions.get("koffkit", "")} on {manifest.created[:10]}.

{verdict.markdown()}"""


def _merged_title(manifest: Manifest, merged: Merged) -> str:
    return f"""# {manifest.name}, {merged.domain}

{manifest.base.public_name}, cut by knowledge offloading (arXiv 2605.29075) to
{manifest.backbone.parameters:,} parameters ({manifest.removed.global_sparsity:.1%} of the base is gone):
one dense checkpoint. {merged_sentence(merged)} Made by koffkit {manifest.versions.get("koffkit", "")} on
{manifest.created[:10]}.

{verdict_of(manifest.results).markdown()}"""


def _claim(verdict: Verdict) -> str:
    """What the figures allow to be said about the memories."""
    if not verdict.recovered:
        return ""
    if verdict.moved:
        return ", each of which brings back what one domain needs"
    return "; the figures do not show that each brings back what its domain needs"


def _parts(output: Path, manifest: Manifest) -> str:
    backbone = manifest.backbone
    rows = [f"| `{BACKBONE}/` | the model, {backbone.model_class} | {backbone.bytes:,} bytes |"]
    rows += [
        f"| `{entry.path}/` | memory of {name}, {entry.parameters:,} parameters | {entry.bytes:,} bytes |"
        for name, entry in manifest.domains.items()
    ]
    if (output / ROUTER).is_dir():
        rows.append(f"| `{ROUTER}/` | picks the memory for a text | |")
    return "\n".join(["| folder | what it is | weights |", "|---|---|---|", *rows, ""])


def _loading(manifest: Manifest) -> str:
    own = manifest.backbone.model_class.startswith("Koff")
    option = ", trust_remote_code=True" if own else ""
    note = "  # or, with koffkit installed, `import koffkit.sliced` first, and no remote code" if own else ""
    domain = next(iter(manifest.domains), None)
    lora = manifest.recipe.get("memory", {}).get("lora") is not None
    peft = (
        f"""
With the LoRA half of a memory, through PEFT:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "memories/{domain}")
```
"""
        if domain is not None and lora
        else ""
    )
    name = "None" if domain is None else f'"{domain}"'
    whole = f"""All of it, with koffkit:

```python
from koffkit import KoffModel

model = KoffModel.from_pretrained(".")
model.complete("A prompt", memory={name})  # "auto": the router decides, where there is one
```
"""
    if manifest.consumer is not None:  # quantised
        whole = ""
    return f"""## Load

From this folder. {"With" if manifest.merged else "The backbone alone, with"} transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{BACKBONE}"{option}){note}
tokenizer = AutoTokenizer.from_pretrained("{BACKBONE}")
```
{peft}
{whole}"""


def _needs(output: Path, manifest: Manifest) -> str:
    spec = ModelSpec.open(output / BACKBONE, family=manifest.base.architecture)
    token = CACHE_BYTES * sum(
        widths.kv_heads * (widths.key_channels + widths.value_channels) for widths in spec.widths
    )
    sizes = [entry.bytes for entry in manifest.domains.values()]
    memories = (
        f", {readable_bytes(max(sizes))} for each memory (all: {readable_bytes(sum(sizes))})" if sizes else ""
    )
    wide = 4 * manifest.backbone.parameters
    return f"""## Memory needed

{readable_bytes(manifest.backbone.bytes)} for the backbone as it is stored ({readable_bytes(wide)} in
float32){memories}, and {readable_bytes(token)} a token of context for the
cache in a 16-bit type. The base takes {readable_bytes(manifest.base.bytes)}.
"""


def origin(manifest: Manifest) -> str:
    """Base, license and data of an export."""
    base = manifest.base
    revision = "" if base.revision is None else f", revision `{base.revision}`"
    data = _data(public_recipe(manifest.recipe, base.is_on_hub))
    return f"""## Base, license, data

- Base: {base.public_name}{revision} ({base.architecture}, {base.parameters:,} parameters, digest
  `{base.fingerprint[:16]}`). It was not changed, and is not in this folder.
- {license_sentence(base)}
{data}"""


def _data(recipe: Mapping[str, Any]) -> str:
    """One line a domain: which text its memory learned, by the names of files or data sets."""
    domains = recipe.get("domains", {})
    sources = {f"Domain {name}": source for name, source in domains.items()}
    if recipe.get("retention") is not None:
        sources["Retention"] = recipe["retention"]
    return "".join(f"- {name}: {_source(source)}.\n" for name, source in sources.items())


def _source(source: Mapping[str, Any]) -> str:
    for kind, words in (("text", "text"), ("jsonl", "records"), ("hub", "the hub data set")):
        value = source.get(kind)
        if value:
            names = [value] if isinstance(value, str) else value
            return f"{words} {', '.join(f'`{name}`' for name in names)}"
    return "text that the recipe does not name"


def _operating(output: Path, manifest: Manifest) -> str:
    base = manifest.base
    if base.is_on_hub:
        back = f'`AutoModelForCausalLM.from_pretrained("{base.model}", revision="{base.revision}")`'
    else:
        back = "its own folder, where it still is"
    return f"""
## Check, change, roll back

- `koffkit verify .` checks every file, the shapes of the weights and recorded logits;
  `koffkit inspect .` says what is here, `koffkit doctor` what this machine has.
{"" if manifest.merged else CHANGING}\
- An export is never changed by the next one: keep the folder before it, and point the service back at it to
  roll back. This backbone is `{manifest.backbone.digest[:16]}`; a memory of another one is refused.
- Back to the unpruned model: load {back}.
"""

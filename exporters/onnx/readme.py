"""The README of an ONNX export: what is in the folder, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...artefact.card import front_matter
from ...artefact.manifest import Manifest
from ...artefact.names import BACKBONE, CARD, MEMORIES
from ...storage.files import write_atomically
from ..toolkit.root_card import origin, title
from .files import GRAPH, adapter_path
from .gate import Measured
from .options import OnnxOptions

GENERATE = "generate.py"


def write_readme(
    folder: Path, manifest: Manifest, options: OnnxOptions, measured: Mapping[str, Measured]
) -> None:
    """Write `README.md`.

    Args:
        folder: of the export.
        manifest: what it is.
        options: what was asked for.
        measured: the comparison with koffkit, by domain.
    """
    header = front_matter(manifest.base, "onnxruntime", ["koffkit", "pruned", "onnx"], derived=True)
    parts = [title(manifest), _files(folder, manifest), _run(manifest), _program(manifest)]
    parts += [_genai(manifest)] * (options.layout == "genai")
    parts += [_inputs(manifest), origin(manifest), _check(manifest, measured)]
    write_atomically(folder / CARD, header + "\n".join(part for part in parts if part))


def _files(folder: Path, manifest: Manifest) -> str:
    rows = ["| file | what it is |", "|---|---|"]
    size = f"{manifest.backbone.bytes:,} bytes"
    rows.append(f"| `{BACKBONE}/{GRAPH}` | the backbone in float32, prompt and single tokens alike, {size} |")
    if (folder / BACKBONE / f"{GRAPH}.data").is_file():
        rows.append(f"| `{BACKBONE}/{GRAPH}.data` | its weights |")
    for name, entry in manifest.domains.items():
        path = adapter_path(folder, name).relative_to(folder).as_posix()
        rows.append(f"| `{path}` | the whole memory {name}, {entry.bytes:,} bytes |")
    rows.append(f"| `{GENERATE}` | generates; needs onnxruntime, numpy and tokenizers |")
    return "\n".join([*rows, ""])


def _run(manifest: Manifest) -> str:
    commands = "".join(f'python {GENERATE} {name} "A prompt"\n' for name in ("none", *manifest.domains))
    alone = "`none` is the backbone alone, expected to be weaker than with a memory.\n" * (
        not manifest.merged
    )
    return f"""## Run

In this folder:

```console
{commands}```

{alone}"""


def _program(manifest: Manifest) -> str:
    if not manifest.domains:
        return ""
    name = next(iter(manifest.domains))
    return f"""## In a program

A memory is an adapter of ONNX Runtime: the session is made once, each run names the memory it wants, and
switching costs nothing. `{GENERATE}` is this with a cache:

```python
import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

session = ort.InferenceSession("{BACKBONE}/{GRAPH}")
memory = ort.LoraAdapter()
memory.Load("{MEMORIES}/{name}.onnx_adapter")
options = ort.RunOptions()
options.add_active_adapter(memory)

ids = np.array([Tokenizer.from_file("{BACKBONE}/tokenizer.json").encode("A prompt").ids])
feed = {{"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.size)[None]}}
for value in session.get_inputs():
    if value.name.startswith("past_key_values."):
        feed[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype=np.float32)
with_memory = session.run(["logits"], feed, options)[0]
without = session.run(["logits"], feed)[0]
print(np.abs(with_memory - without).max())
```

All rows of a batch have the same memory. The text's positions start at 0, with a memory or without, and the
cache holds text only: one that was filled with a memory is for this memory.
"""


def _genai(manifest: Manifest) -> str:
    name = next(iter(manifest.domains), None)
    adapters = (
        ""
        if name is None
        else f"""adapters = og.Adapters(model)
adapters.load("{MEMORIES}/{name}.onnx_adapter", "{name}")
"""
    )
    active = "" if name is None else f'generator.set_active_adapter(adapters, "{name}")\n'
    return f"""## onnxruntime-genai

```python
import onnxruntime_genai as og
from tokenizers import Tokenizer

model = og.Model("{BACKBONE}")
{adapters}tokenizer = Tokenizer.from_file("{BACKBONE}/tokenizer.json")
ids = tokenizer.encode("A prompt").ids
params = og.GeneratorParams(model)
params.set_search_options(max_length=len(ids) + 16)
generator = og.Generator(model, params)
{active}generator.append_tokens(ids)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(list(generator.get_sequence(0))))
```

`og.Tokenizer` of onnxruntime-genai 0.18 leaves out the token that a text begins with, where the tokenizer has
one; `tokenizers` does not.
"""


def _inputs(manifest: Manifest) -> str:
    memory = (
        """
Inputs named after modules (`...lora_A`, `...lora_B`, `...memory_key`, `...memory_value`, `...neurons_gate`,
...) are those of memories. Their defaults are empty, which is the bare backbone; ONNX Runtime fills them from
an adapter. `lora_B` has alpha / rank in it, memory keys are not rotated.
"""
        if manifest.domains
        else ""
    )
    return f"""## Inputs and outputs

| name | shape |
|---|---|
| `input_ids`, `position_ids` | int64 [batch, new tokens] |
| `attention_mask` | int64 [batch, past + new tokens], 0 is padding |
| `past_key_values.N.key`, `.value` | float32 [batch, KV heads, past tokens, channels]; none: length 0 |
| `logits` | float32 [batch, new tokens, vocabulary] |
| `present.N.key`, `.value` | the next `past_key_values` |
{memory}"""


def _check(manifest: Manifest, measured: Mapping[str, Measured]) -> str:
    rows = "\n".join(
        f"| {name} | {found.equal} of {found.tokens} | {found.max_abs:.1e} | {found.floor:.1e} |"
        for name, found in measured.items()
    )
    return f"""
## Check

`koffkit verify .` compares every file with `koffkit.json`. Before it was published this graph was run in ONNX
Runtime and compared with koffkit's own computation of the same weights in float64; the last column is what
rounding to float32 does to koffkit's:

| memory | greedy tokens equal | largest difference of a logit | float32 |
|---|---|---|---|
{rows}

The checkpoint that it was traced from gave the masked model's logits in float64 to within
{max(manifest.parity.max_abs.values()):.1e} (largest logit {max(manifest.parity.max_logit.values()):.1f}).
"""

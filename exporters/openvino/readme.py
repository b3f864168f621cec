"""The README of the format, and the example that lies beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ...artefact.card import front_matter
from ...artefact.manifest import Consumer, Manifest
from ...artefact.names import BACKBONE, CARD, MEMORIES
from ...storage.files import write_atomically
from ..toolkit.exact import measured_rows
from ..toolkit.root_card import origin, title
from .files import Written

EXAMPLE = "example.py"
STORED = {"auto": "stored as the base's", "int8": "int8", "int4": "int4, embeddings and head int8"}


def write_texts(folder: Path, manifest: Manifest, written: Written) -> None:
    """Write `README.md` and `example.py`.

    Args:
        folder: of the export.
        manifest: what it is.
        written: its files.
    """
    shutil.copyfile(Path(__file__).with_name(EXAMPLE), folder / EXAMPLE)
    header = front_matter(manifest.base, "openvino", ["koffkit", "pruned", "openvino"], derived=True)
    parts = [title(manifest), _files(manifest, written), _run(written)]
    if written.memories:
        parts.append(_memories(next(iter(written.memories)), written.tokens))
    parts += [_measured(manifest.consumer), origin(manifest)]
    write_atomically(folder / CARD, header + "\n".join(part for part in parts if part))


def _files(manifest: Manifest, written: Written) -> str:
    what = "the model, tokenizer and detokenizer as OpenVINO has them"
    rows = ["| file | what it is |", "|---|---|"]
    rows.append(f"| `{BACKBONE}/` | {what}, {manifest.backbone.bytes:,} bytes of weights |")
    rows += [
        f"| `{MEMORIES}/{path.name}` | memory {name}, {path.stat().st_size:,} bytes |"
        for name, path in written.memories.items()
    ]
    return "\n".join([*rows, f"| `{EXAMPLE}` | writes with one of them |", ""])


def _run(written: Written) -> str:
    name = next(iter(written.memories), "none")
    return f"""## Run

In this folder, with `pip install openvino-genai`:

```console
python {EXAMPLE} {name} "A prompt"
```

`none` in the place of a memory is the bare backbone; `--chat` puts the prompt into the chat template.
"""


def _memories(name: str, tokens: int) -> str:
    kv = f"""
The file of a memory holds both halves. Its KV half comes in through places that the model has for {tokens}
memory tokens; without a memory they are masked. Positions and attention mask are as without it, and nothing
need be put before a prompt. GenAI's backend `PA` (`SchedulerConfig`, `ContinuousBatchingPipeline`) has no
such places and refuses the model; without `ATTENTION_BACKEND` the pipeline falls back to `SDPA` by itself.
"""
    return f"""## Memories

```python
import openvino_genai as genai

memory = genai.Adapter("{MEMORIES}/{name}.safetensors")
all_of_them = genai.AdapterConfig([memory])
pipeline = genai.LLMPipeline("{BACKBONE}", "CPU", adapters=all_of_them, ATTENTION_BACKEND="SDPA")
pipeline.generate("A prompt", max_new_tokens=64, adapters=genai.AdapterConfig(memory))  # with the memory
pipeline.generate("A prompt", max_new_tokens=64, adapters=genai.AdapterConfig())  # the bare backbone
```

Name all memories in the first `AdapterConfig`, and one in that of each call: a call without `adapters` gets
all of them at once, which is no memory of anything. Leave their weight (`alpha`) at 1: alpha / rank is part
of the file, since GenAI reads it from none.
{kv if tokens else ""}"""


def _measured(consumer: Consumer | None) -> str:
    if consumer is None:
        return ""
    packages = ", ".join(
        f"{name} {number}" for name, number in consumer.versions.items() if name.startswith("openvino")
    )
    return f"""## Measured before it was published

Against koffkit in float64, weights {STORED[consumer.weights]}, arithmetic float32
(`INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f32"`; without them a CPU that has narrower arithmetic
uses it). Run with {packages}.

| memory | largest difference of a logit | KL, nats a token | greedy tokens of GenAI that float64 chooses |
|---|---|---|---|
{measured_rows(consumer)}
"""

"""The README of a GGUF export, with the commands that serve it, and Modelfiles for ollama."""

from __future__ import annotations

from pathlib import Path

from ...artefact.card import front_matter, license_sentence
from ...artefact.manifest import Consumer, Manifest
from ...artefact.names import CARD, MEMORIES, SERVING
from ...storage.files import write_atomically
from ..toolkit.exact import measured_rows
from ..toolkit.root_card import origin, title
from .serving import KvFiles, Serving

ASK = "ask.py"
MODELFILE = "Modelfile"
PORT = 8080
LONGEST = 8192
ADAPTER = '"lora": [{"id": 0, "scale": 1}]'


def write_readme(output: Path, manifest: Manifest, serving: Serving) -> None:
    """Write `README.md`.

    Args:
        output: the export's folder.
        manifest: what it is.
        serving: which file is what.
    """
    header = front_matter(manifest.base, "llama.cpp", ["koffkit", "pruned", "gguf"], derived=True)
    parts = [title(manifest), _files(output, serving), _serve(serving), _memories(serving)]
    parts += [_measured(manifest.consumer, serving), _ollama(serving), origin(manifest), _check(manifest)]
    write_atomically(output / CARD, header + "\n".join(part for part in parts if part))


def _measured(consumer: Consumer | None, serving: Serving) -> str:
    if consumer is None:
        return ""
    software = ", ".join(f"{name} {number}" for name, number in consumer.versions.items())
    return f"""## Measured before it was published

llama-server ({software}), flash attention off, matrices {serving.type}, cache {serving.cache_type}, against
koffkit in float64:

| memory | largest difference of a log-probability | KL, nats per token | greedy tokens that float64 chooses |
|---|---|---|---|
{measured_rows(consumer)}
"""


def write_modelfiles(output: Path, manifest: Manifest, serving: Serving) -> None:
    """Write `Modelfile` for the bare backbone, and `Modelfile.NAME` with each adapter."""
    terms = f"# {license_sentence(manifest.base)}\n"
    write_atomically(output / MODELFILE, f"{terms}FROM ./{serving.model}\n")
    for name, path in serving.adapters.items():
        write_atomically(output / f"{MODELFILE}.{name}", f"{terms}FROM ./{serving.model}\nADAPTER ./{path}\n")


def server_command(serving: Serving) -> str:
    """The command that serves the export from its folder, one option a line."""
    lines = [f"llama-server -m {serving.model} --port {PORT}", f"-c {min(serving.context, LONGEST)} -np 1"]
    lines += [f"--lora {path}" for path in serving.adapters.values()]
    if serving.adapters:
        lines.append("--lora-init-without-apply")
        lines.append("--cache-ram 0")  # it finds prompts by their tokens, whatever adapter read them
    if serving.kv:
        lines.append(f"-fa off -ctk {serving.cache_type} -ctv {serving.cache_type}")
        lines.append(f"--slot-save-path {MEMORIES}")
    return " \\\n  ".join(lines)


def _files(output: Path, serving: Serving) -> str:
    size = (output / serving.model).stat().st_size
    what = f"the backbone, architecture `{serving.architecture}`, {serving.type}, {size:,} bytes"
    rows = ["| file | what it is |", "|---|---|", f"| `{serving.model}` | {what} |"]
    for name, files in serving.memories.items():
        if files.lora is not None:
            rows.append(f"| `{files.lora}` | LoRA of memory {name} |")
        if files.kv is not None:
            states = f"`{MEMORIES}/{files.kv.file}`, `{MEMORIES}/{files.kv.file_flash_attention}`"
            what = f"KV memory of {name}, {files.kv.tokens} tokens: without and with flash attention"
            rows.append(f"| {states} | {what} |")
    rows.append(f"| `{SERVING}`, `{ASK}` | the same for programs; a client of llama-server |")
    rows.append(f"| `{MODELFILE}` ... | for ollama |")
    return "\n".join([*rows, ""])


def _serve(serving: Serving) -> str:
    return f"""## Serve

From this folder, with llama.cpp's server:

```
{server_command(serving)}
```

The backbone alone, which is expected to be weaker than with a memory:

```
{_curl("completion", '{"prompt": "A prompt", "n_predict": 16, "temperature": 0}')}
```
"""


def _curl(path: str, body: str) -> str:
    """A request to the server."""
    return f"curl -s 'http://127.0.0.1:{PORT}/{path}' \\\n  -d '{body}'"


def _memories(serving: Serving) -> str:
    if not serving.memories:
        return ""
    name, files = next(iter(serving.memories.items()))
    text = f"""## With a memory

```
python ask.py {name} "A prompt"
```
"""
    if files.lora is not None:
        numbers = ", ".join(f"{index} {domain}" for index, domain in enumerate(serving.adapters))
        text += f"""
A LoRA is chosen by each request, by its number in the order of `--lora` ({numbers}):

```
{_curl("completion", '{"prompt": "A prompt", "n_predict": 16, ' + ADAPTER + "}")}
```

llama-cli has `--lora {files.lora}`, too (not run by koffkit's tests).
"""
    return text + (_kv(files.kv, serving, files.lora is not None) if files.kv is not None else "")


def _kv(kv: KvFiles, serving: Serving, with_lora: bool) -> str:
    """How a KV memory gets into a slot, and what must fit."""
    more = f""""id_slot": 0{", " + ADAPTER if with_lora else ""}"""
    ids = f"""'"$(python3 -c 'print([{kv.sentinel}] * {kv.tokens} + [0])')"'"""
    table = "\n".join(f"| {domain} | {own.sentinel} | {own.tokens} |" for domain, own in serving.kv.items())
    return f"""
A KV memory is the state of a slot that has read the memory's sentinel token {kv.tokens} times. `ask.py` does
these three steps. The first gives the slot its adapters, since a slot forgets what it read when they change;
then the state is restored, and the prompt begins with the sentinels:

```
{_curl("completion", f'{{"prompt": [0], "n_predict": 0, {more}}}')}
{_curl("slots/0?action=restore", f'{{"filename": "{kv.file}"}}')}
{_curl("completion", f'{{"prompt": {ids}, "n_predict": 16, {more}}}')}
```

The ids of the prompt (from `/tokenize`, with `"add_special": true`) take the place of the 0. In the answer
`timings.cache_n` must be at least {kv.tokens}: otherwise the sentinels were read as text, and the answer is
not the memory's.

| memory | sentinel | memory tokens |
|---|---|---|
{table}

- llama-server looks up what it has read by tokens alone, so no two memories share a sentinel, and
  `--cache-ram 0` keeps a prompt that one LoRA has read from another.
- The state files are of version {serving.state_version}, for a cache of type {serving.cache_type}. Builds up
  to August 2026 read version 2, those of September 2026 version 3, later ones version 4: export with
  `-o state_version=3`, and with `-o cache_type=f32` for `-ctk f32 -ctv f32`.
- With `-fa on`, which rounds more, restore `{kv.file_flash_attention}`, or say `--flash-attention` to
  `ask.py`. A state that does not fit is refused by the server with status 400.
- One slot (`-np 1`), or several with one cache for all (`--kv-unified`).
- `koffkit serve EXPORT --upstream http://127.0.0.1:{PORT} --upstream-export FOLDER` (EXPORT: of format hf, of
  the same run; FOLDER: this one) stands before this server: the router picks the memory, and clients of
  OpenAI's API need to know nothing of slots.
- llama-cli and ollama cannot restore a slot: LoRA only.
"""


def _ollama(serving: Serving) -> str:
    lines = [f"ollama create backbone -f {MODELFILE}"]
    lines += [f"ollama create {name} -f {MODELFILE}.{name}" for name in serving.adapters]
    return "\n".join(["## ollama", "", "Not run by koffkit's tests.", "", "```", *lines, "```", ""])


def _check(manifest: Manifest) -> str:
    return f"""
## Check

`koffkit verify .` compares every file with `koffkit.json`. The checkpoint that these files were made from
gave the masked model's logits in float64 to within {max(manifest.parity.max_abs.values()):.1e} (largest
logit {max(manifest.parity.max_logit.values()):.1f}) with every memory; every tensor was read back from the
file.
"""

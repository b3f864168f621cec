"""The example that ships with the format: a memory in PEFT and plain transformers, without koffkit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...artefact.bundle import Bundle
from ...artefact.names import ADAPTER_WEIGHTS, BACKBONE, CARTRIDGE, MEMORIES
from ...artefact.routes import Facts
from ...storage.files import write_atomically
from ..toolkit.cartridge import TENSOR

FILE = "example.py"


def write_example(folder: Path, facts: Facts, bundles: Sequence[Bundle], config: Mapping[str, Any]) -> None:
    """Write `example.py`, if there is a memory.

    Args:
        folder: of the export.
        facts: what the memories are like.
        bundles: the memories.
        config: the backbone's.
    """
    if bundles:
        write_atomically(folder / FILE, _example(facts, bundles[0].domain, config))


def _example(facts: Facts, domain: str, config: Mapping[str, Any]) -> str:
    more = ", DynamicCache" if facts.kv == "all" else ""
    code = ", trust_remote_code=True" if facts.own_class else ""
    lines = [
        '"""One memory in stock software; run it in this folder: python example.py [NAME [PROMPT]]"""',
        "import sys",
        "",
        "import torch",
        *(["from peft import PeftModel"] if facts.ranks else []),
        *(["from safetensors.torch import load_file"] if facts.kv == "all" else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer" + more,
        "",
        f'name, prompt = (sys.argv[1:] + ["{domain}", "The"][len(sys.argv) - 1 :])[:2]',
        f'tokenizer = AutoTokenizer.from_pretrained("{BACKBONE}")',
        f'model = AutoModelForCausalLM.from_pretrained("{BACKBONE}"{code}).eval()',
    ]
    if facts.ranks:
        lines.append(f'model = PeftModel.from_pretrained(model, f"{MEMORIES}/{{name}}")')
    lines.append('ids, cache, P = tokenizer(prompt, return_tensors="pt").input_ids, None, 0')
    if facts.kv == "all":
        layers, heads = config["num_hidden_layers"], config["num_key_value_heads"]
        lines += [
            "# P memory tokens stand before the text: dummy ids, a full mask, and a cache that holds them.",
            f'memory = load_file(f"{MEMORIES}/{{name}}/{CARTRIDGE}/{ADAPTER_WEIGHTS}")["{TENSOR}"]',
            "P, cache = len(memory), DynamicCache()",
            f"for i, (k, v) in enumerate(memory.view(P, {layers}, 2, {heads}, -1).permute(1, 2, 3, 0, 4)):",
            "    cache.update(k[None].to(model.dtype), v[None].to(model.dtype), i)",
            "ids = torch.cat([torch.zeros(1, P, dtype=torch.long), ids], dim=1)",
        ]
    lines += [
        "ids = model.generate(",
        "    input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=64,",
        "    do_sample=False,",
        ")",
        "print(tokenizer.decode(ids[0, P:], skip_special_tokens=True))",
        "",
    ]
    return "\n".join(lines)


def readme_section(facts: Facts, bundles: Sequence[Bundle]) -> str:
    """What the export's README says beside what every export's says."""
    if not bundles:
        return ""
    name = bundles[0].domain
    text = f"""## Memories in stock software

`python {FILE} {name} "A prompt"`, in this folder, generates with one whole memory; it imports no koffkit.
"""
    if facts.kv == "all":
        lora = f'model.load_adapter("{MEMORIES}/{name}")\n' if facts.ranks else ""
        text += f"""
The KV half is also a CARTRIDGE adapter of PEFT, with keys already rotated. PEFT cannot hold it and LoRA in
one `PeftModel`, so the LoRA half is loaded by transformers:

```python
{lora}model = PeftModel.from_pretrained(model, "{MEMORIES}/{name}/{CARTRIDGE}")
```

Its `forward` is exact. **Its `generate` is not**: peft 0.21.2 hands the memory over as `past_key_values`,
which transformers 5.24 ignores beside the `cache` of its own (a FutureWarning says so once), and the text is
that of no KV half at wrong positions. Generate as `{FILE}` does; or, until PEFT knows the new name, tell it
the old one:

```python
prepare = model.base_model_prepare_inputs_for_generation


def renamed(*args, **inputs):
    inputs = prepare(*args, **inputs)
    return {{"past_key_values" if name == "cache" else name: inputs[name] for name in inputs}}


model.base_model_prepare_inputs_for_generation = renamed
```

All rows of a batch have the same cartridge: PEFT ignores `adapter_names` for this kind. Memories that
`koffkit memory add` or `replace` puts here have no cartridge; export again for one.
"""
    return text + "\n"

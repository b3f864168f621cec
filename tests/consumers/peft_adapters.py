"""PEFT: the LoRA half by `PeftModel.from_pretrained`, the whole memory as LoRA (loaded by transformers)
below a CARTRIDGE adapter, which PEFT cannot hold in one `PeftModel`; through `forward`, through `generate`,
and through `generate` with the cache under the name that PEFT looks for, as the export's README has it.

(A file called peft.py would hide PEFT from itself.)
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plain_transformers import generate, load
from program import run

PACKAGES = ["torch", "transformers>=5.15", "peft"]
PLACE = "plain_transformers"
WHY = {
    ("generate", "lora + kv"): "PEFT 0.21 hands the memory over as past_key_values, which transformers 5.24 "
    "ignores beside the cache that its generate makes"
}
FORMAT = "peft"
OPTIONS: dict[str, Any] = {}


def model_of(export: Path, asked: dict[str, Any]) -> Any:
    """The backbone with what is asked for."""
    from peft import PeftModel

    model = load(export)
    folder = export / "memories" / str(asked["memory"])
    if asked["lora"] and not asked["kv"]:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    if asked["lora"]:
        model.load_adapter(str(folder))
    if asked["kv"]:
        return PeftModel.from_pretrained(model, str(folder / "cartridge")).eval()
    return model


def step_by_step(model: Any, ids: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens by the forward pass alone, the whole text each time."""
    import torch

    found: dict[str, Any] = {"ids": [], "top": []}
    for _ in range(wanted["new_tokens"]):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].double()
        top = logits.log_softmax(-1).topk(min(wanted["top"], logits.shape[-1]))
        found["top"].append(
            [list(pair) for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        )
        logits[torch.tensor(wanted["suppress"], dtype=torch.long)] = -torch.inf
        found["ids"].append(int(logits.argmax()))
        ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    return found


def renaming(export: Path) -> str:
    """The README's lines that give the cache the name that PEFT looks for."""
    text = (export / "README.md").read_text(encoding="utf-8")
    return next(part for part in text.split("```") if part.startswith("python\nprepare = ")).removeprefix(
        "python"
    )


def main(export: Path, questions: Path, answers: Path) -> None:
    import torch

    wanted = json.loads(questions.read_text())
    versions = {name: version(name) for name in ("peft", "transformers", "torch")}
    settings: dict[str, list[Any]] = {"forward": [], "generate": [], "generate, cache renamed": []}
    for asked in wanted["asked"]:
        model, ids = model_of(export, asked), torch.tensor([asked["prompt"]])
        settings["forward"].append(step_by_step(model, ids, wanted))
        settings["generate"].append(generate(model, ids, wanted))
        if asked["kv"]:
            exec(renaming(export), {"model": model})
        settings["generate, cache renamed"].append(generate(model, ids, wanted) if asked["kv"] else None)
    answers.write_text(json.dumps({"versions": versions, "settings": settings}))


if __name__ == "__main__":
    run(main)

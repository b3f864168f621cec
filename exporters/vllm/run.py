"""vLLM on an export of this format, on a CPU and in a process of its own, which gives its memory back. Needs
a build of vLLM for CPUs beside koffkit.

    python -m koffkit.exporters.vllm.run EXPORT QUESTIONS ANSWERS

Questions and answers: see `koffkit.exporters.toolkit.programs`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from .readme import EMPTY_SLOTS, connector_config

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def engine_of(export: Path, memories: dict[str, Any], wanted: dict[str, Any]) -> Any:
    """The engine that the command in the README makes, in float32."""
    from vllm import LLM
    from vllm.config import KVTransferConfig

    config = json.loads((export / "backbone" / "config.json").read_text(encoding="utf-8"))
    ranks = [entry["lora"]["rank"] for entry in memories.values() if entry["lora"] is not None]
    halves = [entry["kv"]["tokens"] for entry in memories.values() if entry["kv"] is not None]
    length = len(wanted["tokens"]) + wanted["new_tokens"] + max(halves, default=0)
    fields: dict[str, Any] = {
        "model": str(export / "backbone"),
        "dtype": "float32",
        "trust_remote_code": "block_configs" in config,
        "max_model_len": length,
        "max_logprobs": wanted["top"],
        "enforce_eager": True,
        "disable_log_stats": True,
    }
    if ranks:
        fields |= {
            "enable_lora": True,
            "max_loras": len(ranks) + EMPTY_SLOTS,
            "max_lora_rank": max(ranks),
        }
    if halves:
        fields["kv_transfer_config"] = KVTransferConfig(**connector_config(str(export)))
    return LLM(**fields)


def main(export: Path, questions: Path, answers: Path) -> None:
    """Answer all questions."""
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    wanted = json.loads(questions.read_text(encoding="utf-8"))
    memories = json.loads((export / "serving.json").read_text(encoding="utf-8"))["memories"]
    engine = engine_of(export, memories, wanted)
    size = engine.llm_engine.model_config.get_vocab_size()
    sampling = SamplingParams(
        temperature=0,
        max_tokens=wanted["new_tokens"],
        logprobs=min(wanted["top"], size),
        allowed_token_ids=sorted(set(range(size)) - set(wanted["suppress"])),
    )
    found = []
    for number, name in enumerate(wanted["memories"], 1):
        entry = memories.get(name) or {"lora": None, "kv": None}
        front = [entry["kv"]["sentinel"]] * entry["kv"]["tokens"] if entry["kv"] else []
        lora = LoRARequest(name, number, str(export / entry["lora"]["path"])) if entry["lora"] else None
        prompt = {"prompt_token_ids": front + wanted["tokens"]}
        told = engine.generate([prompt], sampling, lora_request=lora, use_tqdm=False)[0].outputs[0]
        top = [[[int(index), one.logprob] for index, one in step.items()] for step in told.logprobs]
        found.append({"ids": list(told.token_ids), "top": top})
    answers.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

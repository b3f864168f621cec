"""Tiny models, texts and recipes, built in the test process; nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

WORDS = [
    "river",
    "stone",
    "lamp",
    "cloud",
    "seven",
    "green",
    "walks",
    "over",
    "under",
    "quiet",
    "house",
    "sings",
    "bright",
    "slow",
    "north",
]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def sentences(seed: int, count: int, words: int = 9) -> list[str]:
    """Documents of random words, different for every seed."""
    draw = random.Random(seed)
    vocabulary = draw.sample(WORDS, 10)
    return [" ".join(draw.choices(vocabulary, k=words)) + "." for _ in range(count)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(sentences(0, 50), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_checkpoint(
    folder: Path, model_type: str = "llama", *, seed: int = 0, shard: str | None = None, **config: Any
) -> Path:
    """A random model of `model_type` with biases that are not zero, and a tokenizer, as a checkpoint
    folder."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    sizes = SIZES | {"vocab_size": len(tokenizer)} | config
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).float()
    one = 0.0 if model_type.startswith("gemma") else 1.0  # Gemma's norms multiply by 1 + weight
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(one, 0.1) if "norm" in name else value.normal_(0.0, 0.2)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    tokenizer.save_pretrained(folder)
    return folder


def recipe_dict(base: Path, data: Path, /, **changes: Any) -> dict[str, Any]:
    """A recipe with two domains and retention text that runs in seconds; `changes` replace top-level
    fields."""
    data.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("north", "south", "general"), 1):
        (data / f"{name}.txt").write_text("\n\n".join(sentences(seed, 80)) + "\n", encoding="utf-8")
    rates = {"lora": 2e-2, "kv": 5e-2, "gates": 0.3}
    return {
        "koffkit": 1,
        "name": "tiny",
        "base": {"model": str(base), "dtype": "float32"},
        "domains": {name: {"text": str(data / f"{name}.txt")} for name in ("north", "south")},
        "retention": {"text": str(data / "general.txt")},
        "sequence_length": 16,
        "mask": {"structures": ["mlp_neuron"], "global_sparsity": 0.12, "multiple_of": 4, "init": "cold"},
        "memory": {
            "layers": "all",
            "lora": {
                "rank": 4,
                "alpha": 4,
                "targets": ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
            },
            "kv": {"tokens": 3},
        },
        "distill": {"top_k": 50, "retention_every": 3},
        "train": {"checkpoint_every": 4},
        "stages": [
            {"learn_masks": {"max_steps": 6, "batch_size": 2, "lr": rates}},
            {"recover": {"max_steps": 4, "batch_size": 2, "lr": rates}},
            {"route": {"num_buckets": 4096, "epochs": 10}},
            {"evaluate": {"batch_size": 4, "max_tokens": 128}},
        ],
    } | changes


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def write_record(path: Path, tree: dict[str, Any]) -> None:
    """Write `koffkit.json`, `memory.json` or `run.json` as koffkit would have, with a seal of its own."""
    from koffkit.storage.seal import KEY, sealed

    path.write_text(sealed({key: value for key, value in tree.items() if key != KEY}), encoding="utf-8")


def list_anew(out: Path, *names: str) -> None:
    """Let the manifest of an export list these files as they are now: whoever put them there meant it."""
    from koffkit.artefact.digests import file_entry

    manifest = json.loads((out / "koffkit.json").read_text())
    for name in names:
        manifest["files"][name] = file_entry(out / name).to_json()
    write_record(out / "koffkit.json", manifest)


def digests(root: Path) -> dict[str, str]:
    """sha256 of every file below `root`."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def stage_options(context: Any, name: str) -> Any:
    """The options of one stage of a context's recipe."""
    return next(stage.options for stage in context.loaded.recipe.stages if stage.name == name)

"""Train the base model of the embedded default: a small Llama filled with the facts beside it.

    python benchmarks/embedded/train_base.py --out koffkit/embedded/base

It is trained until it knows the facts by heart, because what pruning takes away must be something the model
had.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EMBEDDED = Path(__file__).parents[2] / "koffkit" / "embedded"
LANGUAGES = ("en", "de", "fr", "it", "es", "pt")
VOCABULARY = 2560
Row = dict[str, str]


def read_rows(domain: str) -> list[Row]:
    return [
        json.loads(line) for line in (EMBEDDED / "facts" / f"{domain}.jsonl").read_text("utf-8").splitlines()
    ]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `<s>` is added in front of every document."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def recall(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], batch: int = 256
) -> float:
    """Share of rows whose answer greedy decoding would give exactly (teacher-forced argmax on every answer
    token)."""
    right = 0
    ordered = sorted(rows, key=lambda row: len(row["text"]))
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        ids = tokenizer(
            [row["text"] for row in part], padding=True, return_tensors="pt", padding_side="right"
        )
        begins = torch.tensor([len(tokenizer(row["prompt"])["input_ids"]) for row in part])
        guesses = (
            model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits[:, :-1].argmax(-1)
        )
        targets = ids["input_ids"][:, 1:]
        position = torch.arange(1, targets.shape[1] + 1)
        answer_mask = (position >= begins[:, None]) & ids["attention_mask"][:, 1:].bool()
        right += int(((guesses == targets) | ~answer_mask).all(dim=1).sum())
    return right / len(rows)


def batches(documents: list[list[int]], tokens: int, length: int, seed: int):  # type: ignore[no-untyped-def]
    """Endless batches [tokens // length, length]: documents shuffled every epoch and packed back to back."""
    generator = torch.Generator().manual_seed(seed)
    stream: list[int] = []
    rows = tokens // length
    while True:
        for index in torch.randperm(len(documents), generator=generator).tolist():
            stream.extend(documents[index])
            if len(stream) >= rows * length:
                yield torch.tensor(stream[: rows * length]).view(rows, length)
                stream = stream[rows * length :]


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=EMBEDDED / "base", show_default=True)
@click.option("--steps", default=2600, show_default=True)
@click.option("--tokens", default=2592, show_default=True, help="Tokens a step.")
@click.option("--length", default=96, show_default=True, help="Tokens a sequence.")
@click.option("--lr", default=3e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(out: Path, steps: int, tokens: int, length: int, lr: float, seed: int) -> None:
    rows = {domain: read_rows(domain) for domain in (*LANGUAGES, "general")}
    everything = [row for domain in rows.values() for row in domain]
    tokenizer = train_tokenizer([row["text"] for row in everything])
    model = build_model(seed)
    documents = [[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id] for row in everything]
    click.echo(
        f"{len(documents)} documents, {sum(map(len, documents)):,} tokens; {model.num_parameters():,} "
        f"parameters, {steps} steps"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.05, anneal_strategy="linear"
    )
    source = batches(documents, tokens, length, seed)
    begin = time.monotonic()
    for step in range(1, steps + 1):
        ids = next(source)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            message = f"step {step} loss {loss.item():.3f} {time.monotonic() - begin:.0f} s"
            if step % 400 == 0:
                message += f" recall {recall(model, tokenizer, everything[::23]):.3f}"
                save(model, tokenizer, out)
            click.echo(message)
    save(model, tokenizer, out)
    read_back = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    for domain, part in rows.items():
        click.echo(f"{domain}: {len(part)} sentences, recall {recall(read_back, tokenizer, part):.4f}")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Weights in bfloat16, tokenizer, and generation settings."""
    weights = {
        name: value.to(torch.bfloat16)
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict(weights, strict=False)
    half.tie_weights()
    half.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    half.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()

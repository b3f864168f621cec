from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from koffkit import KoffModel
from koffkit.artefact.digests import file_entry
from koffkit.errors import UsageError
from koffkit.router.probe import ProbeRouter

from ...common import sentences, write_record
from ...conftest import Shipped

PROMPTS = ["river stone", "quiet house sings over", "lamp", "seven"]


@pytest.fixture
def model(shipped: Shipped) -> KoffModel:
    return KoffModel.from_pretrained(shipped.export)


def test_each_prompt_of_a_batch_gets_its_own_memory(model: KoffModel) -> None:
    rows = ["north", "south", None, "south"]
    together = model.generate(PROMPTS, memory=rows, max_new_tokens=6)
    alone = [
        model.complete(prompt, memory=memory, max_new_tokens=6)
        for prompt, memory in zip(PROMPTS, rows, strict=True)
    ]
    assert together == alone
    assert (
        len(
            {
                tuple(model.generate(PROMPTS, memory=memory, max_new_tokens=6))
                for memory in ("north", "south", None)
            }
        )
        > 1
    )


def test_attach_and_detach_choose_for_calls_that_name_no_memory(model: KoffModel) -> None:
    ids = torch.arange(10).reshape(1, 10) + 4
    bare, north = model.logits(ids, None), model.logits(ids, "north")
    assert torch.equal(model.logits(ids), bare)
    model.attach("north")
    assert model.memory == "north" and torch.equal(model.logits(ids), north)
    assert torch.equal(model.logits(ids, None), bare) and not torch.allclose(bare, north, atol=1e-3)
    model.detach()
    assert model.memory is None and torch.equal(model.logits(ids), bare)


def test_memories_can_be_chosen_and_added(shipped: Shipped) -> None:
    model = KoffModel.from_pretrained(shipped.export, ["south"])
    assert model.domains == ["south"]
    ids = torch.arange(10).reshape(1, 10) + 4
    south = model.logits(ids, "south")
    assert model.load_memory(shipped.export / "memories" / "north") == "north"
    assert model.domains == ["south", "north"]
    torch.testing.assert_close(model.logits(ids, "south"), south, atol=1e-6, rtol=1e-6)
    assert {
        name for name, _ in KoffModel.from_pretrained(shipped.export, ["south"]).route(sentences(1, 5))
    } <= {"south", None}
    with pytest.raises(UsageError, match="a memory 'north' is loaded already"):
        model.load_memory(shipped.export / "memories" / "north")


def test_what_cannot_be_done_says_why(model: KoffModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="memory 'east': not loaded; there is north, south"):
        model.attach("east")
    with pytest.raises(UsageError, match="3 names for 2 prompts"):
        model.generate(PROMPTS[:2], memory=["north"] * 3)
    with pytest.raises(UsageError, match="the router needs the prompts"):
        model.logits(torch.tensor([[5]]), "auto")
    with pytest.raises(UsageError, match="neither an export"):
        KoffModel.from_pretrained(tmp_path)
    assert model.generate([]) == []


def test_a_plain_checkpoint_is_a_backbone_without_memories(llama: Path) -> None:
    model = KoffModel.from_pretrained(llama)
    with pytest.raises(UsageError, match="there is no router"):
        model.route(PROMPTS)
    with pytest.raises(UsageError, match="there is no router"):
        model.generate(PROMPTS, memory="auto")
    assert model.domains == [] and isinstance(model.complete("river", max_new_tokens=3), str)
    with pytest.raises(UsageError, match="there is none"):
        model.attach("north")


@pytest.fixture
def four(model: KoffModel, shipped: Shipped, tmp_path: Path) -> KoffModel:
    """Two more memories."""
    return with_scaled(model, shipped, tmp_path, {"un": -2})


@pytest.fixture
def eight(model: KoffModel, shipped: Shipped, tmp_path: Path) -> KoffModel:
    """Six more memories."""
    return with_scaled(model, shipped, tmp_path, {"un": -2, "very-": 3, "back-": -1})


def with_scaled(model: KoffModel, shipped: Shipped, root: Path, factors: dict[str, int]) -> KoffModel:
    """The model with more memories: LoRA and KV tensors of those there are, times a number, by prefix."""
    for (prefix, factor), domain in product(factors.items(), ("north", "south")):
        folder = shutil.copytree(shipped.export / "memories" / domain, root / f"{prefix}{domain}")
        for name in ("adapter_model", "kv_memory"):
            path = folder / f"{name}.safetensors"
            scaled = {key: factor * value for key, value in load_file(path).items()}
            save_file(scaled, path, metadata={"format": "pt"})
        info = json.loads((folder / "memory.json").read_text())
        info["files"] = {name: file_entry(folder / name).to_json() for name in info["files"]}
        write_record(folder / "memory.json", info | {"domain": folder.name})
        model.load_memory(folder)
    return model


def test_threads_do_not_see_each_others_memories(four: KoffModel) -> None:
    jobs: list[str | list[str | None] | None] = [*four.domains, None, [None, "unsouth", "north", "south"]] * 3
    alone = [four.generate(PROMPTS, memory=memory, max_new_tokens=8) for memory in jobs]
    assert len({tuple(texts) for texts in alone}) == 6
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda memory: four.generate(PROMPTS, memory=memory, max_new_tokens=8), jobs)
        )
    assert together == alone


def test_a_batch_is_what_peft_computes(shipped: Shipped, model: KoffModel) -> None:
    """Of one memory and of several."""
    ids = torch.arange(40).reshape(4, 10) + 4
    lora_alone(model)
    stock = AutoModelForCausalLM.from_pretrained(shipped.export / "backbone")
    memories = shipped.export / "memories"
    peft = PeftModel.from_pretrained(stock, memories / "north", adapter_name="north").eval()
    peft.load_adapter(memories / "south", "south")
    rows = ["north", "south", "south", None]
    with torch.no_grad():
        expected = {}
        for domain in ("north", "south"):
            peft.set_adapter(domain)
            expected[domain] = peft(ids, use_cache=False).logits
        with peft.disable_adapter():
            expected[None] = peft(ids, use_cache=False).logits
    mixed = model.logits(ids, rows)
    for row, domain in enumerate(rows):
        torch.testing.assert_close(model.logits(ids, domain), expected[domain], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mixed[row], expected[domain][row], atol=2e-5, rtol=1e-5)
    assert (expected["north"] - expected["south"]).abs().max() > 1e-3


def lora_alone(model: KoffModel) -> None:
    """Take KV and neurons from the memories."""
    store = model.store
    for domain, memory in store._loaded.items():
        store._loaded[domain] = replace(memory, kv={}, neurons={})


def test_beams_keep_the_memory_of_their_row(four: KoffModel) -> None:
    rows = ["north", "unsouth", None, "south"]
    together = four.generate(PROMPTS, memory=rows, max_new_tokens=6, num_beams=3)
    assert together == [
        four.complete(p, memory=m, max_new_tokens=6, num_beams=3) for p, m in zip(PROMPTS, rows, strict=True)
    ]


def test_a_probe_reads_while_other_threads_write(
    four: KoffModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both use the backbone's tokenizer, which keeps in itself whether it pads: here long enough for another
    thread to change it."""
    set_padding = type(four.tokenizer).set_truncation_and_padding

    def slow(*arguments: object, **options: object) -> None:
        set_padding(*arguments, **options)
        time.sleep(0.002)

    monkeypatch.setattr(type(four.tokenizer), "set_truncation_and_padding", slow)
    weight = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)).numpy()
    four._take_router(ProbeRouter(four.domains, 2, 16, weight, np.zeros(4, np.float32)), tmp_path)
    texts = sentences(1, 24)
    chosen, written = four.route(texts), four.generate(texts, memory="north", max_new_tokens=2)
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            (
                pool.submit(four.route, texts),
                pool.submit(four.generate, texts, memory="north", max_new_tokens=2),
            )
            for _ in range(8)
        ]
    assert [(route.result(), text.result()) for route, text in jobs] == [(chosen, written)] * 8


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(model: KoffModel, side: str) -> None:
    ids, filler = torch.arange(6).reshape(1, 6) + 7, torch.full((1, 3), 2)
    there, none = torch.ones_like(ids), torch.zeros_like(filler)
    padded, mask = (
        torch.cat(pair if side == "right" else pair[::-1], dim=1) for pair in ((ids, filler), (there, none))
    )
    for memory in ("north", "south", None):
        found = model.logits(padded, memory, attention_mask=mask)[mask.bool()]
        torch.testing.assert_close(found, model.logits(ids, memory)[0], atol=2e-5, rtol=1e-4)
    with pytest.raises(UsageError, match=r"shape \[1, 6\]; it must be that of input_ids, \[1, 9\]"):
        model.logits(padded, "north", attention_mask=there)


def test_attention_that_knows_no_kv_memory_is_refused(shipped: Shipped) -> None:
    config = AutoConfig.from_pretrained(shipped.export / "backbone", attn_implementation="eager")
    for options in (
        {"attn_implementation": "eager"},
        {"attn_implementation": {"": "flex_attention"}},
        {"config": config},
    ):
        with pytest.raises(
            UsageError, match=r"attn_implementation .*(eager|flex).*leave the option out or say .sdpa."
        ):
            KoffModel.from_pretrained(shipped.export, **options)
    for name in ("sdpa", "koffkit", None):
        assert KoffModel.from_pretrained(shipped.export, attn_implementation=name).domains == [
            "north",
            "south",
        ]


def test_eight_threads_with_memories_of_their_own_never_mix(eight: KoffModel) -> None:
    names = eight.domains
    alone = {name: eight.complete(PROMPTS[1], memory=name, max_new_tokens=8) for name in names}
    assert len(set(alone.values())) == 8
    asked = [names[number % 8] for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        written = list(
            pool.map(lambda name: eight.complete(PROMPTS[1], memory=name, max_new_tokens=8), asked)
        )
    assert written == [alone[name] for name in asked]

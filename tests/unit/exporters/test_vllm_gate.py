"""Format `vllm`: what is made after the parity gate and is not what it was made from is not published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from koffkit.exporters import export
from safetensors.torch import load_file, save_file

from koffkit.errors import IntegrityError

from ...common import make_tokenizer
from ...conftest import Shipped
from .conftest import learned

A, B = "self_attn.k_proj.lora_A", "self_attn.k_proj.lora_B"
Change = Callable[[Path], None]


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(how: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        kept = {name: how(name, value) for name, value in load_file(path).items()}
        made = {name: value.contiguous() for name, value in kept.items() if value is not None}
        save_file(made, path, metadata={"format": "pt"})

    return change


def _swapped(_: str, flat: torch.Tensor) -> torch.Tensor:
    """Keys where values belong, and the other way around."""
    return flat.view(flat.shape[0], -1, 2, 16).flip(2).reshape(flat.shape)


ADAPTERS = {
    "alpha": (config(lora_alpha=4), "at .* it adds something else"),  # of the rank before
    "targets": (config(target_modules=["q_proj"]), "its config is another"),
    "rank": (config(r=16, lora_alpha=16), r"its config is another than the bundle's \(rank 16 of 8\)"),
    "rows": (tensors(lambda name, value: value.flip(0) if A in name else value), "k_proj.* adds something"),
    "columns": (
        tensors(lambda name, value: value.flip(1) if B in name else value),
        "k_proj.* adds something",
    ),
    "one number": (
        tensors(lambda name, value: value * (1 + 1e-6 * (value == value[0, 0])) if B in name else value),
        "k_proj.* adds something",
    ),
    "not a number": (
        tensors(lambda name, value: value * torch.nan if B in name else value),
        "adds something",
    ),
    "module": (tensors(lambda name, value: None if "layers.1." in name else value), "other modules"),
}
CARTRIDGES = {
    "halves": (tensors(_swapped), "keys or values of layer 0 are not"),
    "tokens": (tensors(lambda _, flat: flat[:-1]), "keys or values of layer 0 are not"),
    "width": (tensors(lambda _, flat: flat[:, :-1]), "the connector cannot read it"),
    "order": (tensors(lambda _, flat: flat.flip(0)), "keys or values of layer 0 are not"),
    "one number": (
        tensors(lambda _, flat: flat + (flat == flat[-1, -1]) * 1e-6),
        "keys or values of layer 2 are not",
    ),
    "name": (
        lambda folder: save_file({"keys": torch.zeros(3, 4)}, folder / "adapter_model.safetensors"),
        "the connector cannot read it",
    ),
}


def _refused(run: Path, out: Path, message: str) -> None:
    with pytest.raises(
        IntegrityError, match=rf"{message}.*; nothing was published\. Export with --format hf"
    ):
        export(run, out, "vllm")
    assert not out.exists()


@pytest.mark.parametrize("what", ADAPTERS)
def test_another_adapter(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from koffkit.exporters import vllm

    (change, message), write = ADAPTERS[what], vllm.write_adapter

    def changed(bundle: Any, target: Path) -> int:
        rank = write(bundle, target)
        change(target)
        return rank

    monkeypatch.setattr(vllm, "write_adapter", changed)
    _refused(shipped.run, tmp_path / "out", f"memory north: .*adapters/north: .*{message}")


@pytest.mark.parametrize("what", CARTRIDGES)
def test_another_cartridge(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from koffkit.exporters import vllm

    (change, message), write = CARTRIDGES[what], vllm.write_cartridge

    def changed(bundle: Any, backbone: Path, target: Path) -> None:
        write(bundle, backbone, target)
        change(target)

    monkeypatch.setattr(vllm, "write_cartridge", changed)
    _refused(shipped.run, tmp_path / "out", f"memory north: .*cartridges/north: {message}")


@pytest.mark.parametrize("layout", ["uniform", "ragged"])
def test_a_wrong_rotation(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """Cartridge and comparison rotate by the same code, the model by its own."""
    from koffkit.exporters.toolkit.rotation import Rotary

    run = shipped.run if layout == "uniform" else learned(tmp_path, mask={"layout": layout})
    monkeypatch.setattr(Rotary, "__call__", lambda self, key, layer: key)
    _refused(run, tmp_path / "out", "memory north: in transformers and PEFT its logits differ by")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("block_configs", 1, "ffn", "intermediate_size"), 7),
        (("block_configs", 0, "attention", "n_heads_in_group"), 1),
        (("num_attention_heads",), 2),
        (("qkv_bias",), True),
    ],
)
def test_a_decilm_of_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: tuple[Any, ...], value: Any
) -> None:
    from koffkit.exporters import vllm

    write = vllm.write_config

    def changed(draft: Any, facts: Any) -> None:
        write(draft, facts)
        tree = json.loads((draft.backbone / "config.json").read_text())
        inner = tree
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        (draft.backbone / "config.json").write_text(json.dumps(tree))

    monkeypatch.setattr(vllm, "write_config", changed)
    run = learned(tmp_path, mask={"layout": "ragged"})
    _refused(run, tmp_path / "out", r"config\.json: by it model\.layers\.\d\S+ is .*, and what is stored is")


@pytest.mark.parametrize("wrong", ["count", "always", "text"])
def test_a_chat_template_that_puts_something_else_in_front(
    shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    from koffkit.exporters import vllm

    def with_template(draft: Any, *arguments: Any) -> Any:
        tokenizer = make_tokenizer()
        spare = tokenizer.convert_ids_to_tokens([50, 51])  # the model has an embedding for each
        tokenizer.add_special_tokens({"additional_special_tokens": spare})
        tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
        tokenizer.save_pretrained(draft.backbone)
        return write(draft, *arguments)

    changes = {
        "count": ("* 3", "* 2"),
        "always": ("if memory is", "if memory is not"),
        "text": ("{{ bos", "x{{ bos"),
    }
    write, make = vllm._write_memories, vllm.chat_template
    monkeypatch.setattr(vllm, "_write_memories", with_template)
    export(shipped.run, tmp_path / "right", "vllm")
    assert json.loads((tmp_path / "right" / "serving.json").read_text())["chat_template"] is not None

    def changed(*arguments: Any) -> str:
        return str(make(*arguments)).replace(*changes[wrong])

    monkeypatch.setattr(vllm, "chat_template", changed)
    _refused(
        shipped.run, tmp_path / "out", r"chat_template\.jinja: with memory \S+ a chat begins with \d+ tokens"
    )

"""The gate of the format: the final files, read back as vLLM and the connector read them.

Adapters, cartridges, config and chat template are made after the parity gate, from what passed it. Here they
are held against the bundles, and the logits of backbone, adapter and cartridge together, in PEFT and
transformers, against koffkit's golden ones. vLLM itself is run by `engine.py`, where it is installed.

Legend: R rank, A and B the factors [R, in] and [out, R], L layers, K KV heads, P memory tokens, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artefact.bundle import Bundle, MemoryFolder
from ...artefact.names import SERVING
from ...artefact.parts import Golden
from ...checkpoint.files import CONFIG, load_tokenizer
from ...checkpoint.reader import CheckpointReader
from ...checkpoint.spec import ModelSpec
from ...errors import IntegrityError
from ...serving.vllm_memories import Memory, read_memories
from ...storage.read_json import read_json
from ..toolkit import Draft, ParityFigures
from ..toolkit.rotation import Rotary
from ..toolkit.stock import check_stock, last_logits, load_stock

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

PROBES = 4
"""Random inputs of each module: that products of matrices agree on them is Freivalds' check."""
TOLERANCE = 1e-12
"""Of the largest |output|, in float64: what the order of sums may change."""
REPORT = "nothing was published. Export with --format hf, and report this with the recipe."


def check_memories(
    draft: Draft,
    serving: Mapping[str, Any],
    bundles: Sequence[Bundle],
    figures: ParityFigures,
    *,
    quantised: bool,
) -> None:
    """Hold adapters, cartridges and chat template against the bundles that they were made from.

    Args:
        draft: the export, with `serving.json` and all that it names written.
        serving: its content.
        bundles: the memories.
        figures: of the parity gate.
        quantised: the backbone is.

    Raises:
        IntegrityError: something is not as it should be.
    """
    memories = read_memories(draft.folder)
    adapters = {
        name: draft.folder / entry["lora"]["path"]
        for name, entry in serving["memories"].items()
        if entry["lora"] is not None
    }
    for bundle in bundles:
        if bundle.info.lora is not None:
            rank = int(serving["memories"][bundle.domain]["lora"]["rank"])
            _check_adapter(bundle, MemoryFolder(adapters[bundle.domain], bundle.domain), rank)
        if bundle.info.kv is not None:
            _check_cartridge(bundle, memories[bundle.domain], draft.backbone)
    if serving["chat_template"] is not None:
        _check_template(draft.backbone, draft.folder / serving["chat_template"], memories)

    def logits(bundle: Bundle, golden: Golden) -> Tensor:
        name = bundle.domain
        return _logits(draft.backbone, adapters.get(name), memories.get(name), golden, quantised)

    check_stock(draft, bundles, figures, logits, format_name="vllm", software="transformers and PEFT")


def _check_adapter(bundle: Bundle, written: MemoryFolder, rank: int) -> None:
    """What an adapter adds to the output of every module, with alpha / r as vLLM computes it."""
    from ...model.bundles import adapter_config, adapter_on_disk

    ours, theirs = adapter_config(bundle), adapter_config(written)
    if _settings(theirs) != _settings(ours) or theirs.r != rank:
        raise _wrong(
            bundle, written.path, f"its config is another than the bundle's (rank {theirs.r} of {rank})"
        )
    expected, found = adapter_on_disk(bundle), adapter_on_disk(written)
    if set(found) != set(expected):
        raise _wrong(bundle, written.path, "it has other modules than the bundle")
    for name in sorted(name for name in expected if ".lora_A." in name):
        right, there = _added(expected, name, ours), _added(found, name, theirs)
        limit = TOLERANCE * float(right.abs().max())
        if len(found[name]) != rank or not float((there - right).abs().max()) <= limit:
            raise _wrong(bundle, written.path, f"at {name} it adds something else than the bundle")


def _settings(config: LoraConfig) -> dict[str, Any]:
    """Of PEFT, but for those that padding changes."""
    return {name: value for name, value in config.to_dict().items() if name not in ("r", "lora_alpha")}


def _added(tensors: Mapping[str, Tensor], name: str, config: LoraConfig) -> Tensor:
    """What a module adds for `PROBES` random inputs, [out, `PROBES`] in float64."""
    import torch

    down, up = tensors[name].double(), tensors[name.replace(".lora_A.", ".lora_B.")].double()
    inputs = torch.randn(down.shape[1], PROBES, dtype=down.dtype, generator=torch.Generator().manual_seed(0))
    added: Tensor = up @ (down @ inputs) * (config.lora_alpha / config.r)
    return added


def _check_cartridge(bundle: Bundle, written: Memory, backbone: Path) -> None:
    """Keys and values as the connector writes them into vLLM's cache, number by number."""
    import torch

    from ...model.bundles import load_kv

    widths = ModelSpec.open(backbone).widths
    ours, rotary = load_kv(bundle, widths), Rotary(backbone)
    try:
        halves = written.halves
    except (KeyError, RuntimeError) as error:  # no such tensor; another number of tokens, heads or layers
        raise _wrong(bundle, written.folder, f"the connector cannot read it ({error})") from None
    for layer in range(len(widths)):
        key = rotary(ours[layer].key.double(), layer)
        for half, right in zip(halves[layer], (key, ours[layer].value), strict=True):
            if not torch.equal(half.transpose(0, 1), right.float()):
                raise _wrong(bundle, written.folder, f"keys or values of layer {layer} are not the bundle's")


def _check_template(backbone: Path, path: Path, memories: Mapping[str, Memory]) -> None:
    """A chat begins with the sentinels of its memory, and is the tokenizer's own otherwise."""
    tokenizer, template = load_tokenizer(backbone), path.read_text(encoding="utf-8")

    def text(**options: Any) -> str:
        chat = [{"role": "user", "content": "A question"}]
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options))

    try:
        plain = text()
    except Exception:  # a template is a program of somebody else's, and may refuse this chat
        return
    found: dict[str | None, str] = {None: text(chat_template=template)}
    found |= {name: text(chat_template=template, memory=name) for name in memories}
    for name, chat in found.items():
        memory = memories.get(name or "")
        wanted = [] if memory is None else [memory.sentinel] * memory.tokens
        front = tokenizer(chat.removesuffix(plain), add_special_tokens=False).input_ids
        if not chat.endswith(plain) or front != wanted:
            raise IntegrityError(
                f"{path}: with memory {name or 'none'} a chat begins with {len(front)} tokens {front[:8]}, "
                f"and {SERVING} says {len(wanted)} sentinels {wanted[:1]}; {REPORT}"
            )


def check_config(backbone: Path) -> None:
    """Hold a DeciLM's config against the weights: vLLM makes its matrices as the config says, and then reads
    them. Any other config was read by what computed the logits.

    Args:
        backbone: its folder.

    Raises:
        IntegrityError: a matrix or a bias has another size than the config says, or is missing.
    """
    config = read_json(backbone / CONFIG, remedy="export again")
    if "block_configs" not in config:
        return
    stored = {
        name: info.shape for name, info in CheckpointReader(backbone).tensors.items() if "_proj." in name
    }
    wanted: dict[str, tuple[int, ...]] = {}
    for layer, block in enumerate(config["block_configs"]):
        for place, shape, biased in _matrices(config, block):
            wanted[f"model.layers.{layer}.{place}.weight"] = shape
            if biased:
                wanted[f"model.layers.{layer}.{place}.bias"] = shape[:1]
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise IntegrityError(
                f"{backbone / CONFIG}: by it {name} is {wanted.get(name)}, and what is stored is "
                f"{stored.get(name)} (None: there is none); {REPORT}"
            )


def _matrices(config: Mapping[str, Any], block: Mapping[str, Any]) -> list[tuple[str, tuple[int, int], bool]]:
    """Of a layer of vLLM's DeciLM: each matrix, its [out, in], and whether it has a bias."""
    hidden, heads, inner = (
        config["hidden_size"],
        config["num_attention_heads"],
        block["ffn"]["intermediate_size"],
    )
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, heads // block["attention"]["n_heads_in_group"] * head_dim
    own, output, mlp = config["qkv_bias"], bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    return [
        ("self_attn.q_proj", (queries, hidden), own),
        ("self_attn.k_proj", (keys, hidden), own),
        ("self_attn.v_proj", (keys, hidden), own),
        ("self_attn.o_proj", (hidden, queries), output),
        ("mlp.gate_proj", (inner, hidden), mlp),
        ("mlp.up_proj", (inner, hidden), mlp),
        ("mlp.down_proj", (hidden, inner), mlp),
    ]


def _logits(
    backbone: Path, adapter: Path | None, memory: Memory | None, golden: Golden, quantised: bool
) -> Tensor:
    """Logits after the last golden token, with a cache that begins as the connector writes it."""
    from peft import PeftModel
    from transformers import DynamicCache

    model, cache = load_stock(backbone, quantised=quantised), DynamicCache()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    if memory is None:
        return last_logits(model, golden)
    for layer, halves in enumerate(memory.halves.to(model.dtype)):
        key, value = halves.transpose(1, 2)[:, None]
        cache.update(key, value, layer)
    return last_logits(model, golden, memory.tokens, past_key_values=cache)


def _wrong(bundle: Bundle, path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"memory {bundle.domain}: {path}: {what}; {REPORT}")

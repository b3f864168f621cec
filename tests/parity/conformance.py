"""The conformance matrix: every architecture x structure x layout x tied or not, each with no memory, LoRA,
KV memory and both.

A case learns nothing: gates and memories are random, everything after that is the product's own way, from the
projection onto the budget to the export. Then the masked model is held against the checkpoint, read back from
disk by the class its users will use.

    python -m tests.parity.table            prints the matrix as a table
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from koffkit.exporters import export
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from koffkit import sliced as _  # noqa: F401  # registers koffkit's model classes
from koffkit.arch import architecture, supported
from koffkit.arch.spec import LINEAR_MODULES
from koffkit.artefact.bundle import open_bundle
from koffkit.checkpoint.spec import ModelSpec
from koffkit.method.restoring import choose_neurons
from koffkit.model.bundles import load_kv
from koffkit.model.kv_attention import set_kv_memory, use_koffkit_attention
from koffkit.progress import Silent
from koffkit.recipe.load import LoadedRecipe, load_recipe
from koffkit.run.folder import RunFolder
from koffkit.stages.opening import open_run
from koffkit.stages.outputs import save_memories
from koffkit.training.build import build_context
from koffkit.training.context import Context
from koffkit.training.restoring import silent_outputs, take_neurons

from ..common import make_checkpoint, recipe_dict, write_recipe

TOLERANCE = 1e-4
IDS = (torch.arange(24).reshape(2, 12) * 7919) % 280 + 5
CONDITIONS = {"none": (False, False), "lora": (True, False), "kv": (False, True), "both": (True, True)}
STRUCTURES: dict[str, str | list[str]] = {
    "mlp_neuron": ["mlp_neuron"],
    "kv_group": ["kv_group"],
    "qk_pair": ["qk_pair"],
    "v_channel": ["v_channel"],
    "mlp_output": ["mlp_neuron", "mlp_output"],
    "neurons+groups": ["mlp_neuron", "kv_group"],
    "paper": "paper",
    "paper_qkv": "paper_qkv",
}
SPARSITY = {
    "kv_group": 0.06,
    "qk_pair": 0.05,
    "v_channel": 0.05,
    "neurons+groups": 0.35,
    "paper": 0.42,
    "paper_qkv": 0.13,
}
READER = {"mlp_neuron": "mlp.down_proj", "kv_group": "self_attn.o_proj"}
"""The module that reads the units of a structure, which a repair changes."""
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
WIDE = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
"""Heads that every consumer has a kernel for."""
FAMILY: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {"head_dim": 4},  # its class divides hidden_size by the heads
    "qwen3": {"attention_bias": True},
    "granite": {
        "logits_scaling": 3.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
    },
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "gemma3_text": {
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}
PLAIN: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}, "qwen2": {"head_dim": 4}}


@dataclass(frozen=True)
class Case:
    """One export; each of its four conditions is a case of the matrix."""

    family: str
    structure: str
    layout: str
    tied: bool
    repair: str = "none"
    neurons: bool = False  # see `tests.parity.neurons`
    plain: bool = False  # without the biases, windows and scales of FAMILY
    wide: bool = False
    sparsity: float | None = None  # instead of SPARSITY's

    @property
    def name(self) -> str:
        name = f"{self.family}-{self.structure}-{self.layout}-{'tied' if self.tied else 'untied'}"
        name += "-neurons" if self.neurons else ""
        return name if self.repair == "none" else f"{name}-{self.repair}"

    @property
    def refused(self) -> bool:
        refuses = architecture(self.family).refuses
        return "qk_pair" in refuses and self.structure in ("qk_pair", "paper", "paper_qkv")


def repaired() -> Iterator[Case]:
    """Every family with new weights, and with new biases where its class in transformers has a place for
    them."""
    for family in supported():
        yield Case(family, "neurons+groups", "uniform", True, "least_squares")
        yield Case(family, "v_channel", "ragged", False, "least_squares")
        for structure in ("mlp_neuron", "kv_group"):
            if READER[structure] in architecture(family).biases:
                yield Case(family, structure, "uniform", False, "bias")
                yield Case(family, structure, "ragged", True, "bias")


def cases() -> Iterator[Case]:
    for family in supported():
        for structure in STRUCTURES:
            for layout in ("uniform", "ragged"):
                for tied in (True, False):
                    yield Case(family, structure, layout, tied)


@cache
def base_of(family: str, tied: bool, plain: bool = False, wide: bool = False) -> Path:
    """A random checkpoint with four layers, made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="koffkit-conformance-"))
    config = HEADS | {"tie_word_embeddings": tied, "num_hidden_layers": 4}
    config |= PLAIN.get(family, {}) if plain else FAMILY[family]
    config |= WIDE if wide else {}
    return make_checkpoint(folder, family, **config)


def build(case: Case, root: Path) -> Context:
    """A finished run with random gates and memories, and its export in `root / "out"`.

    Raises:
        UsageError: the family refuses the structure.
    """
    targets = [module.rpartition(".")[2] for module in LINEAR_MODULES]
    memory = {"layers": "all", "lora": {"rank": 4, "alpha": 8, "targets": targets}, "kv": {"tokens": 3}}
    mask = {
        "structures": STRUCTURES[case.structure],
        "layout": case.layout,
        "multiple_of": 1,
        "global_sparsity": case.sparsity or SPARSITY.get(case.structure, 0.2),
        "repair": case.repair,
        "repair_damping": 1.0,
    }
    base = base_of(case.family, case.tied, case.plain, case.wide)
    recipe = recipe_dict(base, root / "data", mask=mask, memory=memory)
    recipe["stages"] = recipe["stages"][:1]
    if case.neurons:
        recipe["memory"]["neurons"] = {"count": 3, "layout": case.layout}
        recipe["stages"].append({"restore": {}})
    else:
        recipe["domains"] = {"north": recipe["domains"]["north"]}
    return _learned(case, load_recipe(write_recipe(root / "recipe.yaml", recipe)), root)


def _learned(case: Case, loaded: LoadedRecipe, root: Path) -> Context:
    """Stand in for the stages of a run, and export it."""
    run = RunFolder(root / "run")
    base = ModelSpec.open(base_of(case.family, case.tied, case.plain, case.wide))
    state = open_run(run, loaded, base, None, False)
    context = build_context(loaded, run, base, Silent())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        assert context.student.gates is not None and context.student.memories is not None
        for alpha in context.student.gates.log_alpha.values():
            alpha.copy_(
                torch.randn(alpha.shape, generator=generator)
                + torch.randn(len(alpha), 1, generator=generator)
            )
        for tensor in context.student.memories.tensors().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    context.set_masks()
    if case.neurons:
        give_back(context, case.layout)
    save_memories(context)
    run.write(state.evolve(**context.learned, state="finished"))
    assert context.masks is not None and all(bool((table == 0).any()) for table in context.masks.values()), (
        "a structure lost no unit"
    )
    export(run, root / "out")
    return context


def give_back(context: Context, layout: str) -> None:
    """Give every memory some of the removed neurons, chosen at random: 3 a layer, or 12 anywhere."""
    memories, spec, masks = context.student.memories, context.student.spec, context.masks
    assert memories is not None and masks is not None
    removed, silent = masks["mlp_neuron"] == 0, silent_outputs(spec, masks)
    for seed, domain in enumerate(memories.domains):
        scores = torch.rand(removed.shape, generator=torch.Generator().manual_seed(seed))
        places = choose_neurons(scores, removed, 3 * len(removed), layout)
        neurons = take_neurons(context.student.model, places, torch.float32, silent)
        memories.set_neurons(domain, neurons, tuned=False)


@torch.no_grad()
def masked(context: Context, lora: bool, kv: bool, ids: Tensor = IDS) -> Tensor:
    """Logits of the masked model."""
    student, memories = context.student, context.student.memories
    assert memories is not None
    memories.attach("north" if lora or kv else None)
    if not kv:
        set_kv_memory(student.model, None)
    if kv and not lora:
        memories._enable(False)
    student._values = context.masks
    try:
        return student.model(input_ids=ids, use_cache=False).logits
    finally:
        student._values = None
        memories.attach(None)


def load(root: Path, lora: bool, kv: bool, **options: Any) -> Any:
    """The export, read back as its users would."""
    plain = AutoModelForCausalLM.from_pretrained(
        root / "out" / "backbone", **({"dtype": torch.float32} | options)
    ).eval()
    bundle = open_bundle(root / "out" / "memories" / "north")
    model = PeftModel.from_pretrained(plain, str(bundle.path)).eval() if lora else plain
    if kv:
        use_koffkit_attention(plain)
        config = plain.config.to_dict()
        set_kv_memory(plain, load_kv(bundle, ModelSpec(config=config).widths))
    return model


@torch.no_grad()
def differences(context: Context, root: Path) -> dict[str, float]:
    """max |logit difference| of each condition."""
    found = {}
    for name, (lora, kv) in CONDITIONS.items():
        sliced = load(root, lora, kv)(input_ids=IDS, use_cache=False).logits
        found[name] = (sliced - masked(context, lora, kv)).abs().max().item()
    return found

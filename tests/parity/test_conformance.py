"""Every architecture inherits these (method, section 2, invariant 1); `tests/parity/conformance.py` says what
a case is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from koffkit.errors import UsageError

from .conformance import (
    CONDITIONS,
    IDS,
    STRUCTURES,
    TOLERANCE,
    Case,
    build,
    cases,
    differences,
    load,
    masked,
    repaired,
)
from .neurons import masked as neuron_masked
from .neurons import neuron_cases, neuron_differences, with_open_gates

MATRIX = [case for case in cases() if not case.refused]
REFUSED = [case for case in cases() if case.refused and case.layout == "ragged" and case.tied]
FAMILIES = sorted({case.family for case in MATRIX})
PAPER_OR_VALUES = {
    family: "paper" if Case(family, "paper", "ragged", True) in MATRIX else "v_channel" for family in FAMILIES
}


@pytest.mark.parametrize("case", MATRIX, ids=lambda case: case.name)
def test_masked_equals_sliced(case: Case, tmp_path: Path) -> None:
    found = differences(build(case, tmp_path), tmp_path)
    assert set(found) == set(CONDITIONS) and max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("case", list(neuron_cases()), ids=lambda case: case.name)
def test_restored_neurons_compute_what_they_did_in_their_place(case: Case, tmp_path: Path) -> None:
    found = neuron_differences(build(case, tmp_path), tmp_path)
    assert {"memory", "gates open", "merged", "row 3"} <= set(found)
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("family", FAMILIES)
def test_restored_neurons_matter(family: str, tmp_path: Path) -> None:
    context = build(Case(family, "mlp_neuron", "uniform", True, neurons=True), tmp_path)
    bare = neuron_masked(context, None)
    assert (with_open_gates(context, "north") - bare).abs().max() > 0.02
    assert (with_open_gates(context, "north") - with_open_gates(context, "south")).abs().max() > 0.02


@pytest.mark.parametrize("case", list(repaired()), ids=lambda case: case.name)
def test_masked_equals_sliced_after_a_repair(case: Case, tmp_path: Path) -> None:
    context = build(case, tmp_path)
    assert context.learned["repair"]["repaired"] > 0  # else it would be the test above
    found = differences(context, tmp_path)
    assert set(found) == set(CONDITIONS) and max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_structures_that_would_not_be_exact_are_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(qk|q_k)_pair cannot be removed from .* RMS norm"):
        build(case, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_conditions_differ_from_each_other_and_from_the_base(family: str, tmp_path: Path) -> None:
    """Parity of memories and masks that do nothing would prove nothing."""
    context = build(Case(family, PAPER_OR_VALUES[family], "ragged", True), tmp_path)
    logits = [masked(context, *halves) for halves in CONDITIONS.values()]
    context.masks = None
    logits.append(masked(context, False, False))
    for i, first in enumerate(logits):
        for second in logits[:i]:
            assert (first - second).abs().max() > 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_generating_with_a_cache_equals_full_passes(family: str, tmp_path: Path) -> None:
    build(Case(family, PAPER_OR_VALUES[family], "ragged", True), tmp_path)
    model = load(tmp_path, True, True)
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 2,
        "eos_token_id": None,
        "attention_mask": torch.ones_like(IDS),
    }
    cached = model.generate(input_ids=IDS, **options)
    assert torch.equal(cached, model.generate(input_ids=IDS, use_cache=False, **options))
    # A cache made anew at every step and one that is kept: the logits themselves, too.
    full = model(input_ids=cached, use_cache=False).logits[:, -1]
    past = model(input_ids=cached[:, :-1], use_cache=True).past_key_values
    step = model(input_ids=cached[:, -1:], past_key_values=past, use_cache=True).logits[:, -1]
    assert (full - step).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_nothing(family: str, tmp_path: Path) -> None:
    build(Case(family, PAPER_OR_VALUES[family], "ragged", True), tmp_path)
    model = load(tmp_path, True, True)
    short = IDS[:1, 4:]
    padded = torch.cat([torch.full((1, 4), 2), short], dim=1)
    mask = (torch.arange(12) >= 4).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        alone = model(input_ids=short).logits
        beside = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    assert (alone - beside).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_as_exact_as_the_masked_model_in_bf16(family: str, tmp_path: Path) -> None:
    context = build(Case(family, PAPER_OR_VALUES[family], "ragged", True), tmp_path)
    exact = masked(context, False, False)
    with torch.no_grad():
        sliced = load(tmp_path, False, False, dtype=torch.bfloat16)(input_ids=IDS).logits.float()
        context.student.model.to(torch.bfloat16)
        reference = masked(context, False, False).float()
    error, allowed = (sliced - exact).abs(), (reference - exact).abs()
    assert error.mean() <= 1.5 * allowed.mean() and error.max() <= 2 * allowed.max()


def test_the_matrix_covers_what_the_recipe_offers() -> None:
    from typing import get_args

    from koffkit.recipe.schema import Mask, StructureName

    named = {name for entry in STRUCTURES.values() if isinstance(entry, list) for name in entry}
    named |= set(Mask(structures="paper_qkv", global_sparsity=0.1).structure_names)
    assert named == set(get_args(StructureName)) and "paper" in STRUCTURES


def test_a_ragged_cache_is_smaller(tmp_path: Path) -> None:
    """Fewer pairs and channels: the key-value cache shrinks with them."""
    build(Case("llama", "paper", "ragged", True), tmp_path)
    with torch.no_grad():
        cache = load(tmp_path, False, False)(input_ids=IDS, use_cache=True).past_key_values
    sizes = [layer.keys.numel() + layer.values.numel() for layer in cache.layers]
    assert max(sizes) <= 2 * IDS.numel() * 4 * 8 and sum(sizes) < 0.95 * len(sizes) * 2 * IDS.numel() * 4 * 8
    assert len(set(sizes)) > 1


def test_the_code_in_the_checkpoint_is_enough(tmp_path: Path) -> None:
    """Software without koffkit loads it with `trust_remote_code`, and not without."""
    context = build(Case("llama", "paper", "ragged", True), tmp_path)
    save_file({"ids": IDS}, tmp_path / "ids.safetensors")
    backbone = str(tmp_path / "out" / "backbone")
    script = f"""
import sys
sys.modules["koffkit"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({backbone!r}, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise SystemExit("loaded without being trusted")
model = AutoModelForCausalLM.from_pretrained({backbone!r}, trust_remote_code=True, dtype=torch.float32)
ids = load_file({str(tmp_path / "ids.safetensors")!r})["ids"]
logits = model.eval()(ids).logits.detach().contiguous()
save_file({{"logits": logits}}, {str(tmp_path / "logits.safetensors")!r})
"""
    environment = {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    assert (found - masked(context, False, False)).abs().max() <= TOLERANCE

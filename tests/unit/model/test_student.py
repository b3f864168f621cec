from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from koffkit.checkpoint.spec import ModelSpec
from koffkit.method.budget import plan_budget
from koffkit.method.gates import active_probability, initial_log_alpha
from koffkit.model.gating import Gates, gate_points
from koffkit.model.kv_attention import attention_modules
from koffkit.model.memory import Memories
from koffkit.model.student import Student, load_frozen
from koffkit.recipe.schema import KV, Lora

from ...common import make_checkpoint

LORA = Lora(rank=2, alpha=4, targets=["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"])
TWO_TOKENS = KV(tokens=2)


def build(
    folder: Path, structures: list[str], lora: Lora | None = LORA, kv: KV | None = TWO_TOKENS
) -> Student:
    model = load_frozen(str(folder), "float32")
    config = model.config.to_dict()
    spec = ModelSpec(config=config)
    memories = Memories(
        model,
        spec.widths,
        ["a", "b"],
        list(range(spec.num_layers)),
        lora,
        kv,
        seed=0,
    )
    with torch.no_grad():
        for tensor in memories.tensors().values():
            tensor.normal_(0, 0.3)
    gates = Gates(spec, gate_points(spec.arch, structures, "consumer"), initial_log_alpha(0.95, 2 / 3), 2 / 3)
    return Student(model, spec, gates, memories)


IDS = torch.arange(16).reshape(2, 8) + 3


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_with_gates_and_memory_off_it_is_the_teacher(tmp_path: Path, model_type: str) -> None:
    folder = make_checkpoint(tmp_path, model_type)
    student = build(folder, ["mlp_neuron", "kv_group"])
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    student(IDS, None, "a")  # a memory was attached before
    torch.testing.assert_close(student(IDS), stock.model(IDS).last_hidden_state, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("structure", "consumer"), [("mlp_neuron", "mlp.down_proj"), ("kv_group", "self_attn.o_proj")]
)
def test_a_closed_gate_equals_zeroed_columns_of_the_consumer_and_its_lora(
    llama: Path, structure: str, consumer: str
) -> None:
    student = build(llama, [structure])
    shape = student.spec.shape
    units = student.spec.arch.structures[structure].num_units(shape)
    gates = {structure: torch.ones(shape.num_layers, units)}
    gates[structure][1, 0] = 0
    masked = student(IDS, gates, "a")
    module = student.model.get_submodule(f"model.layers.1.{consumer}")
    width = 1 if structure == "mlp_neuron" else shape.queries_per_kv * shape.head_dim
    for layer in [module, *(module.lora_A[name] for name in getattr(module, "lora_A", {}))]:
        with torch.no_grad():
            (layer.base_layer if hasattr(layer, "base_layer") else layer).weight[:, :width] = 0
    torch.testing.assert_close(student(IDS, None, "a"), masked, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(masked, build(llama, [structure])(IDS, None, "a"), atol=1e-3)


def test_a_domain_step_reaches_its_own_memory_and_no_other(llama: Path) -> None:
    student = build(llama, ["mlp_neuron"])
    values = student.gates.sample(torch.Generator().manual_seed(0))
    student(IDS, values, "b").square().sum().backward()
    touched = {
        name
        for name, tensor in student.memories.tensors().items()
        if tensor.grad is not None and tensor.grad.abs().sum() > 0
    }
    assert touched and all(".m1." in name for name in touched)
    assert {name.partition(".")[0] for name in touched} == {"lora", "kv"}
    assert student.gates.log_alpha["mlp_neuron"].grad.abs().sum() > 0
    frozen = [p for name, p in student.model.named_parameters() if "lora_" not in name]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_hard_masks_keep_the_highest_scores(llama: Path) -> None:
    student = build(llama, ["mlp_neuron"])
    with torch.no_grad():
        student.gates.log_alpha["mlp_neuron"].copy_(
            torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
        )
    budget = replace(
        plan_budget(student.spec, ["mlp_neuron"], 0.1),
        keep={"mlp_neuron": 20},
    )
    mask = student.gates.hard(budget)["mlp_neuron"]
    alphas = student.gates.log_alpha["mlp_neuron"]
    assert mask.sum(-1).tolist() == [20, 20, 20]
    assert all(alphas[i][mask[i].bool()].min() > alphas[i][~mask[i].bool()].max() for i in range(3))


def test_memories_depend_on_the_seed_alone(llama: Path) -> None:
    def tensors(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed + 1)  # the global generator must not matter
        model = load_frozen(str(llama), "float32")
        return Memories(
            model,
            ModelSpec(config=model.config.to_dict()).widths,
            ["a"],
            [0, 2],
            LORA,
            KV(tokens=2),
            seed=seed,
        ).tensors()

    first, again, other = tensors(5), tensors(5), tensors(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert not any(".layers.1." in name for name in first)


def test_the_papers_gates_of_a_neuron_are_two_and_either_takes_it(llama: Path) -> None:
    student = build(llama, ["mlp_neuron"])
    points = gate_points(student.spec.arch, ["mlp_neuron"], "paper")
    assert points == {"mlp_neuron": ["mlp_neuron@gate_proj", "mlp_neuron@up_proj"]}
    gates = Gates(student.spec, points, 5.0, 2 / 3)
    with torch.no_grad():
        gates.log_alpha["mlp_neuron@gate_proj"][0, 0] = gates.log_alpha["mlp_neuron@up_proj"][0, 1] = -9.0
    scores = gates.scores()["mlp_neuron"][0]
    assert scores[:3].tolist() == [-9.0, -9.0, 5.0]
    both = gates.active_fraction()["mlp_neuron"]
    one = active_probability(torch.tensor(5.0), 2 / 3).item()
    assert both[1].item() == pytest.approx(one**2, rel=1e-5) and both[0] < both[1]


@pytest.mark.parametrize("gate", ["mlp_neuron@gate_proj", "mlp_neuron@up_proj"])
def test_a_closed_gate_of_the_paper_equals_a_closed_gate_at_the_consumer(llama: Path, gate: str) -> None:
    student = build(llama, ["mlp_neuron"])
    values = torch.ones(3, 48)
    values[1, ::3] = 0
    torch.testing.assert_close(
        student(IDS, {gate: values}, "a"), student(IDS, {"mlp_neuron": values}, "a"), atol=1e-5, rtol=1e-5
    )
    soft = values * 0.5 + 0.25
    differ = not torch.allclose(
        student(IDS, {gate: soft}, "a"), student(IDS, {"mlp_neuron": soft}, "a"), atol=1e-3
    )
    assert differ == (
        gate == "mlp_neuron@gate_proj"
    )  # before the nonlinearity a soft gate is another function; up is linear


@pytest.mark.parametrize("gate", ["q_k_pair@q_proj", "q_k_pair@k_proj"])
def test_a_closed_gate_at_queries_or_keys_closes_the_pair(llama: Path, gate: str) -> None:
    """Of the text; the keys of a KV memory are gated by the queries alone."""
    student = build(llama, ["q_k_pair"])
    points = gate_points(student.spec.arch, ["q_k_pair"], "paper")
    assert points == {"q_k_pair": ["q_k_pair@q_proj", "q_k_pair@k_proj"]}
    values = torch.ones(3, 8)
    values[1, ::3] = 0
    closed = student(IDS, {"qk_pair": values})
    torch.testing.assert_close(student(IDS, {gate: values}), closed, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(student(IDS), closed, atol=1e-3)


def test_layers_that_do_not_keep_memory_are_off_and_not_saved(llama: Path) -> None:
    student = build(llama, ["mlp_neuron"])
    none, full = student(IDS), student(IDS, None, "a")
    student.memories.keep_layers([])
    torch.testing.assert_close(student(IDS, None, "a"), none, atol=1e-6, rtol=1e-6)
    student.memories.keep_layers([0, 1, 2])  # nothing is lost
    torch.testing.assert_close(student(IDS, None, "a"), full, atol=1e-6, rtol=1e-6)
    student.memories.keep_layers([0, 2])
    torch.testing.assert_close(student(IDS), none, atol=1e-6, rtol=1e-6)
    kept = student(IDS, None, "a")
    student.memories.keep_layers([0, 1, 2])
    student.memories.attach("a")
    with torch.no_grad():  # the same by hand: both halves of layer 1 taken out
        for name, value in student.model.named_parameters():
            if ".layers.1." in f".{name}" and "lora_B" in name:
                value.zero_()
    dict(attention_modules(student.model))[1].koffkit_kv = None
    torch.testing.assert_close(student(IDS, None, "a"), kept, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(kept, full, atol=1e-3)
    student.memories.keep_layers([0, 2])
    config, tensors = student.memories.adapter("a")
    assert config["layers_to_transform"] == [0, 2]
    assert tensors
    assert not any(".layers.1." in name for name in tensors)
    assert {name.split(".")[1] for name in student.memories.kv_tensors("a")} == {"0", "2"}


@pytest.mark.parametrize(
    ("gate", "module", "units"),
    [
        ("mlp_neuron", "mlp.down_proj", 48),
        ("mlp_neuron@gate_proj", "mlp.gate_proj", 48),
        ("kv_group", "self_attn.o_proj", 2),
    ],
)
def test_layers_whose_gates_are_all_open_are_not_multiplied(
    llama: Path, gate: str, module: str, units: int
) -> None:
    """And the result, with all gradients, is to the bit what it is when everything is multiplied."""
    student = build(llama, ["mlp_neuron", "kv_group"])
    hard = torch.ones(3, units)
    hard[1, ::2] = 0
    multiplied: list[int] = []
    for index in range(3):
        place = student.model.get_submodule(f"model.layers.{index}.{module}")
        _tell_multiplied(place, lambda index=index: multiplied.append(index))

    def result(values: torch.Tensor) -> list[torch.Tensor]:
        multiplied.clear()
        hidden = student(IDS, {gate: values}, "a")
        own = [tensor for tensor in student.memories.tensors().values() if tensor.requires_grad]
        slopes = torch.autograd.grad(hidden.square().sum(), own, allow_unused=True)
        return [hidden, *(slope for slope in slopes if slope is not None)]

    fixed = result(hard)
    assert multiplied == [1]
    learned = result(hard.clone().requires_grad_())
    assert multiplied == [0, 1, 2]
    assert len(fixed) == len(learned) > 10
    assert all(one.equal(other) for one, other in zip(fixed, learned, strict=True))
    hard[2, 0] = 0  # the same tensor, changed where it lies
    assert not result(hard)[0].equal(fixed[0])
    assert multiplied == [1, 2]


def _tell_multiplied(place: torch.nn.Module, tell: Callable[[], object]) -> None:
    """Call `tell` whenever the gate's hook makes another tensor of what enters or leaves a module."""
    seen: list[torch.Tensor] = []
    place.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]), prepend=True)
    place.register_forward_pre_hook(lambda _, inputs: None if inputs[0] is seen.pop() else tell())
    place.register_forward_hook(lambda _, __, output: seen.append(output), prepend=True)
    place.register_forward_hook(lambda _, __, output: None if output is seen.pop() else tell())

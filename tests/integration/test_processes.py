"""Several processes learn what one learns: the same masks, and memories that differ by the order of sums."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from koffkit.checkpoint.spec import ModelSpec
from koffkit.planning.plan import make_plan
from koffkit.planning.processes import shared_run
from koffkit.recipe.load import load_recipe

from ..common import digests, make_checkpoint, make_tokenizer, recipe_dict, write_recipe
from ..processes import INTERRUPTED, Blow, compress, free_port, needs_fork

pytestmark = needs_fork
CLOSE = 1e-5
"""Of sums in another order: the stated tolerance of memories."""
RATES = {"lora": 5e-3, "kv": 1e-2, "gates": 0.1}
STAGES: list[dict[str, Any]] = [
    {"learn_masks": {"max_steps": 6, "batch_size": 3, "lr": RATES}},
    {"recover": {"max_steps": 4, "batch_size": 3, "lr": RATES}},
    {"evaluate": {"batch_size": 4, "max_tokens": 64, "swap": False}},
]


def chat(root: Path) -> dict[str, Any]:
    """A source of which the loss counts the assistant's tokens only, so that rows weigh differently."""
    path = root / "chat.jsonl"
    answers = ["stone", "the river walks over the quiet house and sings", "north", "seven green lamps"]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"cloud {number % 7}"},
                {"role": "assistant", "content": answers[number % 4] + " bright" * (number % 5)},
            ]
        }
        for number in range(120)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return {"jsonl": str(path), "messages": "messages", "loss_on": "assistant"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("chat"), num_attention_heads=8)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<s>{{ message.role }}\n"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
        "{% else %}{{ message.content }}{% endif %}</s>{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three batches of three sequences in a step: two processes share the second batch unevenly."""
    root = tmp_path_factory.mktemp("processes")
    train = {"checkpoint_every": 100, "gradient_accumulation": 3, "evaluate_every": 3}
    tree = recipe_dict(base, root / "data", stages=STAGES, train=train)
    tree["domains"]["south"] = chat(root)
    tree["mask"] |= {"structures": ["mlp_neuron", "kv_group"], "global_sparsity": 0.2, "init": "activation"}
    return write_recipe(root / "recipe.yaml", tree)


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    assert compress(recipe, run, 1) == [0]
    return run


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def require_same(run: Path, alone: Path) -> None:
    """Masks are equal; memories, scores and figures are within the tolerance."""
    assert (run / "masks.safetensors").read_bytes() == (alone / "masks.safetensors").read_bytes()
    files = sorted(path.relative_to(alone) for path in alone.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(run) for path in run.rglob("*.safetensors"))
    for file in files:
        found, expected = load_file(run / file), load_file(alone / file)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[name].astype(np.float64), value, rtol=0, atol=CLOSE, err_msg=name
            )
    for own, other in zip(rows(run), rows(alone), strict=True):
        for name in ("loss", "kl", "covered_mass", "penalty", "lambda", "gradient_norm", "heldout_kl"):
            assert own.get(name, -1.0) == pytest.approx(other.get(name, -1.0), rel=1e-4), name
        for name in ("stage", "step", "domain", "tokens"):
            assert own[name] == other[name]
    state, expected_state = (json.loads((path / "run.json").read_text()) for path in (run, alone))
    assert state["state"] == expected_state["state"] == "finished"
    kl = [part["results"]["mean"]["matched"]["kl"] for part in (state, expected_state)]
    assert kl[0] == pytest.approx(kl[1], rel=1e-3)


def require_plan_of_one(recipe: Path, run: Path, processes: int, *, shard: bool) -> None:
    """What was foreseen is what one of the processes takes."""
    loaded = load_recipe(recipe).recipe
    spec, foreseen = (
        ModelSpec.open(Path(loaded.base.model)),
        json.loads((run / "run.json").read_text())["foreseen"],
    )
    expected = shared_run(loaded, spec, None, {}, processes, shard=shard).peak_memory
    assert foreseen["peak_memory"] == expected != make_plan(loaded, spec).peak_memory_bytes
    assert foreseen["basis"] == "machine" and foreseen["seconds"]["learn_masks"] > 0


def test_two_processes_learn_what_one_learns(recipe: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert compress(recipe, run, 2) == [0, 0]
    require_same(run, alone)
    require_plan_of_one(recipe, run, 2, shard=False)
    assert [len(row["peak_memory_of_processes"]) for row in rows(run)] == [2] * 10
    assert not (run / "checkpoints").exists()
    listed = json.loads((run / "run.json").read_text())["files"]
    assert {path for path in digests(run) if not path.startswith(".")} == {*listed, "run.json"}


def test_divided_weights_change_nothing(recipe: Path, alone: Path, tmp_path: Path) -> None:
    """Nor with gradient checkpointing, beside KV memories."""
    run, tree = tmp_path / "run", yaml.safe_load(recipe.read_text())
    tree["train"]["gradient_checkpointing"] = True
    assert compress(write_recipe(tmp_path / "recipe.yaml", tree), run, 2, shard=True) == [0, 0]
    require_same(run, alone)
    require_plan_of_one(tmp_path / "recipe.yaml", run, 2, shard=True)
    (said,) = [line for line in (tmp_path / "messages").read_text().splitlines() if "holds about" in line]
    assert said.startswith("0: of ")
    size, own = (int(word.replace(",", "")) for word in said.split() if word[0].isdigit() and "," in word)
    assert 0.5 < own / size < 0.8


@pytest.mark.parametrize("shard", [False, True])
def test_a_teacher_cache_that_another_run_left_half_full(shard: bool, recipe: Path, tmp_path: Path) -> None:
    """Where a process finds its sequences and the other does not, divided weights are asked by both."""
    tree = yaml.safe_load(recipe.read_text())
    tree["distill"] = tree.get("distill", {}) | {"cache": True, "cache_dir": str(tmp_path / "cache")}
    cached = write_recipe(tmp_path / "recipe.yaml", tree)
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert compress(cached, alone, 1) == [0]
    for path in (tmp_path / "cache").glob("*.targets"):  # every third record is gone
        index = json.loads(path.with_suffix(".json").read_text())
        records = bytearray(path.read_bytes())
        size = len(records) // index["sequences"]
        for first in range(0, len(records), 3 * size):
            records[first : first + size] = bytes(size)
        path.write_bytes(records)
    assert compress(cached, run, 2, shard=shard) == [0, 0]
    require_same(run, alone)


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_resumed_with_another_number_of_processes(
    shard: bool, recipe: Path, alone: Path, tmp_path: Path
) -> None:
    run, blow = tmp_path / "run", Blow(4, signal.SIGTERM)
    assert compress(recipe, run, 1, blow=Blow(2, signal.SIGINT, rank=0)) == [INTERRUPTED]
    assert len(rows(run)) == 3
    # only the process that does not lead is asked to stop; both stop after the same step
    assert compress(recipe, run, 2, resume=True, shard=shard, blow=blow) == [INTERRUPTED] * 2
    assert len(rows(run)) == 8
    assert compress(recipe, run, 1, resume=True) == [0]
    require_same(run, alone)


@pytest.mark.parametrize(
    ("rank", "shard"),
    [(1, False), *(pytest.param(*how, marks=pytest.mark.slow) for how in ((0, False), (0, True), (1, True)))],
)
def test_a_killed_process_ends_the_other(
    rank: int, shard: bool, recipe: Path, alone: Path, tmp_path: Path
) -> None:
    run, begin = tmp_path / "run", time.monotonic()
    codes = compress(recipe, run, 2, shard=shard, blow=Blow(3, signal.SIGKILL, rank=rank))
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 5
    ended = time.time() - rows(run)[-1]["wall_time"]
    assert ended < min(10.0, time.monotonic() - begin)
    said = (tmp_path / f"error.{1 - rank}").read_text()
    assert "another process of this run has ended" in said and "--resume" in said
    assert compress(recipe, run, 1, resume=True) == [0]
    require_same(run, alone)


def test_more_processes_than_sequences_are_refused_before_anything(llama: Path, tmp_path: Path) -> None:
    stages = [{"learn_masks": {"max_steps": 2, "batch_size": 1}}]
    recipe = write_recipe(
        tmp_path / "recipe.yaml", recipe_dict(llama, tmp_path / "data", stages=stages, retention=None)
    )
    assert 2 in compress(recipe, tmp_path / "run", 2)
    said = (tmp_path / "error.0").read_text()
    assert said.startswith(
        "stages.learn_masks.batch_size: 1 x train.gradient_accumulation: 1 are 1 sequences"
    )
    assert "too few for 2 processes" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_stage(shard: bool, llama: Path, tmp_path: Path) -> None:
    """One-shot masks, restored neurons repaired with the backbone, which then trains where it is whole, a
    router, and general text."""
    rates = RATES if shard else RATES | {"backbone": 1e-3}
    stages = [
        {"select_masks": {"selector": "sensitivity", "batches": 2}},
        {"restore": {"batches": 2, "batch_size": 2}},
        {"recover": {"max_steps": 2, "batch_size": 2, "lr": rates}},
        {"route": {"num_buckets": 512, "epochs": 2}},
        {"evaluate": {"batch_size": 4, "max_tokens": 64}},
    ]
    tree = recipe_dict(llama, tmp_path / "data", stages=stages)
    tree["mask"] |= {"repair": "least_squares", "repair_tokens": 512}
    tree["memory"] = {"layers": "all", "lora": None, "kv": {"tokens": 3}, "neurons": {"count": 2}}
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    assert compress(recipe, tmp_path / "one", 1) == [0]
    assert compress(recipe, tmp_path / "two", 2, shard=shard) == [0, 0]
    require_same(tmp_path / "two", tmp_path / "one")
    learned = [json.loads((tmp_path / name / "run.json").read_text())["repair"] for name in ("one", "two")]
    assert learned[0]["repaired"] == learned[1]["repaired"] > 0


def test_placement_and_learned_scales(llama: Path, tmp_path: Path) -> None:
    """Deterministic gates whose scales end in the weights, and layers that lose their memory."""
    stages = [{"learn_masks": {"max_steps": 3, "batch_size": 2, "lr": RATES}}, STAGES[-1]]
    tree = recipe_dict(llama, tmp_path / "data", stages=stages)
    tree["mask"] |= {"gates": "top_k", "init": "activation"}
    tree["memory"]["layers"] = {"learned_bytes": 10_000}
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    assert compress(recipe, tmp_path / "one", 1) == [0]
    assert compress(recipe, tmp_path / "two", 2) == [0, 0]
    require_same(tmp_path / "two", tmp_path / "one")
    layers = [
        json.loads((tmp_path / name / "run.json").read_text())["memory_layers"] for name in ("one", "two")
    ]
    assert layers[0] == layers[1] and len(layers[0]) < 3


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_four_processes(shard: bool, recipe: Path, alone: Path, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    if shard:  # all processes must go through the model equally often
        tree, alone = yaml.safe_load(recipe.read_text()), tmp_path / "alone"
        tree["train"]["gradient_accumulation"] = 4
        recipe = write_recipe(tmp_path / "recipe.yaml", tree)
        assert compress(recipe, alone, 1) == [0]
    assert compress(recipe, run, 4, shard=shard) == [0] * 4
    require_same(run, alone)
    blow = Blow(3, signal.SIGKILL, rank=2)
    assert compress(recipe, again, 4, shard=shard, blow=blow).count(5) == 3
    assert compress(recipe, again, 2, resume=True, shard=shard) == [0, 0]
    require_same(again, alone)


def started(pid: int, rank: int) -> psutil.Process:
    """The process of a rank below a launcher."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.environ().get("RANK") == str(rank):
                return child
    raise AssertionError(f"no process {rank} below {pid}")


@pytest.mark.slow
def test_the_launcher_reports_one_error_and_two_machines_go_on(
    recipe: Path, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "koffkit", "compress", str(recipe), "--output", str(run), "--json"]
    launcher = subprocess.Popen(
        [*command, "--num-processes", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while launcher.poll() is None and not ((run / "metrics.jsonl").is_file() and len(rows(run)) >= 3):
        time.sleep(0.05)
    other = started(launcher.pid, 0)
    started(launcher.pid, 1).kill()
    other.wait(timeout=10)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 5
    assert [line for line in err.splitlines() if "rror" in line] == [
        line for line in err.splitlines() if line.startswith("Error: process 1 of 2 was killed by SIGKILL")
    ]
    told = json.loads(out)
    assert told["exit_code"] == 5 and "--resume" in told["error"]

    port, torchrun = free_port(), [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
    torchrun += ["--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=test"]
    nodes = [
        subprocess.Popen(
            [*torchrun, f"--node-rank={node}", f"--rdzv-endpoint=127.0.0.1:{port}", *command[1:], "--resume"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    said = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    printed = [out for out, _ in said if out]
    assert len(printed) == 1 and json.loads(printed[0])["state"] == "finished"
    require_same(run, alone)

"""With a teacher cache the loss is that of the teacher itself, who is asked once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from koffkit.errors import IntegrityError, Interrupted, UsageError
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.run.state import RunState
from koffkit.stages.engine import run_recipe
from koffkit.training.context import Context
from koffkit.training.loop import DistillationLoop
from koffkit.training.teaching import open_cache

from ...common import make_checkpoint, recipe_dict, sentences, write_recipe
from .test_lower_layers import one_step
from .test_same_mathematics import context_for, loop_of

LOSSES: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 50},
    "top_p": {"top_k": {"top_p": 0.9, "max": 120}},
    "blended": {"loss": "blended", "top_k": 50},
}


def cached(base: Path, root: Path, **changes: Any) -> DistillationLoop:
    root.mkdir(exist_ok=True)
    distill = {"top_k": 50, **changes.pop("distill", {}), "cache": True, "cache_dir": str(root / "cache")}
    context = context_for(base, root, distill=distill, **changes)
    context.cache = open_cache(context, "a" * 64)
    return loop_of(context)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("apart", [False, True])
def test_loss_and_gradients_are_those_of_the_teacher(
    llama: Path, tmp_path: Path, loss: str, apart: bool
) -> None:
    loop = cached(llama, tmp_path, distill=LOSSES[loss], attend_across_documents=not apart)
    cache, loop.context.cache = loop.context.cache, None
    asked = one_step(loop)
    loop.context.cache = cache
    filled, known = one_step(loop), one_step(loop)
    assert cache is not None
    assert filled[0] == known[0] == pytest.approx(asked[0], rel=1e-3)
    assert asked[2] == filled[2] == [2] * 3 and known[2] == [1] * 3
    for name, gradient in asked[1].items():
        assert known[1][name].equal(filled[1][name])
        torch.testing.assert_close(
            known[1][name], gradient, rtol=1e-2, atol=2e-3 * gradient.abs().max().item()
        )


def test_lower_layers_are_still_computed_once(llama: Path, tmp_path: Path) -> None:
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.05, "layout": "ragged", "layers": [2]}
    memory = {"layers": [2], "lora": {"rank": 2, "alpha": 2, "targets": ["k_proj"]}, "kv": {"tokens": 3}}
    loop = cached(llama, tmp_path, mask=mask, memory=memory)
    assert [one_step(loop)[2] for _ in range(2)] == [[1, 1, 2], [1, 1, 1]]


class Asked:
    """How often the unpruned model is computed for learning."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, usual = 0, Context.unpruned

        def counted(context: Context, *arguments: Any) -> Any:
            self.count += 1
            return usual(context, *arguments)

        monkeypatch.setattr(Context, "unpruned", counted)


class Runs:
    def __init__(self, base: Path, root: Path) -> None:
        self.base, self.root = base, root

    def run(self, name: str, *, shared: Path | None = None, progress: Any = None, **changes: Any) -> RunState:
        tree = recipe_dict(self.base, self.root / "data")
        tree["distill"] |= {"cache": True} | changes.pop("distill", {})
        tree["stages"] = [stage for stage in tree["stages"] if not {"route", "evaluate"} & set(stage)]
        loaded = load_recipe(write_recipe(self.root / "recipe.yaml", tree | changes))
        resume = (self.root / name / "run.json").is_file()
        run = self.root / name
        return run_recipe(loaded, run, resume=resume, shared=shared, progress=progress or Silent())

    def learned(self, name: str) -> dict[str, bytes]:
        run = self.root / name
        return {
            path.relative_to(run).as_posix(): path.read_bytes()
            for path in sorted(run.rglob("*.safetensors"))
            if "teacher" not in path.parts
        }


@pytest.fixture
def runs(llama: Path, tmp_path: Path) -> Runs:
    return Runs(llama, tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    yield Asked(monkeypatch)


def test_a_second_run_learns_the_same_and_asks_no_more(runs: Runs, asked: Asked) -> None:
    named = {"cache_dir": "cache"}
    runs.run("first", distill=named)
    first = asked.count
    runs.run("second", distill=named)
    assert 0 < first == asked.count
    runs.run("alone")
    assert asked.count == 2 * first
    assert runs.learned("first") == runs.learned("second") == runs.learned("alone")
    assert sorted(path.name for path in (runs.root / "cache").iterdir()) == [
        f"{name}.{kind}" for name in ("_retention", "north", "south") for kind in ("json", "targets")
    ]
    assert not (runs.root / "alone" / "teacher").exists()


class StopAfter(Silent):
    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, stage: str, step: int, figures: Any) -> None:
        self.left -= stage in ("learn_masks", "recover")
        if not self.left:
            raise Interrupted("stopped, as by a kill: nothing of this is expected")


def test_a_run_that_is_killed_while_it_fills_goes_on_to_the_same_result(runs: Runs) -> None:
    runs.run("whole")
    for steps in (6, 5):
        with pytest.raises(Interrupted):
            runs.run("killed", progress=StopAfter(steps))
        assert (runs.root / "killed" / "teacher" / "north.targets").is_file()
        half = runs.root / "killed" / "teacher" / "north.targets"
        half.write_bytes(half.read_bytes()[: -half.stat().st_size // 3])  # what it wrote last is lost
    runs.run("killed")
    assert runs.learned("killed") == runs.learned("whole")


def test_runs_of_a_study_share_one_cache_over_seeds_and_sparsities(runs: Runs, asked: Asked) -> None:
    shared = runs.root / "shared"
    stages = [{"learn_masks": {"max_steps": 12, "batch_size": 12}}]  # more than all text
    whole = {"sequence_length": 64, "stages": stages, "retention": None}
    runs.run("first", shared=shared, **whole)
    first = asked.count
    mask = {"structures": ["mlp_neuron"], "global_sparsity": 0.2, "init": "cold"}
    runs.run("second", shared=shared, seed=3, mask=mask, **whole)
    assert 0 < first == asked.count
    assert len(list(shared.glob("teacher-*"))) == 1
    runs.run("third", shared=shared, **whole | {"sequence_length": 48})
    assert len(list(shared.glob("teacher-*"))) == 2


def test_a_cache_of_another_base_or_other_text_is_refused_and_leaves_no_run(
    runs: Runs, tmp_path_factory: pytest.TempPathFactory
) -> None:
    named = {"cache_dir": "cache"}
    runs.run("first", distill=named)
    other = str(make_checkpoint(tmp_path_factory.mktemp("other"), seed=1))
    text = runs.root / "other.txt"
    text.write_text("\n\n".join(sentences(9, 80)))
    domains = {"north": {"text": str(text)}, "south": {"text": str(runs.root / "data" / "south.txt")}}
    for changes, meaning in (
        ({"base": {"model": other, "dtype": "float32"}}, "of another base"),
        ({"domains": domains}, "north.targets: a teacher cache of other text"),
        ({"sequence_length": 12}, "of sequences of another length"),
    ):
        with pytest.raises(IntegrityError, match=meaning):
            runs.run("second", distill=named, **changes)
        assert not (runs.root / "second" / "run.json").exists()


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"loss": "full"}, "loss full compares all; use loss top_k or blended"),
        ({"cache": False, "cache_dir": "x"}, "set cache: true"),
    ],
)
def test_recipes_that_a_cache_cannot_serve_are_refused(
    runs: Runs, distill: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        runs.run("refused", distill=distill)
    assert not (runs.root / "refused").exists()
    runs.run("text", distill={"loss": "cross_entropy"})
    assert not (runs.root / "text" / "teacher").exists()

"""One mistake, one line, and it says where the user wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from koffkit.errors import UsageError
from koffkit.recipe.load import load_recipe


def lines(*overrides: str, recipe: str = "quickstart") -> list[str]:
    with pytest.raises(UsageError) as error:
        load_recipe(recipe, overrides)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("memory.layers={uper: 4}", "memory.layers.uper: unknown key; did you mean 'upper'?"),
        (
            "memory.layers={learnd_bytes: 4}",
            "memory.layers.learnd_bytes: unknown key; did you mean 'learned_bytes'?",
        ),
        ("memory.layers={upper: 0}", "memory.layers.upper: 0: input should be greater than or equal to 1"),
        (
            "memory.layers=5",
            "memory.layers: 5: not one of what this field takes (Layers that carry memory",
        ),
        ("memory.layers=[-1]", "memory.layers.0: -1: input should be greater than or equal to 0"),
        ("mask.temperature={strt: 1, end: 2}", "mask.temperature.strt: unknown key; did you mean 'start'?"),
        ("distill.top_k={top_p: 2}", "distill.top_k.top_p: 2: input should be less than 1"),
        ("trian.precision=bf16", "trian: unknown key; did you mean 'train'?"),
        ("name=no", "name: False: input should be a valid string; quote it"),
        ("memory.lora.alpha='inf'", "memory.lora.alpha: 'inf': input should be a finite number"),
        ("memory.lora.rank=1000000000000", "memory.lora.rank: 1000000000000: input should be less than"),
        ("seed=4294967296", "seed: 4294967296: input should be less than"),
        ("domains.int={text: 5}", "domains.int.text: 5: not one of"),
    ],
)
def test_one_finding_of_the_nearest_branch_at_the_option(override: str, message: str) -> None:
    (line,) = lines(override)
    assert line.startswith(f"--set {override}: {message}")


def test_an_option_shows_no_control_characters() -> None:
    for override in ("name=\x1b[31m", "na\x1bme=1"):
        assert not any("\x1b" in line for line in lines(override))


def test_a_misspelt_stage_gets_a_near_name() -> None:
    assert "did you mean 'learn_masks'?" in lines("stages.lern_masks.max_steps=3")[0]
    assert "did you mean quickstart?" in lines(recipe="quikstart")[0]


def test_findings_are_one_line_each_and_not_endless(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text('"a\\nb\\e[31m": 1\n' + "".join(f"k{i}: {'x' * 500}\n" for i in range(200)))
    reported = lines(recipe=str(path))
    assert len(reported) == 51
    assert reported[-1].endswith("more errors")
    assert not any("\x1b" in line or len(line) > 400 for line in reported)


def test_damaged_parents_are_errors_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("stages: [{recover: 5}, 7, x]\n")
    child = tmp_path / "child.yaml"
    child.write_text("extends: parent.yaml\nstages: {recover: {max_steps: 1}}\n")
    assert any("stages" in line for line in lines(recipe=str(child)))

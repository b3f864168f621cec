"""A stage from a package of its own: one file and its entry point, outside this tree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..common import recipe_dict, write_recipe
from ..outside import install, run_python

# One process, since it is the imports that take the time. It prints what happened as one JSON object.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path

import koffkit
from koffkit.errors import Interrupted, UsageError
from koffkit.progress import Silent
from koffkit.recipe.load import load_recipe
from koffkit.stages.engine import run_recipe
from extra_stage import Scale

recipe, root = sys.argv[1], Path(sys.argv[2])


def outcome(action):
    try:
        return action()
    except (Interrupted, UsageError) as error:
        return f"{type(error).__name__}: {error}"


class InterruptsRecover(Silent):
    def advance(self, task, done, figures):
        if (task, done) == ("recover", 2):
            os.kill(os.getpid(), signal.SIGINT)


def interrupted_at_its_end(self, context, options, resume):
    run_to_its_end(self, context, options, resume)
    raise Interrupted("interrupted in scale")


def learned(run):
    files = [run / "masks.safetensors", *sorted((run / "memories").rglob("*.*"))]
    return [path.read_bytes().hex() for path in files]


told = {"misspelt": outcome(lambda: load_recipe(recipe, ["stages.scale={facto: 2}"]))}
too_large = load_recipe(recipe, ["stages.scale.factor=101"])
told["too_large"] = outcome(lambda: run_recipe(too_large, root / "bad"))
told["left_behind"] = (root / "bad").exists()
loaded = load_recipe(recipe)
whole = run_recipe(loaded, root / "whole")
Scale.run, run_to_its_end = interrupted_at_its_end, Scale.run
told["in_the_stage"] = outcome(lambda: run_recipe(loaded, root / "run"))
Scale.run = run_to_its_end
told["after_the_stage"] = outcome(
    lambda: run_recipe(loaded, root / "run", resume=True, progress=InterruptsRecover())
)
resumed = run_recipe(loaded, root / "run", resume=True)
told["stages"] = whole.stage_names
told["result"] = whole.results["scale"]
told["same_results"] = resumed.results == whole.results
told["same_bytes"] = learned(root / "whole") == learned(root / "run")
print(json.dumps(told))
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder for the import path in which a package is installed that brings the stage `scale`."""
    return install(tmp_path / "packages", "stage")


def test_a_stage_from_outside_is_one_like_ours(llama: Path, tmp_path: Path, packages: Path) -> None:
    recipe = recipe_dict(llama, tmp_path / "data")
    recipe["stages"] = [*recipe["stages"][:2], recipe["stages"][3]]
    recipe["stages"].insert(1, {"scale": {"factor": 0.5}})
    told = run_script(write_recipe(tmp_path / "recipe.yaml", recipe), tmp_path, packages)
    assert "stages.1.scale.facto: unknown key; did you mean 'factor'?" in told["misspelt"]
    assert told["too_large"] == "UsageError: stages.scale.factor: 101.0; use at most 100."
    assert not told["left_behind"]
    assert told["stages"] == ["learn_masks", "scale", "recover", "evaluate"]
    assert told["result"] == {"factor": 0.5, "pruned": True}
    assert told["in_the_stage"] == "Interrupted: interrupted in scale"
    assert told["after_the_stage"].startswith("Interrupted: interrupted in recover after step 2")
    assert told["same_bytes"]
    assert told["same_results"]


def test_a_stage_from_outside_must_stand_where_it_says(llama: Path, tmp_path: Path, packages: Path) -> None:
    recipe = recipe_dict(llama, tmp_path / "data")
    recipe["stages"].append({"scale": {}})
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    done = run_python(packages, "-m", "koffkit", "compress", str(path), "--dry-run")
    assert done.returncode == 2
    expected = "stages must be learn_masks or select_masks, then any of scale, recover, route, evaluate"
    assert expected in done.stderr


def run_script(recipe: Path, root: Path, packages: Path) -> dict[str, Any]:
    done = run_python(packages, "-c", SCRIPT, str(recipe), str(root))
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told

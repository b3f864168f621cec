"""What can be known without training is said before it, all of it at once."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from koffkit.cli import checks
from koffkit.cli.checks import check_disk, check_recipe
from koffkit.data.preflight import data_problems
from koffkit.errors import DataError, ResourceError, UsageError
from koffkit.planning.plan import plan_of
from koffkit.recipe.load import LoadedRecipe, load_recipe
from koffkit.recipe.schema import Recipe

from ...common import recipe_dict, write_recipe
from ...conftest import Koffkit


def loaded(llama: Path, root: Path, **changes: Any) -> LoadedRecipe:
    return LoadedRecipe(
        Recipe.model_validate(recipe_dict(llama, root / "data") | changes), root / "r.yaml", root
    )


def test_a_sound_recipe_has_no_problem(llama: Path, tmp_path: Path) -> None:
    check_recipe(loaded(llama, tmp_path))
    check_recipe(load_recipe("quickstart"))


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"export": [{"format": "flopy"}]}, UsageError, "export.0.format: 'flopy': no such exporter"),
        ({"train": {"trackers": ["wanbd"]}}, UsageError, "train.trackers: 'wanbd'.*Did you mean wandb"),
        ({"train": {"trackers": ["aim"]}}, UsageError, "'aim' is not installed"),
        ({"base": {"model": "./nowhere"}}, DataError, r"base\.model: no folder"),
        ({"retention": {"text": "gone*.txt"}}, DataError, "retention: no file matches"),
        ({"retention": {"jsonl": "bad.jsonl"}}, DataError, r"bad\.jsonl:2: field 'text' is null"),
        ({"retention": {"jsonl": "bad.jsonl", "messages": "text"}}, DataError, r"bad\.jsonl:1: not a conv"),
        ({"retention": {"text": "data/*.gz"}}, DataError, r"a\.gz \(retention\): cannot be read"),
        ({"retention": {"text": "empty.txt"}}, DataError, "retention: the source holds no documents"),
        ({"memory": {"lora": None, "kv": {"tokens": 2}, "layers": [9]}}, UsageError, "use layers 0 to 2"),
    ],
)
def test_every_problem_is_found(
    llama: Path, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": null}\n')
    with pytest.raises(kind, match=message):
        check_recipe(loaded(llama, tmp_path, **changes))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export: [{format: flopy}]", r"r\.yaml:4: export\.0\.format: 'flopy': no such exporter"),
        ("export:\n  - format: hf\n    sharp: 1", r"r\.yaml:6: export\.0: format hf has no option sharp"),
        ("train:\n  trackers:\n    - wanbd", r"r\.yaml:6: train\.trackers: 'wanbd': no tracker"),
    ],
)
def test_exports_and_trackers_are_found_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(f"extends: quickstart\nname: mine\nseed: 1\n{line}\n")
    with pytest.raises(UsageError, match=message):
        check_recipe(load_recipe(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "gone.txt"], 3, "no file matches 'gone.txt'"),
        (["--data", "east.txt", "--memory", "nort"], 2, "did you mean north?"),
    ],
)
def test_evaluate_looks_before_it_loads(
    out: Path, koffkit: Koffkit, arguments: list[str], code: int, message: str
) -> None:
    ended = koffkit("evaluate", out, *arguments)
    assert ended.code == code
    assert message in ended.err
    assert "loading" not in ended.err


def test_all_problems_at_once(llama: Path, tmp_path: Path) -> None:
    recipe = loaded(
        llama,
        tmp_path,
        export=[{"format": "flopy"}, {"format": "hf", "sharp": 1}],
        train={"trackers": ["wanbd", "aim"]},
        domains={"a": {"text": "a.txt"}, "b": {"text": "b.txt"}},
    )
    with pytest.raises(UsageError) as error:
        check_recipe(recipe)
    assert len(str(error.value).splitlines()) == 6


def test_what_is_far_away_is_not_asked_for(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fsspec.get_filesystem_class", lambda scheme: None)  # installed
    source = {"text": ["https://example.invalid/a.txt", "s3://nowhere/*.txt"]}
    assert data_problems(loaded(llama, tmp_path, retention=source)) == []


def test_a_full_disk_is_named_before_the_run(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(loaded(llama, tmp_path))
    check_disk(plan, tmp_path / "runs" / "x")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: usage(10))
    with pytest.raises(ResourceError, match="10 bytes free, the run needs about"):
        check_disk(plan, tmp_path / "runs" / "x")


def test_validate_and_dry_run_end_with_the_same_findings(
    llama: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    recipe = recipe_dict(llama, tmp_path / "data", retention={"text": "gone.txt"})
    path = write_recipe(tmp_path / "r.yaml", recipe)
    for arguments in (("recipe", "validate", path), ("compress", path, "--dry-run")):
        result = koffkit(*arguments)
        assert result.code == 3
        assert "retention: no file matches 'gone.txt'" in result.err
    assert "parameters of the base" in result.out
    result = koffkit("compress", path, "--dry-run", "--json")
    assert json.loads(result.out)["exit_code"] == 3


def test_a_misspelt_command_gets_a_near_name(koffkit: Koffkit) -> None:
    result = koffkit("compres", "x")
    assert result.code == 2
    assert "did you mean compress?" in result.err

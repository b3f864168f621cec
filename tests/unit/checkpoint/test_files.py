from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from koffkit.checkpoint.files import read_config
from koffkit.checkpoint.fingerprint import fingerprint
from koffkit.errors import DataError, UsageError
from koffkit.hub import locate

from ...common import make_checkpoint


def test_local_folders_are_found_from_the_recipe_and_from_here(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (llama.parent, tmp_path / "elsewhere"):
        assert locate(str(llama), folder) == llama
    assert locate(llama.name, llama.parent) == llama
    assert locate("embedded:base", tmp_path).joinpath("config.json").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no folder './nowhere'"),
        ("one-word", "not a hub id"),
        ("embedded:other", "base.model: "),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        locate(name, tmp_path)


def test_the_digest_notices_another_config_or_shape(llama: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    assert fingerprint(copy) == fingerprint(llama)
    trained = make_checkpoint(tmp_path / "trained", seed=1)  # the same shape, other weights
    assert read_config(trained) == read_config(llama) and fingerprint(trained) != fingerprint(llama)
    config = read_config(copy)
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert fingerprint(copy) != fingerprint(llama)


def test_a_hub_model_is_fetched_at_its_revision_and_for_a_plan_its_config_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def fetch(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for config_only in (False, True):
        assert locate("owner/name", tmp_path, revision="v2", config_only=config_only) == tmp_path
    assert [(name, options["revision"]) for name, options in asked] == [("owner/name", "v2")] * 2
    assert "*.safetensors" in asked[0][1]["allow_patterns"] and asked[1][1]["allow_patterns"] == [
        "config.json"
    ]


def test_quantised_bases_are_refused(tmp_path: Path) -> None:
    from koffkit.arch import architecture_of

    with pytest.raises(UsageError, match="quantised weights cannot be sliced"):
        architecture_of({"model_type": "llama", "quantization_config": {"bits": 4}})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_config(tmp_path)

"""Bad input: one clear error, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from koffkit import compress
from koffkit.checkpoint.files import INDEX
from koffkit.errors import UsageError
from koffkit.parity.probe import probe_tokens
from koffkit.recipe.load import load_recipe

from ..common import make_checkpoint, recipe_dict, write_recipe
from ..conftest import Koffkit, Shipped

Change = Callable[[dict[str, Any], Path], None]


def set_mask(**values: Any) -> Change:
    return lambda recipe, _: recipe["mask"].update(values)


def set_text(content: bytes) -> Change:
    return lambda _, data: (data / "north.txt").write_bytes(content) and None


def point_at(name: str) -> Change:
    return lambda recipe, _: recipe["domains"].update(north={"text": name})


def embedding_without_limit(recipe: dict[str, Any], data: Path) -> None:
    """Embeddings of the tokens tried before learning are sound."""
    _set_nan(
        recipe, data, "model.embed_tokens.weight", [row for row in range(300) if row not in probe_tokens(300)]
    )


def weight_without_limit(recipe: dict[str, Any], data: Path) -> None:
    _set_nan(recipe, data, "model.layers.0.mlp.down_proj.weight", [0])


def _set_nan(recipe: dict[str, Any], data: Path, name: str, rows: list[int]) -> None:
    base = Path(shutil.copytree(recipe["base"]["model"], data / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors[name][rows] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    recipe["base"]["model"] = str(base)


def base_of(model_type: str) -> Change:
    def change(recipe: dict[str, Any], data: Path) -> None:
        (data / "base").mkdir()
        (data / "base" / "config.json").write_text(json.dumps({"model_type": model_type}))
        recipe["base"]["model"] = str(data / "base")

    return change


def facts_cut_inside_a_token(recipe: dict[str, Any], data: Path) -> None:
    fact = {"text": "river stone", "prompt": "riv", "answer": "er stone"}
    (data / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for _ in range(60)), encoding="utf-8")
    recipe["domains"]["north"] = {
        "jsonl": str(data / "facts.jsonl"),
        "prompt_field": "prompt",
        "answer_field": "answer",
    }


def refused_structure(recipe: dict[str, Any], data: Path) -> None:
    recipe["base"]["model"] = str(make_checkpoint(data / "base", "qwen3"))
    recipe["mask"]["structures"] = ["mlp_neuron", "qk_pair"]


def damaged_base(damage: Callable[[Path], None]) -> Change:
    def change(recipe: dict[str, Any], data: Path) -> None:
        base = make_checkpoint(data / "base", shard="60KB")
        damage(base)
        recipe["base"]["model"] = str(base)

    return change


def truncate(base: Path) -> None:
    shard = sorted(base.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-64])


def escape(base: Path) -> None:
    index = json.loads((base / INDEX).read_text())
    outside = base.parent / "outside.safetensors"
    shutil.copy(sorted(base.glob("*.safetensors"))[0], outside)
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../outside.safetensors"
    (base / INDEX).write_text(json.dumps(index))


CASES: dict[str, tuple[Change, int, str]] = {
    "unknown key": (set_mask(sparsity=0.1), 2, "mask.sparsity: unknown key"),
    "wrong type": (set_mask(multiple_of="eight"), 2, "mask.multiple_of: 'eight': "),
    "missing file": (point_at("not/there.txt"), 3, "domains.north: no file matches 'not/there.txt'"),
    "empty domain": (set_text(b"\n\n"), 3, "domains.north: the source holds no documents"),
    "one line": (set_text(b"just this one line\n"), 3, "domains.north: 1 document; at least 2 are needed"),
    "shorter than a sequence": (set_text(b"a\n\nb\n"), 3, "one sequence needs sequence_length = 16"),
    "not text": (set_text(b"\xff\xfe\x00"), 3, "north.txt (domains.north): not UTF-8 text"),
    "unreachable sparsity": (set_mask(global_sparsity=0.9), 2, "mask.global_sparsity: 0.9 is unreachable"),
    "multiple_of too large": (set_mask(multiple_of=64), 2, "mask.multiple_of: 64 cannot be met"),
    "facts cut inside a token": (
        facts_cut_inside_a_token,
        3,
        "domains.north: no prompt is followed by its answer at a token's boundary",
    ),
    "no such layer": (lambda recipe, _: recipe["memory"].update(layers=[7]), 2, "use layers 0 to 2"),
    "unsupported architecture": (
        base_of("gpt2"),
        2,
        "model_type 'gpt2' is not supported; koffkit knows gemma3_text, granite, llama",
    ),
    "config without sizes": (
        base_of("llama"),
        2,
        "config.json: num_hidden_layers: None; a positive whole number is needed",
    ),
    "structure the family refuses": (
        refused_structure,
        2,
        "mask.structures: qk_pair cannot be removed from qwen3: its RMS norm",
    ),
    "structures that overlap": (
        set_mask(structures=["kv_group", "v_channel"]),
        2,
        "kv_group and v_channel overlap",
    ),
    "no such base": (
        lambda recipe, _: recipe["base"].update(model="./nowhere"),
        3,
        "base.model: no folder './nowhere'",
    ),
    "NaN embedding": (embedding_without_limit, 4, "model.embed_tokens.weight: the base itself holds NaN"),
    "NaN weight": (weight_without_limit, 4, "layers.0.mlp.down_proj.weight: the base itself holds NaN"),
    "corrupt index": (
        damaged_base(lambda base: (base / INDEX).write_text("{")),
        4,
        "not valid JSON",
    ),
    "truncated shard": (damaged_base(truncate), 4, "truncated or damaged"),
    "escaping index": (damaged_base(escape), 4, "'../outside.safetensors' leads out of the folder; refused"),
    "no tokenizer": (
        damaged_base(lambda base: [path.unlink() for path in base.glob("tokenizer*")] and None),
        3,
        "no tokenizer",
    ),
    "missing shard": (
        damaged_base(lambda base: sorted(base.glob("*.safetensors"))[0].unlink()),
        4,
        "which is missing",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_compress_refuses(case: str, llama: Path, tmp_path: Path, koffkit: Koffkit) -> None:
    change, code, message = CASES[case]
    recipe = recipe_dict(llama, tmp_path / "data")
    change(recipe, tmp_path / "data")
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    found = koffkit("compress", path, "--output", tmp_path / "run", "--json")
    assert found.code == code, found.err
    assert message in found.err and "Traceback" not in found.err
    assert found.json["exit_code"] == code and message in found.json["error"]
    assert not (tmp_path / "run" / "run.json").exists()  # only a run that has begun is kept


def test_token_files_outlive_a_run_that_was_refused_for_another_reason(
    llama: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    run, path = (
        tmp_path / "run",
        write_recipe(tmp_path / "recipe.yaml", recipe_dict(llama, tmp_path / "data")),
    )
    with pytest.raises(UsageError, match="'aim' is not installed"):
        compress(load_recipe(path, ["train.trackers=[aim]"]), run)
    assert [entry.name for entry in run.iterdir()] == ["data"]
    result = koffkit("compress", path, "--output", run)
    assert result.code == 0
    assert "tokenising" not in result.err


def test_compress_refuses_a_folder_with_something_else_in_it(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    (tmp_path / "mine").write_text("x")
    found = koffkit("compress", shipped.recipe, "--output", tmp_path)
    assert found.code == 2 and "the folder exists and is not a run" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_export_refuses_a_folder_that_exists(shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    found = koffkit("export", shipped.run, "--output", tmp_path)
    assert found.code == 2 and "exists already; choose another --output" in found.err
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_an_unknown_format_and_a_folder_that_is_no_run(
    shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    found = koffkit("export", shipped.run, "--format", "floppy", "--output", tmp_path / "out")
    assert found.code == 2 and "--format: floppy is not installed; there is gguf, hf," in found.err
    found = koffkit("export", tmp_path, "--output", tmp_path / "out")
    assert found.code == 2 and "not a run folder" in found.err


@pytest.mark.parametrize(
    "name",
    ["masks.safetensors", "memories/north/adapter_model.safetensors", "memories/south/kv_memory.safetensors"],
)
def test_export_refuses_a_damaged_run(name: str, shipped: Shipped, tmp_path: Path, koffkit: Koffkit) -> None:
    run = Path(shutil.copytree(shipped.run, tmp_path / "run"))
    (run / name).write_bytes((run / name).read_bytes()[:-9])
    found = koffkit("export", run, "--output", tmp_path / "out")
    assert found.code == 4
    assert Path(name).name in found.err
    assert "Traceback" not in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_export_refuses_a_base_that_has_changed(llama: Path, tmp_path: Path, koffkit: Koffkit) -> None:
    base = Path(shutil.copytree(llama, tmp_path / "base"))
    recipe = recipe_dict(base, tmp_path / "data")
    recipe["stages"] = [{"learn_masks": {"max_steps": 1}}]
    path = write_recipe(tmp_path / "recipe.yaml", recipe)
    assert koffkit("compress", path, "--output", tmp_path / "run").code == 0
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    found = koffkit("export", tmp_path / "run", "--output", tmp_path / "out")
    assert found.code == 4
    assert "this is not the base that" in found.err
    assert not (tmp_path / "out").exists()


def test_a_bundle_for_another_backbone_is_refused(
    shipped: Shipped, llama: Path, tmp_path: Path, koffkit: Koffkit
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert koffkit("compress", shipped.recipe, "--output", run, "--set", "mask.global_sparsity=0.2").code == 0
    assert koffkit("export", run, "--output", out).code == 0
    shutil.rmtree(out / "memories" / "north")
    shutil.copytree(shipped.export / "memories" / "north", out / "memories" / "north")
    for arguments in (("generate", out, "--prompt", "x", "--memory", "north"), ("verify", out)):
        found = koffkit(*arguments)
        assert found.code == 4
        assert "memory.json" in found.err
        assert "Traceback" not in found.err
    assert (
        "this memory (north) belongs to backbone"
        in koffkit("generate", out, "--prompt", "x", "--memory", "north").err
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_export_publishes_nothing_and_can_be_repeated(
    number: signal.Signals, shipped: Shipped, tmp_path: Path, koffkit: Koffkit
) -> None:
    out = tmp_path / "exports" / "out"
    command = [sys.executable, "-m", "koffkit", "export", str(shipped.run), "--output", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("exports/.out*/backbone/config.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert not out.exists()
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "interrupted" in err
        assert "Traceback" not in err
        assert list(out.parent.iterdir()) == []
    assert koffkit("export", shipped.run, "--output", out).code == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert koffkit("verify", out).code == 0

"""llama.cpp runs an export of format `gguf`: skipped where the wheel `xllamacpp` is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from koffkit.exporters import export

from ..conftest import Shipped
from . import llama_cpp
from .cases import TINY_TEXT, Ready
from .reference import Reference

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def artefact(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llama_cpp") / "out"
    export(shipped.run, out, llama_cpp.FORMAT, llama_cpp.OPTIONS)
    return out


def test_it_writes_what_koffkit_writes(shipped: Shipped, artefact: Path, tmp_path: Path) -> None:
    reference = Reference(shipped.export, Ready(shipped.run, shipped.export, TINY_TEXT).asked(), 32)
    questions, answers = tmp_path / "questions.json", tmp_path / "answers.json"
    questions.write_text(json.dumps(reference.questions()))
    program = [sys.executable, llama_cpp.__file__, artefact, questions, answers]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = json.loads(answers.read_text())["settings"]
    for found in reference.compare(settings["-fa off"]):
        assert found is not None and found.max_abs is not None and found.kl is not None
        assert found.equal == found.tokens == 32
        assert found.max_abs <= max(10 * reference.floor, 1e-5)
        assert found.kl <= 1e-6
    for found in reference.compare(settings["-fa on"]):
        assert found is not None and found.max_abs is not None and found.max_abs <= 0.1
    assert len({str(ids) for ids in reference.ids.values()}) > 1, "memories change nothing: a weak test"


SCRIPT = """
import json, subprocess, sys
from pathlib import Path
import llama_cpp

export = Path(sys.argv[1])
blocks = (export / "README.md").read_text().split("```")[1::2]
with llama_cpp.serving(export, False) as url:
    for block in blocks:
        if "ollama" in block or block.strip().startswith("llama-server"):
            continue
        command = block.replace("http://127.0.0.1:8080", url)
        command = command.replace("python ask.py", f"{sys.executable} ask.py --url {url}")
        words = ["bash", "-ec", command]
        done = subprocess.run(words, cwd=export, capture_output=True, text=True)
        row = {"command": block, "code": done.returncode, "out": done.stdout, "err": done.stderr}
        print(json.dumps(row))
"""


def test_the_commands_of_the_readme_run(artefact: Path) -> None:
    program = [sys.executable, "-c", SCRIPT, artefact]
    done = subprocess.run(program, capture_output=True, text=True, cwd=Path(llama_cpp.__file__).parent)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"command"')]
    assert len(rows) == 4
    for row in rows:
        assert row["code"] == 0 and '"error"' not in row["out"], row
    last = json.loads("{" + rows[-1]["out"].rpartition("}{")[2])
    assert last["timings"]["cache_n"] >= 3

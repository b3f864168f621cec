"""`koffkit evaluate --task`: lm-eval on local task files, with one memory or with the routed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Koffkit, Shipped

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of lm-eval and what it needs

TASK = """
task: rivers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
QUESTIONS = [
    {"question": "river stone lamp", "choices": ["cloud", "seven green"], "answer": 0},
    {"question": "quiet house sings", "choices": ["bright", "slow north"], "answer": 1},
    {"question": "walks over under", "choices": ["river", "stone"], "answer": 0},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / "tasks" / "rivers.yaml").write_text(TASK.format(data=data))
    return tmp_path / "tasks"


def likeliest(shipped: Shipped, memory: list[str | None]) -> float:
    """Accuracy, computed here: the choice whose tokens are the likeliest after the question."""
    import torch

    from koffkit import KoffModel

    model = KoffModel.from_pretrained(shipped.export)
    right = []
    for question, name in zip(QUESTIONS, memory, strict=True):
        scores = []
        for choice in question["choices"]:
            start = model.tokenizer(question["question"])["input_ids"]
            ids = model.tokenizer(f"{question['question']} {choice}")["input_ids"]
            logits = model.logits(torch.tensor([ids]), name)[0].log_softmax(-1)
            scores.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(start), len(ids))))
        right.append(scores.index(max(scores)) == question["answer"])
    return sum(right) / len(right)


def test_a_named_and_a_routed_memory(shipped: Shipped, folder: Path, koffkit: Koffkit) -> None:
    from koffkit import KoffModel

    asked = ["evaluate", shipped.export, "--task", "rivers", "--tasks-folder", folder, "--json"]
    own = koffkit(*asked, "--memory", "north").json
    assert own["results"]["rivers"]["acc"] == pytest.approx(likeliest(shipped, ["north"] * 3))
    assert own["results"]["rivers"]["questions"] == 3
    assert own["picked"] == {}
    model = KoffModel.from_pretrained(shipped.export)
    chosen = [name for name, _ in model.route([question["question"] for question in QUESTIONS])]
    routed = koffkit(*asked, "--memory", "auto").json
    assert routed["results"]["rivers"]["acc"] == pytest.approx(likeliest(shipped, chosen))
    assert sum(routed["picked"].values()) == 6  # every choice of every question
    assert set(routed["picked"]) == {name or "none" for name in chosen}


def test_a_plain_model_and_a_limit(llama: Path, folder: Path, koffkit: Koffkit) -> None:
    result = koffkit(
        "evaluate", llama, "--task", "rivers", "--tasks-folder", folder, "--limit", "2", "--json"
    )
    assert result.json["results"]["rivers"]["questions"] == 2


def test_a_task_that_is_not_there(llama: Path, folder: Path, koffkit: Koffkit) -> None:
    result = koffkit("evaluate", llama, "--task", "river", "--tasks-folder", folder)
    assert result.code == 2
    assert "no such task" in result.err
    assert "rivers" in result.err


def test_the_name_that_lm_eval_knows_us_by(llama: Path) -> None:
    from lm_eval.api.registry import get_model

    from koffkit.runtime.harness import HarnessModel

    assert get_model("koffkit") is HarnessModel


def test_lm_eval_keeps_its_own_models() -> None:
    program = """
import koffkit.runtime.harness
from lm_eval.api.registry import get_model
print(get_model("koffkit").__name__, get_model("hf").__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["HarnessModel", "HFLM"], done.stderr

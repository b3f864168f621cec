"""lm-eval: a local task of multiple choice through koffkit's own model (`koffkit.runtime.harness`), and
through lm-eval's `hf` with `peft=` on the same export, which knows no KV memories.

(A file called lm_eval.py would hide lm-eval from itself.)
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from program import run

PACKAGES = ["torch", "-e.[eval]"]
FORMAT = "hf"
OPTIONS: dict[str, Any] = {}
ANSWERS = "likelihoods"
WHY = {
    (
        "hf",
        "lora",
    ): "with peft= lm-eval makes the embedding as long as the tokenizer, to which transformers adds a "
    "token for a Qwen2 that has none of its name: one more outcome in every softmax; the logits are equal"
}
TASK = """task: local
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
"""


def write_task(place: Path, wanted: dict[str, Any]) -> Path:
    """A folder with the task."""
    rows = [{"context": context, "choices": wanted["choices"]} for context in wanted["contexts"]]
    (place / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    folder = place / "tasks"
    folder.mkdir()
    (folder / "local.yaml").write_text(TASK.replace("FILE", str(place / "data.jsonl")))
    return folder


def likelihoods(model: str, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What lm-eval found, in the order of the task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    known = TaskManager(include_path=str(folder), include_defaults=False)
    more = {"device": "cpu", "batch_size": 1, "log_samples": True, "bootstrap_iters": 0}
    found = simple_evaluate(model, model_args=arguments, tasks=["local"], task_manager=known, **more)
    samples = sorted(found["samples"]["local"], key=lambda sample: sample["doc_id"])
    return {"likelihoods": [[score for score, _ in sample["filtered_resps"]] for sample in samples]}


def main(export: Path, questions: Path, answers: Path) -> None:
    import koffkit.runtime.harness  # noqa: F401  # registers the model `koffkit`

    wanted = json.loads(questions.read_text())
    folder = write_task(answers.parent, wanted)
    settings: dict[str, list[Any]] = {"koffkit": [], "hf": []}
    for asked in wanted["asked"]:
        own, plain = (
            {"path": str(export), "memory": asked["memory"] or "none"},
            {
                "pretrained": str(export / "backbone"),
                "dtype": "float32",
                "trust_remote_code": (export / "backbone" / "modeling_koffkit.py").is_file(),
            },
        )
        settings["koffkit"].append(
            likelihoods("koffkit", own, folder)
            if asked["whole"]
            else {"reason": "it attaches whole memories"}
        )
        if asked["kv"] or asked["neurons"]:
            settings["hf"].append({"reason": "lm-eval's own model takes LoRA alone (peft=)"})
            continue
        more = {"peft": str(export / "memories" / asked["memory"])} if asked["lora"] else {}
        settings["hf"].append(likelihoods("hf", plain | more, folder))
    versions = {name: version(name) for name in ("lm-eval", "transformers", "peft", "torch")}
    answers.write_text(json.dumps({"versions": versions, "settings": settings}))


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    run(main)

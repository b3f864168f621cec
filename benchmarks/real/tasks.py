"""Accuracy on four tasks of lm-eval: the base, the backbone alone, and with the memory that the router picks.

    pip install -e '.[eval]'
    python benchmarks/real/tasks.py --questions FOLDER [EXPORT] [--model FOLDER] [--dtype bfloat16]

FOLDER holds `arc_easy_test.jsonl`, ..., or the same with `.xz`: one question a line, with `question`,
`choices` and `answer` (the index of the right choice). They are unpacked to where the tasks in
`benchmarks/real/tasks` expect them, so that `koffkit evaluate PATH --task arc_easy,piqa,boolq,winogrande
--tasks-folder benchmarks/real/tasks` works afterwards; without an export that is all. Every condition and
task is kept in WORK as JSON, and an interrupted command goes on with what is missing.
"""

from __future__ import annotations

import json
import lzma
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

TASKS = ("arc_easy", "piqa", "boolq", "winogrande")
QUESTIONS = Path("real_data/eval")
"""Where the YAML files of the tasks look for questions."""


def unpack(questions: Path) -> None:
    """The questions of the four tasks, where they are expected."""
    QUESTIONS.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        name = f"{task}_test.jsonl"
        packed = questions / f"{name}.xz"
        if not packed.is_file():
            shutil.copyfile(questions / name, QUESTIONS / name)
            continue
        with lzma.open(packed) as source, open(QUESTIONS / name, "wb") as target:
            shutil.copyfileobj(source, target)


def chance(task: str) -> float:
    """The accuracy of guessing."""
    lines = (QUESTIONS / f"{task}_test.jsonl").read_text(encoding="utf-8").splitlines()
    shares = [1 / len(json.loads(line)["choices"]) for line in lines if line]
    return sum(shares) / len(shares)


def measured(path: Path, memory: str, task: str, kept: Path, options: list[str]) -> dict[str, Any]:
    """What `koffkit evaluate --task` says, or said before."""
    if not kept.is_file():
        command = [sys.executable, "-m", "koffkit", "evaluate", str(path), "--task", task, "--memory", memory]
        command += ["--tasks-folder", str(Path(__file__).with_name("tasks")), "--json", *options]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.with_suffix(".part").write_text(said)
        kept.with_suffix(".part").replace(kept)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def show(rows: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Accuracy with its standard error, and what is kept of the base's accuracy above chance."""
    table = Table("", *TASKS, "above chance, kept", title="accuracy (standard error)")
    guessed = {task: chance(task) for task in TASKS}
    above = {}
    for name, by_task in rows.items():
        cells, accuracies = [], []
        for task in TASKS:
            figures = by_task[task]["results"][task]
            accuracy, count = figures["acc"], figures["questions"]
            accuracies.append(accuracy - guessed[task])
            cells.append(f"{accuracy:.3f} ({math.sqrt(accuracy * (1 - accuracy) / count):.3f})")
        above[name] = sum(accuracies)
        table.add_row(name, *cells, f"{above[name] / above['base']:.1%}")
    table.add_row("guessing", *(f"{guessed[task]:.3f}" for task in TASKS), "0.0%")
    Console(width=120).print(table)
    for name, by_task in rows.items():
        picked = {task: by_task[task]["picked"] for task in TASKS if by_task[task]["picked"]}
        for task, names in picked.items():
            click.echo(f"{name}, {task}: the router picked {names}")


@click.command()
@click.option("--questions", type=click.Path(path_type=Path, exists=True), required=True)
@click.argument("export", type=click.Path(path_type=Path, exists=True), required=False)
@click.option(
    "--model", type=click.Path(path_type=Path), default="real_data/SmolLM2-135M-Instruct", show_default=True
)
@click.option("--memories", default="none,auto", show_default=True, help="Separated by commas.")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--limit", type=int, help="The most questions of each task; by default all.")
@click.option("--work", type=click.Path(path_type=Path), default="runs/real/tasks", show_default=True)
def main(
    questions: Path,
    export: Path | None,
    model: Path,
    memories: str,
    dtype: str,
    limit: int | None,
    work: Path,
) -> None:
    """Print the table."""
    unpack(questions)
    if export is None:
        return
    options = ["--dtype", dtype, "--batch-size", "16"] + ([] if limit is None else ["--limit", str(limit)])
    kept = work / f"{dtype}-{limit or 'all'}"
    conditions = {"base": (model, "none", kept / "base")}
    for memory in memories.split(","):
        name = "backbone alone" if memory == "none" else f"memory {memory}"
        conditions[name] = (export, memory, kept / export.resolve().name / memory)
    rows = {
        name: {task: measured(path, memory, task, folder / f"{task}.json", options) for task in TASKS}
        for name, (path, memory, folder) in conditions.items()
    }
    show(rows)


if __name__ == "__main__":
    main()

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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Accuracy:
    """Of one condition on one task."""

    share: float
    questions: int
    guessing: float

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.share * (1 - self.share) / self.questions)

    @property
    def above(self) -> float:
        """What guessing does not explain."""
        return self.share - self.guessing


def show(rows: dict[str, dict[str, Accuracy]]) -> None:
    """Accuracy with its standard error, and what is kept of the base's accuracy above chance: mean over the
    tasks in which the base is more than two standard errors above it."""
    base = rows["base"]
    counted = [task for task in TASKS if base[task].above > 2 * base[task].error]
    table = Table("", *TASKS, "above chance, kept", title="accuracy (standard error)")
    for name, row in rows.items():
        cells = [f"{row[task].share:.3f} ({row[task].error:.3f})" for task in TASKS]
        kept = [row[task].above / base[task].above for task in counted]
        table.add_row(name, *cells, " ".join(f"{share:.1%}" for share in [sum(kept) / len(kept), *kept]))
    table.add_row("guessing", *(f"{base[task].guessing:.3f}" for task in TASKS), "0 %")
    Console(width=130).print(table)
    click.echo(f"kept: the mean, then {', '.join(counted)}, where the base is above chance")


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
    rows: dict[str, dict[str, Accuracy]] = {}
    for name, (path, memory, folder) in conditions.items():
        rows[name] = {}
        for task in TASKS:
            found = measured(path, memory, task, folder / f"{task}.json", options)
            figures = found["results"][task]
            rows[name][task] = Accuracy(figures["acc"], figures["questions"], chance(task))
            if found["picked"]:
                click.echo(f"{name}, {task}: the router picked {found['picked']}")
    show(rows)


if __name__ == "__main__":
    main()

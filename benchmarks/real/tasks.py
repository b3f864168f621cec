"""Questions for the tasks in `benchmarks/real/tasks`, put where they expect them.

    python benchmarks/real/tasks.py --questions FOLDER
    koffkit evaluate real_data/SmolLM2-135M-Instruct --task arc_easy,piqa,boolq,winogrande \\
        --tasks-folder benchmarks/real/tasks --limit 200

FOLDER holds `arc_easy_test.jsonl`, ..., or the same with `.xz`: one question a line, with `question`,
`choices` and `answer` (the index of the right choice).
"""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

import click

TASKS = ("arc_easy", "piqa", "boolq", "winogrande")


@click.command()
@click.option("--questions", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--output", type=click.Path(path_type=Path), default="real_data/eval", show_default=True)
def main(questions: Path, output: Path) -> None:
    """Unpack the questions of the four tasks."""
    output.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        name = f"{task}_test.jsonl"
        packed = questions / f"{name}.xz"
        if not packed.is_file():
            shutil.copyfile(questions / name, output / name)
            continue
        with lzma.open(packed) as source, open(output / name, "wb") as target:
            shutil.copyfileobj(source, target)
        click.echo(output / name)


if __name__ == "__main__":
    main()

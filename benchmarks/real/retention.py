"""Retention text for the tasks of `tasks.py`: questions of training sets, and prose that belongs to no topic.

    python benchmarks/real/retention.py --corpus FOLDER --output real_data/retention.txt
    python benchmarks/real/tables.py --recipe trained --retention real_data/retention.txt ...

FOLDER holds `arc_easy_train.jsonl`, `arc_challenge_train.jsonl` (one question a line, with `question`,
`choices` and `answer`, the index of the right choice) and `openstax_other.txt`, or the same with `.xz`. Eight
questions with their right answers, written as lm-eval asks them, are a document; after four of them comes one
of prose. No question of a test set is read.
"""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click

QUESTIONS = ("arc_easy_train.jsonl", "arc_challenge_train.jsonl")
PROSE = "openstax_other.txt"
TOGETHER = 8
"""Questions in a document."""


def text_of(corpus: Path, name: str) -> str:
    """A file of the corpus, packed or not."""
    packed = corpus / f"{name}.xz"
    if not packed.is_file():
        return (corpus / name).read_text(encoding="utf-8")
    return lzma.decompress(packed.read_bytes()).decode("utf-8")


def question(line: str) -> str:
    """A question with its right answer."""
    asked = json.loads(line)
    return f"Question: {asked['question']}\nAnswer: {asked['choices'][asked['answer']]}"


def documents(corpus: Path) -> Iterator[str]:
    """Four of questions, one of prose, and so on until the questions are used up."""
    lines = list(chain.from_iterable(text_of(corpus, name).splitlines() for name in QUESTIONS))
    random.Random(0).shuffle(lines)
    asked = ["\n".join(map(question, lines[at : at + TOGETHER])) for at in range(0, len(lines), TOGETHER)]
    prose = text_of(corpus, PROSE).strip().split("\n\n")
    random.Random(0).shuffle(prose)
    for place, document in enumerate(asked):
        yield document
        if place % 4 == 3:
            yield prose[place // 4]


@click.command()
@click.option("--corpus", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--output", type=click.Path(path_type=Path), default="real_data/retention.txt", show_default=True
)
def main(corpus: Path, output: Path) -> None:
    """Write the text."""
    output.parent.mkdir(parents=True, exist_ok=True)
    written = list(documents(corpus))
    output.write_text("\n\n".join(written) + "\n", encoding="utf-8")
    click.echo(f"{output}: {len(written)} documents, {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

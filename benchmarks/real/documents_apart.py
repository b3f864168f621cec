"""Perplexity of held-out text with and without attention across packed documents.

`python benchmarks/real/documents_apart.py --model FOLDER --corpus FOLDER`: a folder with a text file for each
topic, blank lines between documents. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from koffkit.data.holdout import held_out
from koffkit.data.sources import documents
from koffkit.recipe.schema import Source
from koffkit.runtime.perplexity import perplexity

HOLDOUT = 0.05


def held_out_documents(path: Path, count: int) -> list[str]:
    """The first held-out documents of a file, as a recipe with seed 0 has them."""
    texts = enumerate(documents(Source(text=str(path)), path.parent, "--corpus"))
    return list(islice((text for number, text in texts if held_out(0, number, HOLDOUT)), count))


def in_turn(groups: list[list[str]]) -> Iterator[str]:
    """One text of each group, again and again, until a group has no more."""
    for part in zip(*groups, strict=False):
        yield from part


def lines_of(texts: list[str]) -> list[str]:
    """Lines that are more than a heading."""
    return [line for text in texts for line in text.split("\n") if len(line) > 40]


def cut(texts: Iterable[str], characters: int) -> str:
    """Whole documents with a blank line between them, about so many characters."""
    kept: list[str] = []
    for text in texts:
        kept.append(text)
        if sum(map(len, kept)) >= characters:
            break
    return "\n\n".join(kept)


def texts_of(corpus: Path, characters: int) -> dict[str, str]:
    """Held-out text in three arrangements."""
    topics = [held_out_documents(path, 12) for path in sorted(corpus.glob("*.txt*"))]
    arranged = {
        "documents of several topics in turn": in_turn(topics),
        "paragraphs of several topics in turn": in_turn([lines_of(texts) for texts in topics]),
        "paragraphs in the order of their text": lines_of([text for topic in topics for text in topic[:2]]),
    }
    return {name: cut(texts, characters) for name, texts in arranged.items()}


def measure(model: Path, text: str, length: int) -> dict[str, float]:
    """Tokens and both perplexities of a text whose documents blank lines separate."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text, encoding="utf-8")
        across, apart = (
            perplexity(
                model,
                str(path),
                None,
                sequence_length=length,
                batch_size=4,
                attend_across_documents=answer,
            )
            for answer in (True, False)
        )
    return {"tokens": across["tokens"], "across": across["perplexity"], "apart": apart["perplexity"]}


@click.command(help=__doc__)
@click.option("--model", required=True, type=click.Path(path_type=Path))
@click.option("--corpus", required=True, type=click.Path(path_type=Path))
@click.option("--characters", default=45_000, help="Of every text; four or five are a token.")
@click.option("--length", default=512, help="Tokens of a sequence.")
def main(model: Path, corpus: Path, characters: int, length: int) -> None:
    for name, text in texts_of(corpus, characters).items():
        found, documents = measure(model, text, length), 1 + text.count("\n\n")
        click.echo(
            f"| {name} | {documents} | {found['tokens']:,} | {found['across']:.2f} | {found['apart']:.2f} |"
        )


if __name__ == "__main__":
    main()

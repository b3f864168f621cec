"""How good is the default router on labelled text, and how fast?

    python benchmarks/router.py --data FOLDER           # one text file a label, documents separated by blank lines

Documents are cut into pieces; all pieces of one document are on the same side of the split, so that nothing of it was seen.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table


def pieces(text: str, size: int) -> list[str]:
    """Consecutive parts of `size` characters; a short rest is dropped."""
    return [text[start : start + size] for start in range(0, max(1, len(text) - size // 2), size)]


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--characters", default=512, show_default=True, help="Size of a piece.")
@click.option("--documents", default=2000, show_default=True, help="Documents per label.")
@click.option("--pieces-per-document", "most", default=8, show_default=True)
@click.option("--held-out", default=0.2, show_default=True, help="Share of the documents.")
@click.option("--epochs", default=4, show_default=True)
@click.option("--buckets", default=65536, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(data: Path, characters: int, documents: int, most: int, held_out: float, epochs: int, buckets: int, seed: int) -> None:
    from koffkit.data.corpus import held_out as is_held_out
    from koffkit.data.sources import documents as read
    from koffkit.recipe.schema import Source
    from koffkit.router.training import assess, fit

    train: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    for path in sorted(data.iterdir()):
        label = path.name.split(".")[0]
        for number, text in enumerate(read(Source(text=str(path.resolve()), max_documents=documents), Path.cwd(), label)):
            side = test if is_held_out(seed, number, held_out) else train
            side.setdefault(label, []).extend(pieces(text, characters)[:most])
    router = fit(train, num_buckets=buckets, epochs=epochs, min_confidence=0.0, seed=seed)
    figures = assess(router, test)
    table = Table(
        title=f"{figures['documents']:,} held-out pieces of {characters} characters, {sum(map(len, train.values())):,} to learn from"
    )
    for column in ("label", *train):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, counts in figures["confusion"].items():
        table.add_row(label, *(str(counts.get(other, "")) for other in train))
    Console(width=120).print(table)
    click.echo(json.dumps({key: round(value, 5) for key, value in figures.items() if key != "confusion"}))


if __name__ == "__main__":
    main()

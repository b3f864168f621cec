"""How good are routers on labelled text, and how fast?

    python benchmarks/router.py --data FOLDER                              # the default; one text file a
    label, a blank line
                                                                           # between documents
    python benchmarks/router.py --data FOLDER --kind encoder --model PATH  # an encoder, fine-tuned
    python benchmarks/router.py --data FOLDER --kind probe                 # a probe on a causal model, by
    default the embedded one

Documents are cut into pieces; all pieces of one document are on the same side of the split, so that nothing
of it was seen.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table


def pieces(text: str, size: int) -> list[str]:
    """Consecutive parts of `size` characters; a short rest is dropped."""
    return [text[start : start + size] for start in range(0, max(1, len(text) - size // 2), size)]


def encoder(texts: dict[str, list[str]], folder: Path | None, epochs: int, seed: int) -> Any:
    """Fine-tuned as a recipe's default options say."""
    from koffkit.router.encoder import fit_encoder
    from koffkit.stages.route import RouteOptions

    if folder is None:
        raise click.UsageError("--kind encoder needs --model FOLDER")
    route = RouteOptions()
    return fit_encoder(
        texts,
        folder,
        epochs=epochs,
        rate=route.lr,
        batch_size=route.batch_size,
        max_tokens=route.max_tokens,
        min_confidence=0.0,
        seed=seed,
        device="cpu",
    )


def probe(texts: dict[str, list[str]], folder: Path | None, layer: int | None) -> Any:
    """On the hidden states of an unpruned model."""
    from koffkit.checkpoint.files import load_tokenizer
    from koffkit.embedded import path as embedded
    from koffkit.model.pooling import pooled_features
    from koffkit.model.student import Student, load_frozen
    from koffkit.router.probe import fit_probe
    from koffkit.stages.route import RouteOptions

    folder, route = folder or embedded("base"), RouteOptions()
    from koffkit.checkpoint.spec import ModelSpec

    spec = ModelSpec.open(folder)
    student = Student(load_frozen(str(folder), "float32"), spec, None, None)
    layer = student.shape.num_layers // 2 if layer is None else layer
    hidden = partial(student.hidden_states, layer=layer)
    features = pooled_features(hidden, load_tokenizer(folder), route.max_tokens, route.batch_size, "cpu")
    return fit_probe(texts, features, layer=layer, max_tokens=route.max_tokens, min_confidence=0.0)


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--characters", default=512, show_default=True, help="Size of a piece.")
@click.option("--documents", default=2000, show_default=True, help="Documents per label.")
@click.option("--pieces-per-document", "most", default=8, show_default=True)
@click.option("--held-out", default=0.2, show_default=True, help="Share of the documents.")
@click.option("--limit", type=int, help="Pieces per label to learn from.")
@click.option(
    "--kind", type=click.Choice(["ngrams", "encoder", "probe"]), default="ngrams", show_default=True
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True),
    help="Of kinds encoder and probe: a checkpoint folder.",
)
@click.option("--layer", type=int, help="Of kind probe.  [default: the middle one]")
@click.option("--epochs", default=4, show_default=True)
@click.option("--buckets", default=65536, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    data: Path,
    characters: int,
    documents: int,
    most: int,
    held_out: float,
    limit: int | None,
    kind: str,
    model: Path | None,
    layer: int | None,
    epochs: int,
    buckets: int,
    seed: int,
) -> None:
    from koffkit.data.holdout import held_out as is_held_out
    from koffkit.data.sources import documents as read
    from koffkit.recipe.schema import Source
    from koffkit.router.assess import assess

    train: dict[str, list[str]] = {}
    test: dict[str, list[str]] = {}
    for path in sorted(data.iterdir()):
        label = path.name.split(".")[0]
        for number, text in enumerate(
            read(Source(text=str(path.resolve()), max_documents=documents), Path.cwd(), label)
        ):
            side = test if is_held_out(seed, number, held_out) else train
            side.setdefault(label, []).extend(pieces(text, characters)[:most])
    if limit:
        train = {label: texts[:: max(1, len(texts) // limit)][:limit] for label, texts in train.items()}
    if kind == "ngrams":
        from koffkit.router.ngrams import fit_ngrams

        router: Any = fit_ngrams(train, num_buckets=buckets, epochs=epochs, min_confidence=0.0, seed=seed)
    else:
        router = encoder(train, model, epochs, seed) if kind == "encoder" else probe(train, model, layer)
    figures = assess(router, test)
    table = Table(
        title=f"{figures['documents']:,} held-out pieces of {characters} characters, "
        f"{sum(map(len, train.values())):,} to learn from"
    )
    for column in ("label", *train):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, counts in figures["confusion"].items():
        table.add_row(label, *(str(counts.get(other, "")) for other in train))
    Console(width=120).print(table)
    click.echo(json.dumps({key: round(value, 5) for key, value in figures.items() if key != "confusion"}))


if __name__ == "__main__":
    main()

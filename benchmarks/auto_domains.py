"""Domains without labels: how pure are the groups that `domains: {auto: ...}` makes of shuffled, labelled
text?

python benchmarks/auto_domains.py                       # the embedded facts in six languages
python benchmarks/auto_domains.py --data FOLDER         # one text file a label, documents separated by blank
lines
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

FACTS = ("de", "en", "es", "fr", "it", "pt")


def labelled(data: Path | None, limit: int | None) -> list[tuple[str, str]]:
    """`(document, label)`, shuffled."""
    from koffkit.data.sources import documents
    from koffkit.recipe.schema import Source

    if data is None:
        sources = {name: Source(jsonl=f"embedded:facts/{name}.jsonl") for name in FACTS}
    else:
        sources = {
            path.name.split(".")[0]: Source(text=str(path.resolve()))
            for path in sorted(data.iterdir())
            if path.is_file()
        }
    rows = []
    for name, source in sources.items():
        texts = list(documents(source, Path.cwd(), name))
        random.Random(0).shuffle(texts)
        rows += [(text, name) for text in texts[:limit]]
    random.Random(1).shuffle(rows)
    return rows


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--base", default="embedded:base", show_default=True)
@click.option("--layer", default=0, show_default=True)
@click.option("--limit", type=int, help="Documents per label.")
@click.option("--seed", default=0, show_default=True)
def main(data: Path | None, base: str, layer: int, limit: int | None, seed: int) -> None:
    from koffkit.checkpoint.spec import ModelSpec
    from koffkit.cli.console import quiet_libraries
    from koffkit.data.domains import resolve_domains
    from koffkit.hub import locate
    from koffkit.progress import Silent
    from koffkit.recipe.load import load_recipe
    from koffkit.run.folder import RunFolder

    quiet_libraries()
    rows = labelled(data, limit)
    label_of = dict(rows)
    count = len(set(label_of.values()))
    with tempfile.TemporaryDirectory() as root:
        mixed = Path(root) / "mixed.jsonl"
        mixed.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in rows), encoding="utf-8")
        auto = json.dumps({"auto": {"jsonl": str(mixed), "count": count, "layer": layer}})
        loaded = load_recipe("quickstart", [f"base.model={base}", f"seed={seed}", f"domains={auto}"])
        begin = time.perf_counter()
        run = RunFolder(Path(root) / "run")
        resolved = resolve_domains(
            loaded, run, ModelSpec.open(locate(loaded.recipe.base.model, loaded.root)), Silent()
        )
        seconds = time.perf_counter() - begin
        groups = {
            name: Counter(
                label_of[json.loads(line)["text"]]
                for line in run.domain_text(name).read_text(encoding="utf-8").splitlines()
            )
            for name in resolved.recipe.domain_names
        }
    labels = sorted(set(label_of.values()))
    table = Table(title=f"{len(rows):,} documents, {count} groups, {seconds:.1f} s")
    for column in ("group", *labels):
        table.add_column(column, justify="left" if column == "group" else "right")
    for name, counts in groups.items():
        table.add_row(name, *(str(counts[label] or "") for label in labels))
    Console(width=120).print(table)
    purity = sum(max(counts.values()) for counts in groups.values()) / len(rows)
    click.echo(
        json.dumps(
            {
                "purity": round(purity, 4),
                "documents": len(rows),
                "groups": count,
                "layer": layer,
                "seed": seed,
            }
        )
    )


if __name__ == "__main__":
    main()

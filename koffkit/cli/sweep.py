"""`koffkit sweep`."""

from __future__ import annotations

from pathlib import Path

import click

from .console import RichProgress
from .study import carry_out, numbers, study_options


@click.command("sweep")
@click.argument("recipe")
@click.option(
    "--set",
    "sets",
    multiple=True,
    required=True,
    metavar="a.b=V1,V2,...",
    help="Values of a field; several fields: every combination.",
)
@study_options
def command(
    recipe: str,
    sets: tuple[str, ...],
    seeds: str,
    output: Path | None,
    csv_file: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run RECIPE once for every combination of values, and print one table, averaged over seeds. Finished
    runs are kept, interrupted ones continued."""
    from ..recipe.load import load_recipe
    from ..studies.points import points
    from ..studies.study import sweep

    places = points(sets)
    loaded = load_recipe(recipe, next(iter(places.values())))
    folder = output or Path("runs") / f"{loaded.recipe.name}-sweep"
    entries = sweep(loaded, places, numbers(seeds), folder, RichProgress())
    carry_out(entries, folder, f"{loaded.recipe.name}: sweep", {}, csv_file, plot, as_json)

"""`koffkit ablate`."""

from __future__ import annotations

from pathlib import Path

import click

from .console import RichProgress, say
from .study import carry_out, numbers, study_options


@click.command("ablate")
@click.argument("recipe")
@click.option(
    "--rows",
    help="Rows by name, separated by commas; --list shows them.  [default: the baselines that make sense for "
    "RECIPE]",
)
@click.option("--list", "show", is_flag=True, help="Only list the rows.")
@click.option(
    "--set", "overrides", multiple=True, metavar="a.b=VALUE", help="Change a field in every row; repeatable."
)
@study_options
def command(
    recipe: str,
    rows: str | None,
    show: bool,
    overrides: tuple[str, ...],
    seeds: str,
    output: Path | None,
    csv_file: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run RECIPE and its baselines, and print one table: each row is the recipe with a named change, averaged
    over seeds. Finished runs are kept, interrupted ones continued."""
    from ..recipe.load import load_recipe
    from ..studies.rows import ROWS
    from ..studies.study import ablation

    if show:
        for name, row in ROWS.items():
            say(f"{name:<28} {row.meaning}")
        return
    loaded = load_recipe(recipe, overrides)
    chosen = None if rows is None else [name.strip() for name in rows.split(",")]
    folder = output or Path("runs") / f"{loaded.recipe.name}-ablation"
    entries = ablation(loaded, chosen, numbers(seeds), folder, RichProgress())
    meanings = {entry.row: ROWS[entry.row].meaning for entry in entries}
    carry_out(entries, folder, f"{loaded.recipe.name}: ablation", meanings, csv_file, plot, as_json)

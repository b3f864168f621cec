"""A domain added later against the same domain trained jointly with the others, on the embedded default.

    python benchmarks/memory_add.py [--domain pt]... [--set a.b=VALUE]... [--runs runs] [--exports exports]

The joint run is the quickstart recipe with all six languages; for each domain asked for, another one goes
without it, is exported, and gets the memory with `koffkit memory add` at its default settings. Finished runs
and exports of the same names are used again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import click
import yaml

from koffkit.run.state import RunState


def compress(run: Path, overrides: list[str]) -> RunState:
    from koffkit.cli.console import RichProgress
    from koffkit.recipe.load import load_recipe
    from koffkit.stages.engine import run_recipe

    return run_recipe(load_recipe("quickstart", overrides), run, resume=run.exists(), progress=RichProgress())


def without(domain: str, runs: Path, exports: Path) -> Path:
    """The export of a run that never saw the domain, fresh."""
    from koffkit.exporters import export

    from koffkit.cli.console import RichProgress
    from koffkit.recipe.builtin import shipped

    run, output = runs / f"memory-add-without-{domain}", exports / f"memory-add-without-{domain}"
    domains = yaml.safe_load(shipped()["quickstart"].read_text(encoding="utf-8"))["domains"]
    del domains[domain]
    compress(run, [f"domains={json.dumps(domains)}"])
    shutil.rmtree(output, ignore_errors=True)
    export(run, output, progress=RichProgress())
    return output


@click.command(help=__doc__)
@click.option("--domain", "domains", multiple=True, default=["pt"], show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="a.b=VALUE", help="For `memory add`.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--exports", type=click.Path(path_type=Path), default=Path("exports"), show_default=True)
def main(domains: tuple[str, ...], overrides: tuple[str, ...], runs: Path, exports: Path) -> None:
    from koffkit.cli.console import RichProgress, quiet_libraries
    from koffkit.memories.add import add_memory

    quiet_libraries()
    exports.mkdir(exist_ok=True)
    joint = compress(runs / "memory-add-joint", []).results["domains"]
    rows = []
    for domain in domains:
        export = without(domain, runs, exports)
        begin = time.monotonic()
        source = {
            "jsonl": [f"embedded:facts/{domain}.jsonl"],
            "prompt_field": "prompt",
            "answer_field": "answer",
        }
        result = add_memory(export, domain, source, overrides=overrides, progress=RichProgress())
        added, seconds = result["figures"], time.monotonic() - begin
        rows.append(
            {
                "domain": domain,
                "joint": joint[domain]["matched"],
                "added": added["matched"],
                "seconds": seconds,
            }
        )
        rows[-1] |= {
            "backbone": {"joint": joint[domain]["backbone"], "added": added["backbone"]},
            "routing": result["routing"],
        }
    for row in rows:
        ratio = row["added"]["kl"] / row["joint"]["kl"] - 1
        click.echo(
            f"{row['domain']}: KL {row['joint']['kl']:.4f} joint, {row['added']['kl']:.4f} added "
            f"({ratio:+.1%}); recall "
            f"{row['joint']['recall']:.1%} joint, {row['added']['recall']:.1%} added; {row['seconds']:.0f} "
            "s; "
            f"the router picks it for {row['routing']['recognised']:.1%} of its own texts and "
            f"{row['routing']['mistaken']:.1%} of others"
        )
    (runs / "memory-add.json").write_text(
        json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

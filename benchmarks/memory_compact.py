"""What compacting costs on the embedded default: bytes and KL of all six memories of the quickstart, on each
domain's held-out tokens.

    python benchmarks/memory_compact.py [--run runs/make-quickstart] [--export exports/make-quickstart]
    [--tokens 16384]

Compares `koffkit memory compact`'s settings; the first is its default. Make run and export with `make
quickstart`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import click

SETTINGS: dict[str, dict[str, Any]] = {
    "int6": {},
    "int6, energy .995": {"energy": 0.995},
    "int8": {"dtype": "int8"},
    "int8, rank 24": {"dtype": "int8", "rank": 24},
    "int8, energy .99": {"dtype": "int8", "energy": 0.99},
    "float16": {"dtype": "float16"},
}


def measure(
    run: Path, export_path: Path, scratch: Path, settings: dict[str, Any], tokens: int
) -> dict[str, Any]:
    from koffkit.artefact.export import open_export
    from koffkit.data.packing import PackedTokens
    from koffkit.memories.compact_bundle import Options, write_compact
    from koffkit.memories.measure import kl_before_and_after
    from koffkit.memories.recipe import find_base

    export = open_export(export_path)
    base, length = find_base(export, None), int(export.manifest.recipe["sequence_length"])
    rows = {}
    for bundle in export.bundles():
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        small = write_compact(bundle, export, Options(**settings), scratch)
        heldout = PackedTokens(run / "data" / f"{bundle.domain}.heldout.bin")
        batches = heldout.sequences(length, 16, tokens)
        loss = kl_before_and_after(export, bundle, small, base, batches)
        rows[bundle.domain] = {"bytes_before": bundle.bytes, "bytes": small.bytes, **loss}
    shutil.rmtree(scratch)
    kl = [fmean(row[key] for row in rows.values()) for key in ("before", "after")]
    size = sum(row["bytes"] for row in rows.values())
    router = 0 if export.router is None else sum(path.stat().st_size for path in export.router.iterdir())
    return {
        "kl_before": kl[0],
        "kl_after": kl[1],
        "kl_more": kl[1] / kl[0] - 1,
        "bytes": size,
        "ratio": size / sum(row["bytes_before"] for row in rows.values()),
        "with_backbone": size + export.manifest.backbone.bytes,
        "router": router,
        "base": export.manifest.base.bytes,
        "domains": rows,
    }


@click.command(help=__doc__)
@click.option(
    "--run", type=click.Path(path_type=Path), default=Path("runs/make-quickstart"), show_default=True
)
@click.option(
    "--export", type=click.Path(path_type=Path), default=Path("exports/make-quickstart"), show_default=True
)
@click.option(
    "--tokens", default=16384, show_default=True, help="At most so many held-out tokens for each domain."
)
def main(run: Path, export: Path, tokens: int) -> None:
    from koffkit.cli.console import quiet_libraries

    quiet_libraries()
    rows = {}
    for name, settings in SETTINGS.items():
        row = rows[name] = measure(run, export, run.with_name(f"{run.name}-compact"), settings, tokens)
        click.echo(
            f"{name:18} KL {row['kl_before']:.5f} -> {row['kl_after']:.5f} ({row['kl_more']:+.2%}), "
            f"{row['bytes']:,} bytes "
            f"({row['ratio']:.1%}); with backbone {row['with_backbone']:,}, and router "
            f"{row['with_backbone'] + row['router']:,}, base {row['base']:,}"
        )
    run.with_name("memory-compact.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

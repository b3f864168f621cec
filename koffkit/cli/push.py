"""`koffkit push`."""

from __future__ import annotations

from pathlib import Path

import click

from .console import RichProgress, emit, json_option, say


@click.command("push")
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--dry-run", is_flag=True, help="Say what would go where, and upload nothing.")
@click.option(
    "--split",
    is_flag=True,
    help="The backbone to OWNER/NAME, each memory to OWNER/NAME-memory-DOMAIN, where PEFT finds its adapter.",
)
@click.option("--public", is_flag=True, help="What is made now can be seen by everybody.  [default: private]")
@click.option("--license", "license_name", help="Of the cards, where the files of the base name none.")
@json_option
def command(
    export: Path,
    repo: str,
    dry_run: bool,
    split: bool,
    public: bool,
    license_name: str | None,
    as_json: bool,
) -> None:
    """Upload EXPORT to the hub, after every byte of it was checked. Each repository gets one commit."""
    from ..runtime.push import plan_push, push, refusals

    uploads = plan_push(export, repo, split=split, license_name=license_name)
    progress = RichProgress()
    if not dry_run:
        with progress.live():
            done = push(
                export, repo, split=split, public=public, license_name=license_name, progress=progress
            )
        if as_json:
            emit({"repositories": done})
            return
        for name, address in done.items():
            say(f"{name}: {address}")
        return
    refused = refusals(export, public=public, license_name=license_name)
    if as_json:
        emit({"would_upload": {one.repo: one.sizes for one in uploads}, "refused": refused})
        return
    for one in uploads:
        sizes = one.sizes
        say(f"{one.repo}: {len(sizes)} files, {sum(sizes.values()):,} bytes")
        for name, size in sizes.items():
            say(f"  {name}  {size:,}")
    for problem in refused:
        say(f"would be refused: {problem}", err=True)

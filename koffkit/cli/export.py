"""`koffkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .console import RichProgress, emit, json_option, quiet_libraries, stdout

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..exporters import Exporter


@click.command("export")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    help="Exporter, as installed.  [default: those under `export` in the recipe, else hf]",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder to make.  [default: exports/RUN-FORMAT]"
)
@click.option(
    "--merge",
    metavar="NAME",
    help="Make the memory NAME part of the weights: one dense checkpoint of backbone and this memory.",
)
@click.option(
    "--keep-removed",
    is_flag=True,
    help="Keep all that the backbone lacks in EXPORT/removed, for `koffkit restore`.",
)
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    help="Most bytes of a file of weights, such as 5GB.  [default: the files of the base]",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8", "int4"]),
    help="Weights of this type, by the format's own tool. With --merge the memory goes in first.",
)
@click.option(
    "-o",
    "--option",
    "more",
    metavar="NAME=VALUE",
    multiple=True,
    help="An option of the format, as under `export` in a recipe: `-o type=q8_0`. May be given again.",
)
@click.option(
    "--base", type=click.Path(path_type=Path), help="The unpruned model.  [default: where the run found it]"
)
@json_option
def command(
    run: Path | None,
    format_: str | None,
    output: Path | None,
    merge: str | None,
    keep_removed: bool,
    max_shard_size: str | None,
    quantize: str | None,
    more: tuple[str, ...],
    base: Path | None,
    as_json: bool,
) -> None:
    """Slice the finished RUN (by default the newest under ./runs) into artefacts that other software
    loads."""
    from ..run.folder import RunFolder, newest_finished

    folder, given = RunFolder(run) if run is not None else newest_finished(), _given(more)
    named = {"merge": merge, "keep_removed": keep_removed or None, "max_shard_size": max_shard_size}
    given |= {name: value for name, value in named.items() if value is not None}
    jobs = _jobs(folder.require_finished().recipe, format_, given)
    if output is not None and len(jobs) > 1:
        raise UsageError(
            f"--output names one folder, but the recipe asks for {', '.join(jobs)}; name one of them with "
            "--format."
        )
    from ..storage.publish import require_free

    exporters, options = _checked(jobs, quantize)
    ending = "" if merge is None else f"-{merge}"
    stem = folder.path.resolve().name
    targets = {name: output or Path("exports") / f"{stem}-{name}{ending}" for name in jobs}
    for target in targets.values():
        require_free(target)
    quiet_libraries()
    from ..exporters import checks_base
    from ..run.finished import FinishedRun

    progress = RichProgress()
    with progress.live():
        checks = all(map(checks_base, exporters.values()))
        finished = FinishedRun.open(folder, base, progress, check_later=checks)
        results = [
            exporter.export(finished, targets[name], options[name], progress)
            for name, exporter in exporters.items()
        ]
    if as_json:
        emit(results[0] if len(results) == 1 else {"exports": results})
        return
    for result in results:
        _print(result)


def _checked(
    jobs: dict[str, dict[str, Any]], quantize: str | None
) -> tuple[dict[str, Exporter], dict[str, BaseModel]]:
    """The exporter of each format, and its options, those that `--quantize` stands for among them."""
    from ..exporters import check_options, find, quantized

    exporters = {name: find(name) for name in jobs}
    for name, exporter in exporters.items():
        more = {} if quantize is None else quantized(name, exporter, quantize)
        twice = sorted(more.keys() & jobs[name].keys())
        if twice:
            raise UsageError(
                f"--quantize {quantize}: it is {twice[0]}={more[twice[0]]} of format {name}, which is given, "
                "too; leave one of them out."
            )
        jobs[name] = jobs[name] | more
    return exporters, {name: check_options(name, exporters[name], own) for name, own in jobs.items()}


def _given(more: tuple[str, ...]) -> dict[str, Any]:
    """What `-o NAME=VALUE` says; values are YAML."""
    from ..recipe.overrides import shown
    from ..recipe.yaml_text import read_value

    given: dict[str, Any] = {}
    for option in more:
        name, equals, text = option.partition("=")
        if not equals or not name:
            raise UsageError(f"-o {shown(option)}: write it as NAME=VALUE, for example -o type=q8_0.")
        if name in given:
            raise UsageError(f"-o {shown(option)}: {shown(name)} is given twice; give it once.")
        given[name] = read_value(text, f"-o {shown(option)}")
    return given


def _jobs(recipe: dict[str, Any], wanted: str | None, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options by format: all formats that the recipe lists, or the wanted one with the recipe's options.

    Args:
        given: options from the command line; without a wanted format they are for hf.
    """
    jobs = _listed(recipe, wanted or ("hf" if given else None))
    return {name: options | given for name, options in jobs.items()}


def _listed(recipe: dict[str, Any], wanted: str | None) -> dict[str, dict[str, Any]]:
    listed = {
        spec["format"]: {key: value for key, value in spec.items() if key != "format"}
        for spec in recipe["export"]
    }
    if wanted is not None:
        return {wanted: listed.get(wanted, {})}
    return listed or {"hf": {}}


def _print(result: dict[str, Any]) -> None:
    if "backbone" not in result or "parity" not in result:  # a format of another package
        stdout().print(f"{result['output']}: done.", markup=False)
        return
    backbone, parity = result["backbone"], result["parity"]
    merged = result.get("merged")
    what = f"{len(result['domains'])} memories" if merged is None else _merged(merged)
    stdout().print(
        f"{result['output']}: {backbone['parameters']:,} parameters, {backbone['bytes']:,} bytes "
        f"({backbone['class']}), {what}; largest logit difference {max(parity['max_abs'].values()):.1e} "
        f"(rounding to float32: {max(parity['noise_floor']['max_abs'].values()):.1e}).",
        markup=False,
    )


def _merged(merged: dict[str, Any]) -> str:
    halves = " and ".join(merged["halves"])
    missing = f", without its {' and '.join(merged['left_out'])}" if merged["left_out"] else ""
    missing += f", its {' and '.join(merged['beside'])} beside them" if merged.get("beside") else ""
    return f"memory {merged['domain']} merged ({halves}{missing})"

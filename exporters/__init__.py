"""Exporters: from a finished run to artefacts that other software loads.

They are registered under the entry points `koffkit.exporters`, here or in another package. An exporter
receives a `FinishedRun`, never live objects; `koffkit.exporters.toolkit` has what most exporters need.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ValidationError

from .. import plugins
from ..errors import UsageError
from ..progress import Progress
from ..run.finished import FinishedRun
from ..run.folder import RunFolder
from ..storage.record import first_problem

if TYPE_CHECKING:
    from ..artefact.routes import Carries


class Exporter(Protocol):
    """An export format. The entry point names a class like this one, which is made without arguments.

    Attributes:
        Options: a pydantic model of the keys beside `format` under `export` in a recipe; it should forbid
            unknown fields (`koffkit.strict.StrictModel` does).

    An exporter may also have a class attribute `carries` (`koffkit.artefact.routes.Carries`): what it can
    carry. Then a recipe whose result it cannot carry is refused before anything is learned, and `koffkit
    inspect` says for every artefact whether the format is a route for it. A class attribute `quantized` says
    which options `--quantize TYPE` stands for, by type: `{"int8": {"type": "q8_0"}}`. With `checks_base =
    True` an exporter that writes its backbone with `toolkit.write_checkpoint` gets a run whose base is
    compared with what the run was made from only then, so that it is read once.
    """

    Options: type[BaseModel]

    def export(self, run: FinishedRun, output: Path, options: Any, progress: Progress) -> dict[str, Any]:
        """Write the folder `output`, whole or not at all (use `toolkit.publishing`).

        Args:
            run: the run to export.
            output: a folder that does not exist yet.
            options: an instance of `Options`.
            progress: where messages go.

        Returns:
            What `koffkit export --json` prints: a JSON object with the folder as `output`.

        Raises:
            KoffkitError: the message names the file, the problem and the remedy.
        """
        ...


def available() -> list[str]:
    """The installed formats."""
    return plugins.names(plugins.EXPORTERS)


def find(name: str) -> Exporter:
    """The exporter of a format.

    Raises:
        UsageError: no such format is installed, or its package cannot be imported.
    """
    exporter: Exporter = plugins.load(plugins.EXPORTERS, name, "--format")()
    return exporter


def quantized(name: str, exporter: Exporter, kind: str) -> dict[str, Any]:
    """The options of a format that `--quantize` stands for.

    Args:
        name: the format's name, for the error.
        exporter: the exporter.
        kind: `int8` or `int4`.

    Raises:
        UsageError: the format does not write weights of that type.
    """
    kinds: Mapping[str, Mapping[str, Any]] = getattr(exporter, "quantized", {})
    if kind not in kinds:
        able = [other for other in available() if kind in getattr(find(other), "quantized", {})]
        raise UsageError(
            f"--quantize {kind}: format {name} writes no such weights"
            f"; formats that do: {', '.join(able) or 'none'}."
        )
    return dict(kinds[kind])


def check_options(name: str, exporter: Exporter, options: Mapping[str, Any]) -> BaseModel:
    """Check the options of a recipe and convert them to the exporter's own class.

    Args:
        name: the format's name, for the error.
        exporter: the exporter.
        options: the keys beside `format` in the recipe.

    Raises:
        UsageError: one is unknown or has a wrong value; the text names it.
    """
    unknown = sorted(set(options) - _option_names(exporter.Options))
    carries: Carries | None = getattr(exporter, "carries", None)
    if "merge" in unknown and carries is not None and not carries.merges:
        raise UsageError(
            f"export: format {name}: merge: {options['merge']}: a memory in the weights leaves no adapter to "
            f"write; export with --format hf --merge {options['merge']}, whose backbone stock transformers "
            "and PEFT load."
        )
    if unknown and exporter.Options.model_config.get("extra") != "allow":
        known = ", ".join(sorted(_option_names(exporter.Options))) or "no options"
        raise UsageError(
            f"export: format {name} has no option {', '.join(unknown)}; remove it (there is: {known})."
        )
    try:
        return exporter.Options.model_validate(dict(options))
    except ValidationError as error:
        raise UsageError(f"export: format {name}: {first_problem(error)}.") from None


def checks_base(exporter: Exporter) -> bool:
    """Whether an exporter compares the base of its run while it reads it."""
    return bool(getattr(exporter, "checks_base", False))


def _option_names(options: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in options.model_fields.items()}


def export(
    run: FinishedRun | RunFolder | Path | str,
    output: Path,
    name: str = "hf",
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Export a finished run in one format.

    Args:
        run: a run folder, or an open run.
        output: the folder to make.
        name: the format's name.
        options: the format's options, as in a recipe.
        progress: where messages go; by default nowhere.

    Returns:
        what `koffkit export --json` prints.

    Raises:
        UsageError: no such format or option, or `output` exists.
        IntegrityError: the run or its base is damaged, or the result fails a check.
    """
    from ..progress import Silent

    exporter = find(name)
    checked = check_options(name, exporter, options or {})
    progress = progress or Silent()
    finished = run
    if not isinstance(finished, FinishedRun):
        finished = FinishedRun.open(finished, progress=progress, check_later=checks_base(exporter))
    return exporter.export(finished, Path(output), checked, progress)

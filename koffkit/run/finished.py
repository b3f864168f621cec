"""A finished run, opened once, as exporters receive it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..artefact.check import listed_problems
from ..checkpoint.spec import ModelSpec
from ..errors import IntegrityError
from ..hub import locate_again
from ..masks.container import open_complete, sliced_config
from ..masks.file import load_masks
from ..masks.masks import Masks
from ..masks.repair import Repair
from ..progress import Progress
from .base_check import BaseCheck
from .folder import RunFolder
from .state import RunState


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run. Make one with `open`.

    Attributes:
        folder: the run folder.
        state: its `run.json`.
        spec: the unpruned base, verified to be the one that the run began with, with every default of its
            config spelled out.
        masks: by layer and structure; True = keep.
        memories: the folder of every memory, at the widths of the base, by domain; empty for pruning alone.
        router: the router's folder, if the run has one.
        repair: tensors that stand in for the base's; None: there are none.
        base_check: whether every byte of the base is as it was; `open` has settled it unless it was told to
            leave that to whoever reads all of the base.
    """

    folder: RunFolder
    state: RunState
    spec: ModelSpec
    masks: Masks
    memories: Mapping[str, Path]
    router: Path | None
    repair: Repair | None = None
    base_check: BaseCheck

    @classmethod
    def open(
        cls,
        folder: RunFolder | Path | str,
        base: Path | None = None,
        progress: Progress | None = None,
        *,
        check_later: bool = False,
    ) -> FinishedRun:
        """Open a run and check all its parts.

        Args:
            folder: the run.
            base: the unpruned model, if it is neither where the run loaded it from nor beside the run.
            progress: told how far the reading of the base is; by default nobody is.
            check_later: leave it to the exporter to compare the base's digest, so that the base is read once.

        Raises:
            UsageError: this is not a run, or it is not finished.
            DataError: its base cannot be located.
            IntegrityError: the base is damaged or has changed since, or the masks do not fit it.
        """
        folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        state = folder.require_finished()
        if progress is not None:
            progress.message("checking the run and its base")
        _require_unchanged(folder, state)
        check = BaseCheck(_find_base(folder, state, base), state.base, folder.path)
        if not check_later:
            check.settle(progress=progress)
        spec = open_complete(check.folder)
        spec.reader()
        return cls(
            folder=folder,
            state=state,
            spec=spec,
            masks=load_masks(folder.masks_file, spec),
            memories=_memories(folder, state),
            router=folder.router_dir if folder.router_dir.is_dir() else None,
            repair=_repair(folder, state, spec),
            base_check=check,
        )

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.state.recipe["name"])

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The resolved recipe."""
        return self.state.recipe

    @property
    def results(self) -> Mapping[str, Any]:
        """Figures by stage."""
        return self.state.results

    @cached_property
    def sliced_config(self) -> dict[str, Any]:
        """The `config.json` of the sliced backbone."""
        spec = self.spec if self.repair is None else self.repair.repaired_spec
        return sliced_config(spec, self.masks)

    def figures(self, domain: str) -> Mapping[str, Any]:
        """The figures of a domain from stage `evaluate`; empty if it did not run."""
        figures: Mapping[str, Any] = self.results.get("domains", {}).get(domain, {})
        return figures


def _repair(folder: RunFolder, state: RunState, spec: ModelSpec) -> Repair | None:
    if state.repair is None or state.repair.sha256 is None:
        return None
    return Repair.open(folder.file_of_repair(state.repair.trained), spec)


def _find_base(folder: RunFolder, state: RunState, given: Path | None) -> Path:
    """The base that the run was made from: where it was then, or where it is now.

    Raises:
        DataError: it cannot be located.
    """
    settings = state.recipe["base"]
    return locate_again(
        Path(state.base.path),
        settings["model"],
        Path(state.recipe_root),
        folder.path,
        revision=settings["revision"],
        given=given,
    )


def _require_unchanged(folder: RunFolder, state: RunState) -> None:
    """What is exported is what was learned; text and metrics are not read again."""
    learned = {
        name: entry
        for name, entry in (state.files or {}).items()
        if name.partition("/")[0] not in (folder.data_dir.name, folder.metrics_file.name)
    }
    for problem in listed_problems(folder.path, learned, folder.run_file.name):
        raise IntegrityError(problem)


def _memories(folder: RunFolder, state: RunState) -> dict[str, Path]:
    memory = state.recipe["memory"]
    if memory["lora"] is None and memory["kv"] is None and memory.get("neurons") is None:
        return {}
    return {domain: folder.memory_dir(domain) for domain in state.recipe["domains"]}

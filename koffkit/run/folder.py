"""Names and formats of a run folder. No other module knows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artefact.digests import file_entry
from ..artefact.parts import FileEntry
from ..errors import KoffkitError, UsageError
from ..parallel import ranks
from ..storage.files import write_atomically
from .state import RunState


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def masks_file(self) -> Path:
        return self.path / "masks.safetensors"

    @property
    def repair_file(self) -> Path:
        return self.path / "repair.safetensors"

    @property
    def trained_file(self) -> Path:
        return self.path / "trained.safetensors"

    def file_of_repair(self, trained: bool) -> Path:
        """What stands in for the base's tensors: a repair, or what stage `recover` made of it."""
        return self.trained_file if trained else self.repair_file

    @property
    def scores_file(self) -> Path:
        """What the masks were projected from."""
        return self.path / "scores.safetensors"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def analyses_file(self) -> Path:
        """What `koffkit report --analyses` found."""
        return self.path / "analyses.json"

    @property
    def completions_file(self) -> Path:
        """Texts that `koffkit report --completions` had the models write."""
        return self.path / "completions.json"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def teacher_dir(self) -> Path:
        """The teacher cache of a run that shares none."""
        return self.path / "teacher"

    @property
    def data_dir(self) -> Path:
        return self.path / "data"

    def same_heldout(self, domain: str, state: RunState, other: RunState) -> bool:
        """Whether two finished runs hold out the same tokens of a domain, as far as both list their files."""
        if state.files is None or other.files is None:
            return True
        start = f"{self.data_dir.name}/{domain}.heldout."
        kept = [
            {name: entry for name, entry in (one.files or {}).items() if name.startswith(start)}
            for one in (state, other)
        ]
        return kept[0] == kept[1]

    @property
    def domains_file(self) -> Path:
        """The index of the domains of `domains: {auto: ...}`, beside the text of each."""
        return self.path / "domains" / "domains.json"

    def domain_text(self, name: str) -> Path:
        return self.domains_file.with_name(f"{name}.jsonl")

    @property
    def memories_dir(self) -> Path:
        return self.path / "memories"

    @property
    def router_dir(self) -> Path:
        return self.path / "router"

    def memory_dir(self, domain: str) -> Path:
        return self.memories_dir / domain

    def list_files(self) -> dict[str, FileEntry]:
        """Digests of what a run learned and read, by path below the folder; not of `run.json`."""
        places = [self.masks_file, self.scores_file, self.repair_file, self.trained_file]
        places += [self.metrics_file]
        places += [self.domains_file.parent]
        places += [self.data_dir, self.memories_dir, self.router_dir]
        files = [path for place in places for path in (place, *sorted(place.rglob("*"))) if path.is_file()]
        return {
            path.relative_to(self.path).as_posix(): file_entry(path)
            for path in files
            if not path.name.startswith(".")
        }

    @property
    def exists(self) -> bool:
        return self.run_file.is_file()

    def read(self) -> RunState:
        """Read `run.json`.

        Raises:
            UsageError: this is not a run folder, it has a later format, or the file is damaged; the text
                names the field.
        """
        if not self.exists:
            raise UsageError(
                f"{self.path}: not a run folder (no run.json); make one with `koffkit compress`."
            )
        return RunState.read(self.run_file)

    def write(self, state: RunState) -> RunState:
        """Write `run.json` whole or not at all; returns the state."""
        if ranks.leads():
            state.write(self.run_file)
        return state

    @property
    def is_finished(self) -> bool:
        """Whether this is a finished run, and not the work folder of `koffkit memory add`."""
        try:
            state = self.read()
        except KoffkitError:
            return False
        return state.is_finished and state.backbone is None

    def require_finished(self) -> RunState:
        """The state of a finished run.

        Raises:
            UsageError: the run is not finished.
        """
        state = self.read()
        if state.backbone is not None:
            raise UsageError(
                f"{self.path}: this is the work of `koffkit memory add`; finish that command with --resume."
            )
        if not state.is_finished:
            raise UsageError(
                f"{self.path}: this run is not finished; continue it with `koffkit compress ... --output "
                f"{self.path} --resume`."
            )
        return state

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        if not ranks.leads():
            return
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_metrics(self, stage_order: list[str], stage: str, step: int) -> None:
        """Drop the rows after `step` of `stage`: the steps that a resumed run is about to repeat."""
        if not ranks.leads() or not self.metrics_file.is_file():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # a line cut short by a kill is one of the rows to repeat
                break
            if (stage_order.index(row["stage"]), row["step"]) <= (stage_order.index(stage), step):
                kept.append(line + "\n")
        write_atomically(self.metrics_file, "".join(kept))


def newest_finished(root: Path | str = "runs") -> RunFolder:
    """The finished run under `root` whose `run.json` changed last.

    Raises:
        UsageError: there is none.
    """
    runs = [RunFolder(path.parent) for path in Path(root).glob("*/run.json")]
    finished = [run for run in runs if run.is_finished]
    if not finished:
        raise UsageError(f"{root}: no finished run; name one, or make one with `koffkit compress RECIPE`.")
    return max(finished, key=lambda run: run.run_file.stat().st_mtime_ns)

"""`run.json`: what a run says of itself while it goes on and when it is finished."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field
from typing_extensions import Self

from ..artefact.parts import FileEntry
from ..checkpoint.fingerprint import DigestKind
from ..errors import UsageError
from ..storage.record import Count, InnerPath, Record, RecordPart, Sha256

FORMAT = 1
StageProgress = Literal["pending", "running", "done"]


class RunBase(RecordPart):
    """The unpruned model that the run began with."""

    model: str = Field(description="As the recipe names it.")
    path: str = Field(description="The folder it was found in.")
    fingerprint: Sha256 = Field(alias="digest", description="What the folder is known again by.")
    digest_kind: DigestKind = Field(
        "sampled", description="`full`: of every byte; `sampled` (or absent): of samples, as before."
    )
    config: dict[str, Any] = Field(description="Its config.json.")


class RunBudget(RecordPart):
    """What stays and what goes; see `koffkit.method.budget.Budget`."""

    layout: str
    keep: dict[str, Count] = Field(description="Units kept in every layer, by structure.")
    total_units: dict[str, Count]
    step_units: dict[str, Count]
    params_per_unit: dict[str, Count]
    base_params: int = Field(ge=1)
    target_params: Count
    removed_params: Count
    step_params: Count
    global_sparsity: float


class StageState(RecordPart):
    """How far one stage is."""

    name: str
    state: StageProgress


class RunState(Record):
    """The object in `run.json`."""

    newest = FORMAT
    title = "run format"
    remedy = "the file is damaged, start the run anew"
    damaged = UsageError

    requested_recipe: dict[str, Any] = Field(
        validation_alias=AliasChoices("requested_recipe", "asked"),
        description="The recipe as it was given, with all defaults; `asked` in older runs.",
    )
    recipe: dict[str, Any] = Field(description="The same with the domains that were found in the text.")
    recipe_path: str
    recipe_root: str = Field(description="Where relative paths of the recipe begin.")
    versions: dict[str, str] = Field(description="Of koffkit, Python and the packages below it.")
    seed: int
    base: RunBase
    budget: RunBudget
    backbone: Sha256 | None = Field(
        None, description="Digest of the sliced backbone that a memory is learned for; null: a whole run."
    )
    memory_layers: list[Count] = Field(description="Layers that carry memory.")
    stages: list[StageState]
    state: Literal["running", "finished"]
    started: str = Field(description="UTC, as YYYY-MM-DDTHH:MM:SSZ.")
    results: dict[str, Any] = Field(description="Figures by stage.")
    finished: str | None = Field(None, description="UTC, as YYYY-MM-DDTHH:MM:SSZ.")
    files: dict[InnerPath, FileEntry] | None = Field(
        None, description="Of a finished run: what it learned and read. Absent in runs of earlier versions."
    )

    @property
    def is_finished(self) -> bool:
        """Whether every stage is done."""
        return self.state == "finished"

    @property
    def stage_names(self) -> list[str]:
        """The stages in their order."""
        return [stage.name for stage in self.stages]

    def with_stage(self, name: str, state: StageProgress) -> Self:
        """A copy in which one stage is in another state.

        Args:
            name: of the stage.
            state: the new one.
        """
        stages = [
            StageState(name=name, state=state) if stage.name == name else stage for stage in self.stages
        ]
        return self.evolve(stages=stages)

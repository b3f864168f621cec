"""`run.json`: the state of a run, unfinished or finished."""

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
    """The budget; see `koffkit.method.budget.Budget`."""

    layout: str = Field(description="`uniform` or `ragged`.")
    layers: list[Count] | None = Field(None, description="Layers that have gates; null: all.")
    keep: dict[str, Count] = Field(
        description="Units kept in every layer that has gates, by structure; of `ragged` what an even share "
        "would keep."
    )
    total_units: dict[str, Count] = Field(description="Units of a layer before, by structure.")
    step_units: dict[str, Count] = Field(description="Units of a layer that go together, by structure.")
    params_per_unit: dict[str, Count] = Field(description="Parameters that go with a unit, by structure.")
    base_params: int = Field(ge=1, description="Parameters of the base.")
    target_params: Count = Field(description="Parameters that the recipe wants gone at least.")
    removed_params: Count = Field(
        description="Parameters that go; of `ragged` the target until the masks are learned."
    )
    step_params: Count = Field(
        description="Parameters of one step: in every layer (`uniform`) or in one (`ragged`)."
    )
    global_sparsity: float = Field(description="removed_params / base_params.")


class RunRepair(RecordPart):
    """The repair of the masked model (`mask.repair`)."""

    kind: str = Field(
        description="`bias`, `least_squares`, `scales` (what `mask.gates: top_k` learned beside the mask) "
        "or `trained` (by stage `recover` alone)."
    )
    trained: bool = Field(
        False, description="Stage `recover` trained it further: the tensors are in `trained.safetensors`."
    )
    modules: Count | None = Field(None, description="Linear modules that read something that is gone.")
    repaired: Count | None = Field(
        None, description="Those whose output the repair brings closer, on held-out text."
    )
    error_before: float | None = Field(
        None, description="Squared error of their outputs on held-out text, summed."
    )
    error_after: float | None = Field(None, description="The same with the repair.")
    sha256: Sha256 | None = Field(None, description="Of its file; absent: nothing was repaired.")


class StageState(RecordPart):
    """The progress of one stage."""

    name: str = Field(description="As in the recipe.")
    state: StageProgress = Field(description="How far it is.")
    seconds: float | None = Field(
        None, ge=0, description="How long the command that finished it worked on it; absent in older runs."
    )


class RunCosts(RecordPart):
    """What a run costs, foreseen or spent."""

    basis: Literal["probe", "machine", "run"] = Field(
        description="Foreseen by real steps (`probe`) or the speed of the `machine`, or spent by the `run`."
    )
    seconds: dict[str, float | None] = Field(description="By stage; null where the text decides.")
    peak_memory: Count = Field(description="Bytes of the device, or of the process on a CPU.")
    disk: Count = Field(
        description="Bytes of the run folder with its last checkpoints, and of the teacher cache."
    )


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
    recipe_path: str = Field(description="The recipe's file.")
    recipe_root: str = Field(description="Where relative paths of the recipe begin.")
    versions: dict[str, str] = Field(description="Of koffkit, Python and the packages below it.")
    seed: int = Field(description="Of all random numbers.")
    base: RunBase = Field(description="The unpruned model.")
    budget: RunBudget = Field(description="What stays and what goes.")
    backbone: Sha256 | None = Field(
        None, description="Digest of the sliced backbone that a memory is learned for; null: a whole run."
    )
    repair: RunRepair | None = Field(None, description="What was done to the modules beside the gaps.")
    memory_layers: list[Count] = Field(description="Layers that carry memory.")
    stages: list[StageState] = Field(description="In the order in which they run.")
    state: Literal["running", "finished"] = Field(description="Whether every stage is done.")
    started: str = Field(description="UTC, as YYYY-MM-DDTHH:MM:SSZ.")
    results: dict[str, Any] = Field(description="Figures by stage.")
    foreseen: RunCosts | None = Field(
        None, description="What the run was expected to cost. Absent in older runs."
    )
    spent: RunCosts | None = Field(
        None,
        description="What a finished run did cost; if it was resumed, the last command alone. Absent in "
        "older runs.",
    )
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

    def with_stage(self, name: str, state: StageProgress, seconds: float | None = None) -> Self:
        """A copy with another state of one stage.

        Args:
            name: the stage's name.
            state: its new state.
            seconds: how long it took, once it is done.
        """
        took = {} if seconds is None else {"seconds": round(seconds, 3)}
        changed = StageState(name=name, state=state, **took)
        stages = [changed if stage.name == name else stage for stage in self.stages]
        return self.evolve(stages=stages)

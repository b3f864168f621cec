"""The stages by recipe name."""

from __future__ import annotations

from typing import Protocol

from ..training.checkpoint import Checkpoint
from ..training.context import Context
from .evaluate import EvaluateStage
from .learn_masks import LearnMasksStage
from .recover import RecoverStage
from .route import RouteStage


class StageRunner(Protocol):
    """A stage: `run` starts at `resume` (a checkpoint inside this stage) or at its beginning."""

    name: str

    def run(self, context: Context, resume: Checkpoint | None) -> None: ...


RUNNERS: dict[str, StageRunner] = {
    runner.name: runner for runner in (LearnMasksStage(), RecoverStage(), RouteStage(), EvaluateStage())
}

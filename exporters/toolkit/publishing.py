"""A folder to write an export into; it appears whole under its name, or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...artefact.digests import weight_bytes
from ...artefact.names import BACKBONE
from ...progress import Progress
from ...run.finished import FinishedRun
from ...storage.publish import require_space, staged

MARGIN = 1 << 26
"""Bytes to allow beside the weights, for tokenizer, cards and memories of usual size."""


@dataclass
class Draft:
    """An export that is being written.

    Attributes:
        run: what is exported.
        folder: where to write.
        output: the folder's final name.
        seconds: time that each step took, by its name.
    """

    run: FinishedRun
    folder: Path
    output: Path
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def backbone(self) -> Path:
        """The backbone's folder."""
        return self.folder / BACKBONE

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time that the block takes to `seconds`."""
        began = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - began


@contextmanager
def publishing(run: FinishedRun, output: Path, progress: Progress) -> Iterator[Draft]:
    """A hidden folder beside `output`, renamed to it when the block ends without an error.

    Args:
        run: what is exported.
        output: the folder to make.
        progress: where messages go.

    Raises:
        UsageError: `output` exists.
        ResourceError: the disk is too full.
    """
    began = time.perf_counter()
    require_space(output, weight_bytes(run.spec.folder) + MARGIN)
    with staged(output) as partial:
        draft = Draft(run, partial, output, progress)
        yield draft
    draft.seconds["total"] = time.perf_counter() - began

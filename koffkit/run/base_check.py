"""Whether the base of a run is still what the run was made from, found out once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.fingerprint import digest_of
from ..errors import IntegrityError
from ..progress import Progress
from .state import RunBase


@dataclass
class BaseCheck:
    """The comparison of a base with what a run knows of it.

    Args:
        folder: the base.
        known: what the run knows.
        run: the run's folder, for the message.
        is_settled: whether it was compared.
    """

    folder: Path
    known: RunBase
    run: Path
    is_settled: bool = False

    @property
    def reads_all(self) -> bool:
        """Whether it is by every byte; runs of earlier versions know samples."""
        return self.known.digest_kind == "full"

    def settle(self, digest: str | None = None, *, progress: Progress | None = None) -> None:
        """Compare, unless that was done.

        Args:
            digest: of the base, if it is known by now; None: it is read for that.
            progress: told how far the reading is; by default nobody is.

        Raises:
            IntegrityError: the base has changed since.
        """
        if self.is_settled:
            return
        found = digest_of(self.folder, self.known.digest_kind, progress) if digest is None else digest
        if found != self.known.fingerprint:
            raise IntegrityError(
                f"{self.folder}: this is not the base that {self.run} was made from (its files changed "
                "since); restore it, or compress again."
            )
        self.is_settled = True

"""Exporters: from a finished run folder to artefacts that other software loads.

Found through the entry-point group `koffkit.exporters`, the same door that third parties use. An exporter
reads the run folder, never live objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

from ..errors import UsageError
from ..progress import Progress
from ..run.folder import RunFolder

GROUP = "koffkit.exporters"


class Exporter(Protocol):
    """One format.

    `export` writes the folder `output` whole or not at all, and returns what `koffkit export --json` prints.
    """

    def export(
        self, run: RunFolder, output: Path, options: Mapping[str, Any], progress: Progress
    ) -> dict[str, Any]: ...


def available() -> dict[str, EntryPoint]:
    """Installed formats by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def find(name: str) -> Exporter:
    """The exporter for a format.

    Raises:
        UsageError: no such format is installed.
    """
    points = available()
    if name not in points:
        raise UsageError(
            f"--format {name}: no such exporter; installed: {', '.join(sorted(points)) or 'none'}."
        )
    exporter: Exporter = points[name].load()()
    return exporter

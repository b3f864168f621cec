"""The embedded default: a small Llama that knows CLDR facts in six languages, and those facts. Data only."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

PREFIX = "embedded:"


def path(name: str) -> Path:
    """The file or folder `name` of the embedded default, for example `base` or `facts/de.jsonl`.

    Raises:
        FileNotFoundError: there is no such entry; names the ones there are.
    """
    root = Path(str(files(__name__)))
    found = (root / name).resolve()
    if not found.is_relative_to(root.resolve()) or not found.exists() or found.suffix == ".py":
        known = ", ".join(
            ["base", *sorted(f"facts/{entry.name}" for entry in (root / "facts").glob("*.jsonl"))]
        )
        raise FileNotFoundError(f"{PREFIX}{name}: not part of the embedded default; there is {known}")
    return found

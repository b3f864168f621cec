"""The embedded default: a small Llama that knows CLDR facts in six languages, and those facts. Data only."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

PREFIX = "embedded:"


def path(name: str) -> Path:
    """The file or folder `name` of the embedded default, for example `base` or `facts/de.jsonl`.

    Raises:
        FileNotFoundError: there is no such entry; the text names those that exist.
    """
    root = Path(str(files(__name__)))
    entry_path = (root / name).resolve()
    if not entry_path.is_relative_to(root.resolve()) or not entry_path.exists() or entry_path.suffix == ".py":
        known = ", ".join(
            ["base", *sorted(f"facts/{entry.name}" for entry in (root / "facts").glob("*.jsonl"))]
        )
        raise FileNotFoundError(f"{PREFIX}{name}: not part of the embedded default; there is {known}")
    return entry_path

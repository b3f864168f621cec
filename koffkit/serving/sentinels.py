"""What a `serving.json` says of memories, for those who ask the server that it was written for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artefact.bundle import Bundle
from ..errors import IntegrityError, UsageError
from ..storage.read_json import read_json

SERVING = "serving.json"


def served_memories(
    bundles: Sequence[Bundle], folder: Path | None
) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """The memories that another server knows, and of those with a KV half the token that stands for it, and
    how many.

    Args:
        bundles: of the export.
        folder: the export of format vllm that the server runs; None: it has all memories, and no KV halves.

    Raises:
        UsageError: the folder is no such export.
        IntegrityError: its `serving.json` is damaged.
    """
    if folder is None:
        return [bundle.domain for bundle in bundles], {}
    path = folder / SERVING
    if not path.is_file():
        raise UsageError(f"--upstream-export {folder}: no {SERVING}; name an export of format vllm.")
    memories: Any = read_json(path, remedy="export again").get("memories")
    try:
        halves = {str(name): entry["kv"] for name, entry in memories.items()}
        found = {
            name: (int(kv["sentinel"]), int(kv["tokens"])) for name, kv in halves.items() if kv is not None
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise IntegrityError(f"{path}: memories: not as koffkit writes it; export again.") from None
    return list(halves), found
